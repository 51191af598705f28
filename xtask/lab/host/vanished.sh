# A back-end that fails, and a file that is cut off and removed under the guest.
guest --control vm.sock &
vmm=$!
wait_for "guest: both disks work"
tell '{"do":"set","device":1,"to":"fault,every=1"}'
truncate -s 0 gone.img
rm gone.img
tell '{"do":"resize","device":0,"size":"2M"}'
wait_for "guest: one disk is lost"
tell '{"do":"set","device":1,"to":"fault,kind=stall,every=1"}'
tell '{"do":"resize","device":0,"size":"3M"}'
wait_for "guest: stuck"
sleep 1
tell '{"do":"stats"}'
tell '{"do":"set","device":1,"to":"fault"}'
tell '{"do":"release","device":1,"stage":"fault"}'
ends_with 0
