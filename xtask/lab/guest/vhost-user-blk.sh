# A file system on one disk and a raw one beside it, two processors, two queues each.
disk /dev/vda
disk /dev/vdb
expect "two processors" [ "$(nproc)" = 2 ]
for name in vda vdb; do
	expect "two queues of $name" [ "$(ls -d /sys/block/$name/mq/* | wc -l)" = 2 ]
	expect "$name takes discards" [ "$(cat /sys/block/$name/queue/discard_max_bytes)" -gt 0 ]
	expect "$name takes write-zeroes" [ "$(cat /sys/block/$name/queue/write_zeroes_max_bytes)" -gt 0 ]
done
expect "vda has a cache to flush" [ "$(cat /sys/block/vda/queue/write_cache)" = "write back" ]
mkdir -p /mnt
expect "mounted" mount -t ext4 -o rw /dev/vda /mnt
expect "the host's files are what the host wrote" sh -c 'cd /mnt && sha256sum -c -s data.sha256'
mkdir /mnt/out
for processor in 0 1; do
	expect "4 MiB written around the page cache by processor $processor" \
		taskset -c $processor dd if=/dev/urandom of=/mnt/out/direct-$processor bs=64k count=64 oflag=direct
	expect "8 MiB written and flushed by processor $processor" \
		taskset -c $processor dd if=/dev/urandom of=/mnt/out/cached-$processor bs=64k count=128 conv=fsync
done
n=0
while [ $n -lt 40 ]; do
	seq $n $((n + n * 20)) >/mnt/out/seq-$n
	n=$((n + 1))
done
(cd /mnt && sha256sum out/* >out.sha256)
expect "a large file deleted" rm /mnt/large
sync
echo 3 >/proc/sys/vm/drop_caches
expect "the new files read back from the disk" sh -c 'cd /mnt && sha256sum -c -s out.sha256'
expect "free space given back" fstrim -v /mnt
echo 3 >/proc/sys/vm/drop_caches
expect "all files are unharmed" sh -c 'cd /mnt && sha256sum -c -s out.sha256 && sha256sum -c -s data.sha256'
expect "unmounted" umount /mnt
expect "8 MiB in the middle discarded" blkdiscard -o 4194304 -l 8388608 /dev/vdb
expect "16 MiB at first" [ "$(cat /sys/block/vdb/size)" = 32768 ]
echo "guest: ready to be resized"
waited=0
while [ "$(cat /sys/block/vdb/size)" = 32768 ] && [ $waited -lt 300 ]; do
	usleep 100000
	waited=$((waited + 1))
done
expect "32 MiB now" [ "$(cat /sys/block/vdb/size)" = 65536 ]
expect "the driver said so" sh -c 'dmesg | grep -q "new size: 65536"'
seq 1 100000 | head -c 524288 >/seq
expect "the new space takes writes" dd if=/seq of=/dev/vdb bs=64k seek=256 conv=notrunc,fsync
expect "no complaint in the log" sh -c '! dmesg | grep -iE "i/o error|ext4-fs error|is not a head|hung task"'
