# Two disks on the PCI bus, by the modern driver.
expect "the bus has a bridge and two disks" [ "$(ls /sys/bus/pci/devices | wc -l)" = 3 ]
disk /dev/vda
disk /dev/vdb
expect "the second disk is the other one" [ "$(cat /sys/block/vdb/serial)" = other ]
function=$(readlink -f /sys/block/vda/device/..)
place=$(basename "$function")
expect "the disk is a modern virtio function" [ "$(cat "$function"/vendor) $(cat "$function"/device)" = "0x1af4 0x1042" ]
expect "memory and bus master are on" [ $(($(od -An -tu1 -j4 -N1 "$function"/config) & 6)) = 6 ]
expect "two queues" [ "$(ls -d /sys/block/vda/mq/* | wc -l)" = 2 ]
expect "three vectors" [ "$(ls "$function"/msi_irqs | wc -l)" = 3 ]
expect "ECAM is used" sh -c "dmesg | grep -qiE 'mmconfig|ecam'"

copy() {
	dd if=/dev/vda of=/part bs=64k skip=$((960 + $1 * 16)) count=16 iflag=direct 2>/dev/null || return 1
	taskset -c $(($1 % 2)) dd if=/part of=/dev/vda bs=64k seek=$(($1 * 16)) oflag=direct conv=notrunc 2>/dev/null || return 1
	taskset -c $((($1 + 1) % 2)) dd if=/dev/vda bs=64k skip=$(($1 * 16)) count=16 iflag=direct 2>/dev/null | cmp - /part
}

expect "a piece copied" copy 0
expect "another piece copied" copy 1
for irq in $(ls "$function"/msi_irqs); do
	grep -E "^ *$irq:" /proc/interrupts
done
expect "messages arrived" sh -c "grep -E 'PCI-MSI' /proc/interrupts | grep -q 'req.0'"

echo "$place" >/sys/bus/pci/drivers/virtio-pci/unbind
expect "without its driver the disk is gone" [ ! -e /sys/block/vda ]
echo "$place" >/sys/bus/pci/drivers/virtio-pci/bind
disk /dev/vda
expect "a piece copied after the driver came back" copy 2

echo 1 >"$function"/remove
expect "unplugged by the guest, the disk is gone" [ ! -e /sys/block/vda ]
echo 1 >/sys/bus/pci/rescan
disk /dev/vda
expect "a piece copied after the disk was found again" copy 3
expect "no I/O error in the log" sh -c '! dmesg | grep -iE "i/o error|hung task|BAR.*(fail|no space)"'
