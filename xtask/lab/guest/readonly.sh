# A disk whose back-end is read-only.
disk /dev/vda
expect "the disk says read-only" [ "$(cat /sys/block/vda/ro)" = 1 ]
mkdir -p /mnt
expect "mounted read-only" mount -t ext4 -o ro /dev/vda /mnt
expect "the host's files are what the host wrote" sh -c 'cd /mnt && sha256sum -c -s data.sha256'
refuse "no file can be made" sh -c ': >/mnt/new' 2>/dev/null
refuse "no remount for writing" mount -o remount,rw /mnt 2>/dev/null
expect "unmounted" umount /mnt
refuse "no raw write" dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null
refuse "no raw write past a cleared flag" sh -c 'blockdev --setrw /dev/vda && dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct' 2>/dev/null
