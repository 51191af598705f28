# Signals end the VMM in good order: what was in flight is finished. A machine that pauses ends as well.
for signal in TERM INT; do
	guest --control vm.sock &
	vmm=$!
	wait_for "guest: under load"
	[ $signal = TERM ] || tell '{"do":"pause"}'
	kill -$signal $vmm
	wait $vmm
	echo "host: $signal: the VMM ended with $?"
	mv console.log console-$signal.log
	exec >>console.log
done
guest --control vm.sock &
vmm=$!
wait_for "guest: under load"
tell '{"do":"quit"}'
ends_with 0
[ ! -e vm.sock ] || fail "the socket is still there"
cat console-*.log
