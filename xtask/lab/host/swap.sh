# The disk moves from file to file under load. While the machine pauses, everything is in the file that is copied.
guest --control vm.sock &
vmm=$!
wait_for "guest: under load"
refuse '{"do":"swap","device":1,"to":"memory,size=1M"}'
from=a
for to in b a b; do
	tell '{"do":"pause","deadline":"30s"}'
	cp $from.img $to.img
	tell "{\"do\":\"swap\",\"device\":1,\"to\":\"file,path=$to.img\"}"
	tell '{"do":"resume"}'
	rm $from.img
	from=$to
	sleep 2
done
# Without a pause: another stack over the same content is not possible with a file, which is locked; one that lies is.
refuse '{"do":"swap","device":1,"to":"file,path=missing.img"}'
tell '{"do":"resize","device":0,"size":"2M"}'
ends_with 0
