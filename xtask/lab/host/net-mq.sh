# Two streams each way, as both processors of the guest have their own.
. ./net.sh
take 1001 &
take 1002 &
start_vmm
tap_up
ping_guest
wait_for "ready for data"
give 2001 "$(cat size)" &
give 2002 "$(cat size)" &
wait_for_vmm
