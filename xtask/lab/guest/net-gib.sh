# A gibibyte to the host: a disk of noise, 16 times out of memory.
. /cases/net.sh
disk /dev/vda
card_up
ping_host
expect "64 MiB of noise read" dd if=/dev/vda of=/noise bs=1M iflag=direct
before=$(now)
n=0
rounds=$(word lab.rounds)
while [ $n -lt "$rounds" ]; do
	cat /noise || end 1
	n=$((n + 1))
	echo "guest: $((n * 64)) MiB after $(since "$before") s" >&2
done | nc $theirs 1001 >/dev/null
echo "guest: $((rounds * 64)) MiB took $(since "$before") s"
cat /proc/net/dev
