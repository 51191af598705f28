# Two processors, two pairs of queues, a stream each way on either processor.
. /cases/net.sh
expect "two processors" [ "$(nproc)" = 2 ]
size=$(word lab.size)
on() {
	taskset -c "$1" sh -c ". /cases/net.sh; $2 $3 $size"
}
on 0 take 2001 &
first=$!
on 1 take 2002 &
second=$!
card_up
expect "two pairs of queues" [ "$(ls -d /sys/class/net/eth0/queues/tx-* | wc -l)" = 2 ]
ping_host
before=$(now)
on 0 give 1001 &
third=$!
on 1 give 1002
wait $first $second $third
echo "guest: twice $size MiB both ways took $(since "$before") s"
grep virtio /proc/interrupts
