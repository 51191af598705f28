#!/bin/busybox sh
# First process of the guest: runs /cases/<case>.sh, named by lab.case= on the kernel's command line, and ends the
# machine with its exit code. In a case, `expect WHAT COMMAND…` is a check and `end CODE` ends it early.
export PATH=/bin:/sbin
case=
for word in $(/bin/busybox cat /proc/cmdline); do
	case $word in lab.case=*) case=${word#lab.case=} ;; esac
done
if [ -w / ] && [ ! -e /bin/sh ]; then
	/bin/busybox --install -s /bin
fi

end() {
	cd /
	sync
	echo "guest: $case ends with $1 after $(cut -d' ' -f1 /proc/uptime) s"
	lab-exit "$1"
	reboot -f
	while :; do sleep 1; done
}

expect() {
	what=$1
	shift
	if "$@"; then
		echo "guest: ok: $what"
	else
		echo "guest: FAILED: $what: $*"
		dmesg | tail -n 20
		end 1
	fi
}

# The opposite: the command must fail.
refuse() {
	what=$1
	shift
	if "$@"; then
		echo "guest: FAILED: $what: succeeded: $*"
		end 1
	fi
	echo "guest: ok: $what"
}

# Waits for a disk to appear: drivers probe in the background.
disk() {
	waited=0
	while [ ! -b "$1" ] && [ $waited -lt 100 ]; do
		usleep 100000
		waited=$((waited + 1))
	done
	expect "$1 is there" [ -b "$1" ]
}

echo "guest: $case starts after $(cut -d' ' -f1 /proc/uptime) s"
. "/cases/$case.sh"
end 0
