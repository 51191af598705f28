# The disk grows once the guest has mounted it.
guest --control vm.sock &
vmm=$!
wait_for "guest: ready to be resized"
refuse '{"do":"resize","device":1,"size":"128M"}'
tell '{"do":"resize","device":0,"size":"128M"}'
ends_with 0
