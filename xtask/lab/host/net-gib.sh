# One way only, in the longest frames that a tap takes: the device has no offloads, and it is frames that cost.
. ./net.sh
tunctl -t tap0 >/dev/null
tap_up 65000
take 1001 &
start_vmm
ping_guest
wait_for_vmm
