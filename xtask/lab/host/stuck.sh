# Saved while requests hang below, which are done after the restore: settings of a `fault` stage are not saved.
guest --control vm.sock &
vmm=$!
wait_for "guest: fio writes to"
tell '{"do":"set","device":1,"to":"fault,kind=hang,every=1"}'
sleep 2
tell '{"do":"stats"}'
# Only by a machine that ends, or they would be done twice.
refuse '{"do":"save","path":"vm.saved","deadline":"2s"}'
[ ! -e vm.saved ] || fail "a machine that goes on was saved with requests that hang"
tell '{"do":"save","path":"vm.saved","then":"quit","deadline":"2s"}'
case $reply in
*'"devices-with-requests-in-flight":[1]'*) ;;
*) fail "no requests were in flight" ;;
esac
ends_with 0
# The guest's sign, which it gets by the restore alone: a disk that is larger than it was told.
truncate -s 2M sign.img

restored vm.saved --control vm.sock &
vmm=$!
sleep 3
tell '{"do":"stats"}'
ends_with 0
rm vm.saved
