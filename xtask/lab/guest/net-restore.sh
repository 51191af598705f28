# A stream that has begun goes on in another process. It is sent piece by piece, so that the machine is saved in the middle of it.
. /cases/net.sh
. /cases/poweroff.sh
card_up
ping_host
rm -f /tmp/sum.1001
mkfifo /tmp/sum.1001
sha256sum </tmp/sum.1001 | { read -r sum rest; echo "guest: sum up 1001 $sum"; } &
summing=$!
n=0
while [ $n -lt 64 ]; do
	dd if=/dev/urandom bs=16k count=1 2>/dev/null
	usleep 250000
	n=$((n + 1))
	[ $n != 8 ] || echo "guest: in the middle of it" >&2
done | tee /tmp/sum.1001 | nc $theirs 1001 >/dev/null
wait $summing
expect "the host answers" ping -q -c 3 -W 5 $theirs
expect "no hung task" sh -c '! dmesg | grep -iE "hung task|netdev watchdog"'
