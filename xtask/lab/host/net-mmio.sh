# A tap that the host made beforehand.
. ./net.sh
tunctl -t tap0 >/dev/null
tap_up
take 1001 &
start_vmm
ping_guest
wait_for "ready for data"
give 2001 "$(cat size)" &
wait_for_vmm
