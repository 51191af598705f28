# Saved in the middle of a stream, the machine goes on in another process on the same tap.
. ./net.sh
tunctl -t tap0 >/dev/null
tap_up
take 1001 &
guest --control vm.sock &
vmm=$!
ping_guest
wait_for "in the middle of it"
tell '{"do":"save","path":"vm.saved","then":"quit","deadline":"30s"}'
ends_with 0
ping -c 1 -W 1 $theirs >/dev/null 2>&1 && fail "the guest answers though its process is gone"
say "saved"
restored vm.saved --control vm.sock &
vmm=$!
ping_guest
wait_for_vmm
