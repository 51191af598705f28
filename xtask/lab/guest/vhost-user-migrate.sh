# Moves to another machine while one disk is written and read, and another one is read into memory again and again.
. /cases/console.sh
. /cases/load.sh
. /cases/cached.sh
disk /dev/vda
disk /dev/vdb
mount_files /dev/vda
begin_load /dev/vdb
(
	until [ -e /stop ]; do
		fill
		files_are_right || echo "files in memory" >>/bad
		fill -r
	done
) &
reading=$!
echo "guest: under load"
host_says fill
touch /stop
wait $reading
before=$(awk '{ print $3 }' /sys/block/vda/stat)
fill
after=$(awk '{ print $3 }' /sys/block/vda/stat)
reads=$(reads vda)
echo "guest: filled $(((after - before) / 2)) KiB"
host_says check
expect "the files in memory are right" files_are_right
expect "the disk was not asked for them ($reads reads before, $(reads vda) after)" [ "$(reads vda)" = "$reads" ]
fill
expect "the files on the disk are right" files_are_right
end_load
