# fio writes and verifies without a pause while the host does something; sourced behind sign.sh. Its program is on the
# disk with the serial number "fio".
find_disk fio
mkdir -p /fio
expect "the disk with fio is mounted" mount -t ext4 -o ro "$found" /fio

fio() {
	/fio/lib/ld-linux-x86-64.so.2 --library-path /fio/lib /fio/bin/fio --thread --ioengine=libaio --iodepth=4 \
		--direct=1 --bs=4k --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0 "$@"
}

# How many writes a disk has done.
writes() {
	awk '{ print $5 }' "/sys/block/${1##*/}/stat"
}

# Begins the load on a disk: so many jobs at once, each in its own mebibyte from an offset in mebibytes on. Each block is read
# back and compared once 32 of them were written, then written again. Further options go to fio.
begin_load() {
	load_disk=$1
	load_offset=$2
	load_jobs=$3
	shift 3
	before=$(writes "$load_disk")
	fio --name=load --filename="$load_disk" --offset="${load_offset}m" --offset_increment=1m --size=1m \
		--numjobs="$load_jobs" --rw=randwrite --verify_backlog=32 --loops=100000 --trigger-file=/enough "$@" \
		>/load.log 2>&1 &
	load=$!
	waited=0
	until [ "$(writes "$load_disk")" -gt $((before + 64)) ]; do
		expect "fio runs ($waited)" kill -0 $load
		[ $waited -lt 60 ] || { cat /load.log; end 1; }
		sleep 1
		waited=$((waited + 1))
	done
	echo "guest: fio writes to $load_disk"
}

# Ends it. Then all of it is written once more and read back as a whole.
end_load() {
	expect "fio still runs" kill -0 $load
	touch /enough
	wait $load
	fio_ended $? /load.log $load_jobs
	fio --name=whole --filename="$load_disk" --offset="${load_offset}m" --size="${load_jobs}m" --rw=randwrite >/whole.log 2>&1
	fio_ended $? /whole.log 1
}

# fio must have ended well, and have counted no error in any of its jobs.
fio_ended() {
	grep -E "err=|issued rwts|verify" "$2"
	[ "$1" = 0 ] || tail -n 40 "$2"
	expect "fio ended well" [ "$1" = 0 ]
	expect "$3 jobs without an error" [ "$(grep -c 'err= 0:' "$2")" = "$3" ]
	expect "fio complains of nothing" sh -c "! grep -E 'err=[ ]*[1-9-]|verify failed|bad header|bad magic' $2"
}
