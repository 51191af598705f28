# Files of a disk in memory. Who reads them changes no byte: each was written by the disk. Sourced by cases.
mount_files() {
	mkdir -p /mnt
	expect "mounted" mount -t ext4 -o ro "$1" /mnt
}

# Reads all of them anew, one way round or the other.
fill() {
	echo 3 >/proc/sys/vm/drop_caches
	# shellcheck disable=SC2046
	cat /mnt/data.sha256 $(ls "$@" /mnt/data/*) >/dev/null
}

# Whether they are in memory as they should be.
files_are_right() {
	(cd /mnt && sha256sum -c -s data.sha256)
}

# How often a disk was read.
reads() {
	awk '{ print $1 }' "/sys/block/$1/stat"
}
