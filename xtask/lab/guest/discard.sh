# A file system with free space to give back, and a raw disk with a hole to punch.
disk /dev/vda
disk /dev/vdb
expect "the disk takes discards" [ "$(cat /sys/block/vdb/queue/discard_max_bytes)" -gt 0 ]
mkdir -p /mnt
expect "mounted" mount -t ext4 -o rw /dev/vda /mnt
expect "the host's files are what the host wrote" sh -c 'cd /mnt && sha256sum -c -s data.sha256'
expect "a large file deleted" rm /mnt/large
sync
expect "free space given back" fstrim -v /mnt
echo 3 >/proc/sys/vm/drop_caches
expect "the files that stayed are unharmed" sh -c 'cd /mnt && sha256sum -c -s kept.sha256'
expect "unmounted" umount /mnt
expect "8 MiB in the middle discarded" blkdiscard -o 4194304 -l 8388608 /dev/vdb
expect "no I/O error in the log" sh -c '! dmesg | grep -iE "i/o error|ext4-fs error|hung task"'
