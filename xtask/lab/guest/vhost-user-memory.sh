# Memory comes and goes while one disk is written and read, and another one is read into the new memory.
. /cases/console.sh
. /cases/load.sh
. /cases/cached.sh
disk /dev/vda
disk /dev/vdb
mount_files /dev/vda
begin_load /dev/vdb

total() { awk '/MemTotal/ { print $2 }' /proc/meminfo; }
# KiB of memory in use that can be taken away.
used() {
	awk '/^Node/ { movable = ($4 == "Movable") } movable && $1 == "pages" { free = $3 }
		movable && $1 == "managed" { used += ($2 - free) * 4 } END { print used + 0 }' /proc/zoneinfo
}
# Waits until there is at least, or at most, so much memory in KiB.
memory() {
	waited=0
	until [ "$(total)" "$1" "$2" ]; do
		expect "memory is $1 $2 KiB, not $(total)" [ $waited -lt 300 ]
		usleep 100000
		waited=$((waited + 1))
	done
}

first=$(total)
echo "guest: ready for memory"
memory -ge $((first + 200000))
echo "guest: $first KiB before, $(total) KiB now"
fill
used=$(used)
echo "guest: KiB of new memory in use: $used"
expect "the files were read into it" [ "$used" -ge 16384 ]
expect "they are right there" files_are_right
fill -r
expect "they are right there once more" files_are_right
echo "guest: ready to give it back"
memory -le $((first + 1000))
expect "the files are right" files_are_right
host_says gone
fill
expect "the files are right in the memory of before" files_are_right
end_load
