# Files are written, and fio writes behind the file system, while the disk below moves from file to file.
. /cases/sign.sh
. /cases/fio.sh
find_disk files
files=$found
mkdir -p /mnt
expect "mounted" mount -t ext4 -o rw "$files" /mnt
begin_load "$files" 64 1
expect "files are written" write_files 2
expect "the sign came" signed 2
end_load
sync
echo 3 >/proc/sys/vm/drop_caches
expect "the files read back" sh -c 'cd /mnt && sha256sum -c -s sums'
expect "unmounted" umount /mnt
expect "no I/O error in the log" sh -c '! dmesg | grep -iE "i/o error|ext4-fs error|hung task"'
