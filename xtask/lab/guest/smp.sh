# Two processors, two queues, both at work at once.
disk /dev/vda
expect "two processors" [ "$(nproc)" = 2 ]
expect "two queues" [ "$(ls -d /sys/block/vda/mq/* | wc -l)" = 2 ]

# The sum of one processor's interrupts from virtio devices.
interrupts() {
	awk -v column=$(($1 + 2)) '/virtio/ { n += $column } END { print n + 0 }' /proc/interrupts
}

# Work for one processor, in its own half of the disk.
work() {
	taskset -c "$1" dd if=/dev/urandom of=/half-$1 bs=64k count=64 2>/dev/null
	taskset -c "$1" dd if=/half-$1 of=/dev/vda bs=64k seek=$(($1 * 512)) oflag=direct conv=notrunc 2>/dev/null || return 1
	for _ in 1 2 3 4; do
		taskset -c "$1" dd if=/dev/vda bs=4k skip=$(($1 * 8192)) count=1024 iflag=direct 2>/dev/null | cmp - /half-$1 || return 1
	done
}

for irq in $(awk -F: '/virtio/ { print $1 + 0 }' /proc/interrupts); do
	for target in 0 1; do
		expect "interrupt $irq goes to processor $target" sh -c "echo $((target + 1)) >/proc/irq/$irq/smp_affinity"
		before=$(interrupts $target)
		work 0 &
		first=$!
		work 1 &
		second=$!
		expect "reads equal writes on queue 0" wait $first
		expect "reads equal writes on queue 1" wait $second
		after=$(interrupts $target)
		expect "processor $target took interrupts ($before to $after)" [ "$after" -gt "$before" ]
	done
done
grep -i virtio /proc/interrupts
expect "no I/O error in the log" sh -c '! dmesg | grep -iE "i/o error|hung task"'
