# The disk grows from 64 to 128 MiB while it is mounted.
disk /dev/vda
mkdir -p /mnt
expect "mounted" mount -t ext4 -o rw /dev/vda /mnt
expect "64 MiB at first" [ "$(cat /sys/block/vda/size)" = 131072 ]
echo "guest: ready to be resized"
waited=0
while [ "$(cat /sys/block/vda/size)" = 131072 ] && [ $waited -lt 300 ]; do
	echo "still here" >>/mnt/log
	usleep 100000
	waited=$((waited + 1))
done
expect "128 MiB now" [ "$(cat /sys/block/vda/size)" = 262144 ]
expect "the driver said so" sh -c 'dmesg | grep -q "new size: 262144"'
seq 1 100000 | head -c 524288 >/tmp.seq
expect "the new space takes writes" dd if=/tmp.seq of=/dev/vda bs=64k seek=1600 conv=notrunc,fsync
expect "the old space still does" sh -c 'cp /tmp.seq /mnt/seq && sync'
expect "unmounted" umount /mnt
