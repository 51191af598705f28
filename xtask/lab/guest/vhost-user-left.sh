# Boots three times: the first time QEMU is killed, the second time the guest reboots. What it has done stands on the disk.
. /cases/load.sh
disk /dev/vda
stage() { dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | head -c 6; }
# Six letters in a sector of their own.
next_stage() { printf '%-512s' "$1" | dd of=/dev/vda bs=512 count=1 oflag=direct conv=notrunc 2>/dev/null; }
written() { dd if=/dev/vda bs=64k skip=$((12 * 16)) count=16 iflag=direct 2>/dev/null | cmp -s - /written; }
# All that is sent comes back: questions for an address that nobody has.
expect "an address" ip addr add 10.61.0.2/24 dev eth0
expect "the card is up" ip link set eth0 up
ping -c 1 -W 1 10.61.0.1 >/dev/null
expect "frames came" [ "$(cat /sys/class/net/eth0/statistics/rx_packets)" -gt 0 ]
seq 1 200000 | head -c 1048576 >/written
case $(stage) in
stage2)
	expect "what was written before QEMU was killed is there" written
	expect "noted" next_stage stage3
	reboot -f
	;;
stage3)
	expect "what was written before the reboot is there" written
	begin_load /dev/vda
	usleep 1000000
	end_load
	;;
*)
	expect "written" dd if=/written of=/dev/vda bs=64k seek=$((12 * 16)) oflag=direct conv=notrunc
	expect "noted" next_stage stage2
	begin_load /dev/vda
	echo "guest: under load"
	while :; do sleep 1; done
	;;
esac
