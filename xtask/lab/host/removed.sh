# What is below the disk and the card is taken away under the guest; the disk's file moves, and is put back from there.
guest --control vm.sock &
vmm=$!
wait_for "guest: the devices work"
refuse '{"do":"add","device":1,"to":"file,path=plain.img"}'
tell '{"do":"remove","device":1}'
tell '{"do":"remove","device":3}'
refuse '{"do":"remove","device":1}'
refuse '{"do":"save","path":"vm.saved"}'
# The file is free for others, which lock it as the first one did.
mv plain.img moved.img
tell '{"do":"swap","device":2,"to":"file,path=moved.img"}'
tell '{"do":"resize","device":0,"size":"2M"}'
wait_for "guest: the devices are without"
refuse '{"do":"add","device":1,"to":"file,path=moved.img"}'
tell '{"do":"remove","device":2}'
refuse '{"do":"add","device":1,"to":"file,path=small.img"}'
tell '{"do":"add","device":1,"to":"stats -> file,path=moved.img"}'
tell '{"do":"add","device":2,"to":"file,path=spare.img"}'
tell '{"do":"add","device":3,"to":"loopback"}'
tell '{"do":"resize","device":0,"size":"3M"}'
ends_with 0
[ ! -e vm.saved ] || fail "a machine without a back-end was saved"
