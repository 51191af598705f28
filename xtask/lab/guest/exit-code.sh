# Nothing but an exit code.
end 42
