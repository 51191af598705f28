# A tap that our VMM makes.
. ./net.sh
take 1001 &
start_vmm
tap_up
ping_guest
wait_for "ready for data"
give 2001 "$(cat size)" &
wait_for_vmm
