# Tells by the size of the disk with the serial number "sign" that the host has done something.
find_disk() {
	waited=0
	while :; do
		for folder in /sys/block/vd*; do
			if [ "$(cat "$folder/serial" 2>/dev/null)" = "$1" ]; then
				found=/dev/${folder##*/}
				echo "guest: $1 is $found"
				return
			fi
		done
		[ $waited -lt 100 ] || end 1
		usleep 100000
		waited=$((waited + 1))
	done
}

find_disk sign
sign=/sys/block/${found##*/}/size

# Has the host given that many MiB to it?
signed() {
	[ "$(cat "$sign")" -ge $(($1 * 2048)) ]
}

# Waits until it has.
wait_for_sign() {
	waited=0
	until signed "$1"; do
		[ $waited -lt 600 ] || end 1
		usleep 100000
		waited=$((waited + 1))
	done
}

# Writes files with their sums until the host gives the sign; `count` is how many, `backwards` where time ran backwards.
write_files() {
	count=0
	last=0
	backwards=
	until signed "$1" || [ $count -ge 200 ]; do
		now=$(cut -d' ' -f1 /proc/uptime | tr -d .)
		[ "$now" -ge "$last" ] || backwards="$backwards $last-$now"
		last=$now
		seq $count $((count + 6000)) >/mnt/file-$count || return 1
		(cd /mnt && sha256sum file-$count >>sums) || return 1
		sync
		count=$((count + 1))
		[ $count != 4 ] || echo "guest: under load"
	done
	echo "guest: $count files"
}
