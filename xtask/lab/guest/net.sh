# The guest's end of a network case; sourced by the script of the case.
ours=10.61.0.2
theirs=10.61.0.1

# The word of the kernel's command line behind NAME=.
word() {
	sed -n "s/.*\<$1=\([^ ]*\).*/\1/p" /proc/cmdline
}

card_up() {
	waited=0
	while [ ! -e /sys/class/net/eth0 ] && [ $waited -lt 100 ]; do
		usleep 100000
		waited=$((waited + 1))
	done
	expect "a network card" [ -e /sys/class/net/eth0 ]
	expect "it is a virtio one" [ "$(basename "$(readlink -f /sys/class/net/eth0/device/driver)")" = virtio_net ]
	expect "an address" ip addr add $ours/24 dev eth0
	ip link set lo up
	expect "the card is up" ip link set eth0 up
}

# Waits for the host's end, which may come up later, then wants every answer, or some where frames are lost.
ping_host() {
	waited=0
	until ping -c 1 -W 1 $theirs >/dev/null 2>&1; do
		[ $waited -lt 30 ] || break
		waited=$((waited + 1))
	done
	if [ "$1" = lossy ]; then
		expect "the host answers" ping -q -c 3 -W 5 $theirs
	else
		expect "the host answers" sh -c "ping -q -c 3 -W 5 $theirs | grep -q ' 0% packet loss'"
	fi
	echo "guest: ready for data"
}

# Sends so many mebibytes to a port of the host and prints their sum.
give() {
	rm -f "/tmp/sum.$1"
	mkfifo "/tmp/sum.$1"
	sha256sum <"/tmp/sum.$1" | { read -r sum rest; echo "guest: sum up $1 $sum"; } &
	summing=$!
	dd if=/dev/urandom bs=64k count=$(($2 * 16)) 2>/dev/null | tee "/tmp/sum.$1" | nc $theirs "$1" >/dev/null
	wait $summing
}

# Takes what the host sends to a port and prints its sum.
take() {
	# An input without an end: see the host's script.
	rm -f "/tmp/nothing.$1"
	mkfifo "/tmp/nothing.$1"
	nc -l -p "$1" <>"/tmp/nothing.$1" | sha256sum | { read -r sum rest; echo "guest: sum down $1 $sum"; }
}

since() {
	awk -v before="$1" '{ print $1 - before }' /proc/uptime
}

now() {
	cut -d' ' -f1 /proc/uptime
}
