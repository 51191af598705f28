# The root file system, made on the host, is the disk under test.
expect "root is ext4 on /dev/vda" grep -q '^/dev/vda / ext4 rw' /proc/mounts
cd / || end 1
expect "the host's files are what the host wrote" sha256sum -c -s /data.sha256
mkdir /out
n=0
while [ $n -lt 40 ]; do
	seq $n $((n + n * 20)) >/out/seq-$n
	n=$((n + 1))
done
expect "8 MiB written" dd if=/dev/urandom of=/out/random bs=64k count=128 conv=fsync
expect "4 MiB written around the page cache" dd if=/out/random of=/out/direct bs=64k count=64 oflag=direct
expect "a file deleted" rm /data/file-000
mv /data/file-001 /out/moved
sha256sum /out/* >/out.sha256
sync
echo 3 >/proc/sys/vm/drop_caches
expect "the new files read back from the disk" sha256sum -c -s /out.sha256
expect "no I/O error in the log" sh -c '! dmesg | grep -iE "i/o error|ext4-fs error|hung task"'
expect "root turned read-only" mount -o remount,ro /
