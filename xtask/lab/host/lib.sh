# For cases with a script of their own in the lab machine: `guest` is our VMM with the case's kernel and devices (to be run in
# the background), `restored FILE` a saved machine. The script's exit code is the case's; what they print is the console.
wait_for() {
	waited=0
	until grep -q "$1" console.log; do
		[ $waited -lt 120 ] || fail "the guest did not say '$1'"
		kill -0 "$vmm" 2>/dev/null || fail "the VMM ended before the guest said '$1'"
		sleep 1
		waited=$((waited + 1))
	done
}

fail() {
	echo "host: FAILED: $*"
	kill -KILL "$vmm" 2>/dev/null
	exit 90
}

# A request that must be carried out.
tell() {
	reply=$(microvm --tell vm.sock "$1") || fail "$1: $reply"
	echo "host: $1: $reply" | cut -c1-300
}

# A request that must be refused.
refuse() {
	reply=$(microvm --tell vm.sock "$1") && fail "$1 was carried out: $reply"
	echo "host: $1: $reply" | cut -c1-300
}

# Waits for the VMM, which must end with that code.
ends_with() {
	wait "$vmm"
	code=$?
	[ "$code" = "$1" ] || fail "the VMM ended with $code"
}
