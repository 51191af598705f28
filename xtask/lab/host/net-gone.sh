# The tap goes while the guest runs: it is given to another network namespace, which ends, and devices end with it.
. ./net.sh
start_vmm
tap_up
ping_guest
wait_for "ready to lose"
unshare -n sleep 1000 &
other=$!
usleep 500000
ip link set tap0 netns $other && kill $other
ip link show tap0 >/dev/null 2>&1 || say "the tap is gone"
wait_for_vmm
