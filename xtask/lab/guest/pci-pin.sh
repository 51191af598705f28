# Five disks on the PCI bus; the kernel was told to leave messages alone.
for name in a b c d e; do
	disk /dev/vd$name
done
expect "no messages" sh -c "! grep -q MSI /proc/interrupts"
grep -i virtio /proc/interrupts
expect "two disks share a line" grep -qE 'virtio[0-9]+, *virtio[0-9]+' /proc/interrupts

# All at once, so that lines are shared while they are up.
for name in b c d e; do
	(dd if=/dev/vda bs=64k count=32 iflag=direct | dd of=/dev/vd$name bs=64k oflag=direct iflag=fullblock) 2>/dev/null &
done
expect "the second half copied to the first" sh -c 'dd if=/dev/vda of=/half bs=64k skip=64 iflag=direct && dd if=/half of=/dev/vda bs=64k oflag=direct conv=notrunc'
wait
expect "it reads back" sh -c 'dd if=/dev/vda bs=64k count=64 iflag=direct | cmp - /half'
expect "no lost or stray interrupt in the log" sh -c '! dmesg | grep -iE "nobody cared|i/o error|hung task"'
