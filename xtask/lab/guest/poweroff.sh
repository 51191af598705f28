# For a guest that goes on in another process; sourced by the script of the case.
#
# Switches off at the end, as the exit port is out of reach: KVM gives a busy task state segment back, as processors have it, and the
# QEMU of the lab grants ports to programs only by one that is not busy.
end() {
	cd /
	sync
	echo "guest: $case ends with $1 after $(cut -d' ' -f1 /proc/uptime) s"
	[ "$1" != 0 ] || poweroff -f
	reboot -f
	while :; do sleep 1; done
}
