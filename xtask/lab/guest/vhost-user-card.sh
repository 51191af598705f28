# The daemon behind the card is killed and started anew while TCP streams pass both ways, on both pairs of queues.
. /cases/console.sh
. /cases/net.sh
on() {
	taskset -c "$1" sh -c ". /cases/net.sh; $2 $3"
}

# Sends to a port of the host until it has enough, and prints the sum.
give_until_enough() {
	mkfifo "/tmp/sum.$1"
	sha256sum <"/tmp/sum.$1" | { read -r sum rest; echo "guest: sum up $1 $sum"; } &
	summing=$!
	while [ ! -e /tmp/enough ]; do
		dd if=/dev/urandom bs=16k count=1 2>/dev/null
	done | tee "/tmp/sum.$1" | nc $theirs "$1" >/dev/null
	wait $summing
}

on 0 take 2001 &
first=$!
on 1 take 2002 &
second=$!
card_up
expect "two pairs of queues" [ "$(ls -d /sys/class/net/eth0/queues/tx-* | wc -l)" = 2 ]
ping_host lossy
give_until_enough 1001 &
third=$!
give_until_enough 1002 &
fourth=$!
taskset -p 1 $third >/dev/null
taskset -p 2 $fourth >/dev/null
host_says enough
: >/tmp/enough
wait $first $second $third $fourth
expect "the host answers" ping -q -c 3 -W 5 $theirs
# virtio_ring and virtio_net, where a chain comes home that is not out, or twice.
expect "the rings are whole" sh -c '! dmesg | grep -iE "is not a head|id [0-9]+ out of range|unexpected [tr]xq|virtio_net.*(error|fail)|hung task|netdev watchdog"'
