# Files on one disk, fio on another, direct I/O on a third one on the PCI bus, on two processors, while the machine is saved and goes on
# elsewhere.
. /cases/sign.sh
. /cases/fio.sh
. /cases/poweroff.sh

find_disk files
mkdir -p /mnt
expect "mounted" mount -t ext4 -o rw "$found" /mnt
find_disk raw
raw=$found
seq 1 60000 | head -c 262144 >/pattern
(
	until [ -e /direct-enough ]; do
		dd if=/pattern of="$raw" bs=32k seek=8 oflag=direct conv=notrunc 2>/dev/null || echo "write" >>/bad
		dd if="$raw" bs=32k skip=8 count=8 iflag=direct 2>/dev/null | cmp -s - /pattern || echo "read" >>/bad
		echo >>/rounds
		usleep 300000
	done
) &
direct=$!
find_disk load
# Not at full speed: with two processors the emulation crashes the more, the more they leave for KVM.
begin_load "$found" 1 2 --rate_iops=30
expect "files are written" write_files 2
expect "the sign came" signed 2
end_load
touch /direct-enough
wait $direct
echo "guest: $(wc -l </rounds) rounds of direct I/O"
expect "direct I/O is right" [ ! -e /bad ]
expect "time never ran backwards ($backwards)" [ -z "$backwards" ]
sync
echo 3 >/proc/sys/vm/drop_caches
expect "the files read back" sh -c 'cd /mnt && sha256sum -c -s sums'
expect "unmounted" umount /mnt
expect "two processors" [ "$(grep -c ^processor /proc/cpuinfo)" = 2 ]
dmesg | tail -n 5
expect "no complaint in the log" sh -c '! dmesg | grep -iE "i/o error|ext4-fs error|hung task|soft lockup|rcu.*stall"'
