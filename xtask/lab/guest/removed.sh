# What is below a disk and a network card is taken away, and comes back: errors and no link meanwhile, and the same devices for the
# guest.
. /cases/sign.sh
find_disk plain
plain=$found
size=$(cat "/sys/block/${plain##*/}/size")
seq 1 20000 | head -c 65536 >/pattern
seq 20001 40000 | head -c 65536 >/second
write() { dd if="$1" of="$plain" bs=4k seek="$2" oflag=direct conv=notrunc 2>/dev/null; }
read_back() { dd if="$plain" bs=4k skip="$2" count=16 iflag=direct 2>/dev/null | cmp -s - "$1"; }

# Waits for the link of the card to be up (1) or down (0).
carrier() {
	waited=0
	until [ "$(cat /sys/class/net/eth0/carrier)" = "$1" ]; do
		[ $waited -lt 100 ] || return 1
		usleep 100000
		waited=$((waited + 1))
	done
}

expect "written" write /pattern 0
expect "read back" read_back /pattern 0
expect "the card is up" ip link set eth0 up
expect "the link is up" carrier 1
echo "guest: the devices work"
wait_for_sign 2
refuse "a write without a back-end" write /second 32
refuse "a read without a back-end" read_back /pattern 0
expect "the log has I/O errors" sh -c 'dmesg | grep -iq "i/o error"'
expect "the size stays" [ "$(cat "/sys/block/${plain##*/}/size")" = "$size" ]
expect "the link is down" carrier 0
echo "guest: the devices are without what was below"
wait_for_sign 3
expect "what was there is there again" read_back /pattern 0
expect "written" write /second 16
expect "read back" read_back /second 16
expect "the link is up again" carrier 1
