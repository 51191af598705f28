# The host's end of a network case, in a network namespace of its own: a tap between our VMM and this script. Sourced
# by the script of the case, which says what happens on it. What is to be checked afterwards goes to host.txt.
[ -n "$INSIDE" ] || INSIDE=yes exec unshare -n sh ./run.sh
ours=10.61.0.1
theirs=10.61.0.2

say() {
	echo "$*" >>host.txt
}

# Starts the machine; its console and its complaints are where those of this script are.
start_vmm() {
	guest &
	vmm=$!
}

# Gives the tap an address, once it is there: where the host did not make it, our VMM does.
tap_up() {
	waited=0
	until ip link show tap0 >/dev/null 2>&1; do
		[ $waited -lt 300 ] || { say "no tap"; return; }
		usleep 100000
		waited=$((waited + 1))
	done
	[ -z "$1" ] || ip link set tap0 mtu "$1"
	ip addr add $ours/24 dev tap0
	ip link set tap0 up
}

# Waits for the guest, then counts what it answers.
ping_guest() {
	waited=0
	until ping -c 1 -W 1 $theirs >/dev/null 2>&1; do
		[ $waited -lt 60 ] || { say "the guest does not answer"; return; }
		kill -0 $vmm 2>/dev/null || return
		waited=$((waited + 1))
	done
	say "ping $(ping -q -c 3 -W 5 $theirs | grep transmitted)"
}

# Takes what the guest sends to a port, and notes its sum. An nc whose input has ended says so to its peer, which then
# ends, whatever it still has to send: so this one gets an input without an end.
take() {
	rm -f "nothing.$1"
	mkfifo "nothing.$1"
	nc -l -p "$1" <>"nothing.$1" | sha256sum | { read -r sum rest; say "sum up $1 $sum"; }
}

# Sends so many mebibytes to a port of the guest, once it listens, and notes their sum.
give() {
	rm -f "sum.$1"
	mkfifo "sum.$1"
	sha256sum <"sum.$1" | { read -r sum rest; say "sum down $1 $sum"; } &
	summing=$!
	dd if=/dev/urandom bs=64k count=$(($2 * 16)) 2>/dev/null | tee "sum.$1" | nc $theirs "$1" >/dev/null
	wait $summing
}

# The end: the exit code is the machine's. Where its guest was content, all was sent, and what came is being summed up.
wait_for_vmm() {
	wait $vmm
	code=$?
	[ $code = 0 ] && wait
	exit $code
}
