# A load on a disk that checks itself and never stops. Each place is written over and over, each time with something else, and
# compared at once: a write that is lost, or done once more after a newer one, is found. Sourced by cases.

# Waits with few requests: 256 KiB in four of them, at a mebibyte of its own; there are two contents in turn.
load_direct() {
	round=0
	until [ -e /enough ]; do
		load_pattern=/pattern-$((round % 2))
		dd if=$load_pattern of="$1" bs=64k seek=$(($2 * 16)) oflag=direct conv=notrunc 2>/dev/null || echo "write at $2" >>/bad
		dd if="$1" bs=64k skip=$(($2 * 16)) count=4 iflag=direct 2>/dev/null | cmp -s - $load_pattern || echo "read at $2" >>/bad
		round=$((round + 1))
	done
	echo $round >>/rounds
}

# Writes two mebibytes back from the page cache, many requests at once, and reads them around it.
load_cached() {
	round=0
	until [ -e /enough ]; do
		dd if=/dev/urandom of=/noise bs=64k count=32 2>/dev/null
		dd if=/noise of="$1" bs=64k seek=$(($2 * 16)) conv=notrunc,fsync 2>/dev/null || echo "write at $2" >>/bad
		dd if="$1" bs=64k skip=$(($2 * 16)) count=32 iflag=direct 2>/dev/null | cmp -s - /noise || echo "read at $2" >>/bad
		round=$((round + 1))
	done
	echo $round >>/rounds
}

# Begins it on a disk of 16 MiB.
begin_load() {
	load_disk=$1
	seq 1 60000 | head -c 262144 >/pattern-0
	seq 60001 120000 | head -c 262144 >/pattern-1
	loads=
	for place in 1 3 5 7; do
		load_direct "$load_disk" $place &
		loads="$loads $!"
	done
	load_cached "$load_disk" 9 &
	loads="$loads $!"
}

# Ends it. A completion that was lost leaves a process that waits for ever; one that came twice is in the log.
end_load() {
	touch /enough
	# shellcheck disable=SC2086
	wait $loads
	[ ! -e /bad ] || cat /bad
	expect "no write failed, and no read was wrong" [ ! -e /bad ]
	echo "guest: rounds of writes and reads: $(awk '{ n += $1 } END { print n }' /rounds)"
	expect "every writer wrote" [ "$(wc -l </rounds)" = 5 ]
	expect "nothing is in flight" [ "$(awk '{ print $1 + $2 }' "/sys/block/${load_disk##*/}/inflight")" = 0 ]
	expect "no complaint in the log" \
		sh -c '! dmesg | grep -iE "i/o error|is not a head|hung task|soft lockup|rcu.*stall|virtio.*(error|fail)"'
	echo "guest: the disk is $(dd if="$load_disk" bs=64k iflag=direct 2>/dev/null | sha256sum)"
}
