# A gibibyte to the host, and one from it: a disk of noise, so many times, out of memory.
. /cases/net.sh
disk /dev/vda
card_up
ping_host
expect "the noise is read" dd if=/dev/vda of=/noise bs=1M iflag=direct
echo "guest: features $(cat /sys/class/net/eth0/device/features)"
times=$(word lab.times)
before=$(now)
expect "all of it goes to the host" lab-pump send $theirs 1001 /noise "$times"
echo "guest: to the host in $(since "$before") s"
echo "guest: ready to compare"
expect "all of it comes as it was sent" lab-pump compare 2001 /noise "$times"
echo "guest: both ways in $(since "$before") s"
cat /proc/net/dev
