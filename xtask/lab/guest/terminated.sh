# Writes until the VMM is told to end.
. /cases/sign.sh
find_disk files
mkdir -p /mnt
expect "mounted" mount -t ext4 -o rw "$found" /mnt
write_files 2
