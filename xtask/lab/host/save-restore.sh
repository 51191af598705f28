# Saved under load twice: once going on in the same process, once in another.
guest --control vm.sock &
vmm=$!
wait_for "guest: under load"
tell '{"do":"devices"}'
tell '{"do":"save","path":"first.saved","deadline":"30s"}'
sleep 2
tell '{"do":"save","path":"vm.saved","then":"quit","deadline":"30s"}'
ends_with 0
echo "host: $(stat -c '%n has %s bytes' vm.saved)"

# Damaged, it is refused.
head -c 100000 vm.saved >cut.saved
microvm --restore cut.saved && fail "a file that was cut is restored"
microvm --restore vm.saved --device 'virtio-blk -> null,size=1M' && fail "it is restored with other devices"
rm first.saved cut.saved
sleep 5

restored vm.saved --control vm.sock &
vmm=$!
sleep 3
tell '{"do":"stats"}'
tell '{"do":"resize","device":0,"size":"2M"}'
ends_with 0
rm vm.saved
