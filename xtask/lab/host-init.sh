#!/bin/busybox sh
# /init of the lab machine, the host that runs our VMM. The kernel's messages go to the first serial port, the
# output of /lab/run.sh to the second; /lab is the work disk that the outer machine made and reads afterwards.
/bin/busybox --install -s /bin
export PATH=/lab/bin:/bin HOME=/lab LD_LIBRARY_PATH=/lab/lib
mkdir -p /proc /sys /dev /tmp /run /lab
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
ip link set lo up

give_up() {
	echo "lab: $*"
	lab-exit 17
	reboot -f
}

for module in /modules/*.ko; do
	insmod "$module" || give_up "could not load $module"
done
[ -c /dev/kvm ] || give_up "no /dev/kvm: the processor model shows no SVM"
mount -t ext4 -o noatime /dev/vda /lab || give_up "could not mount the work disk"
ln -s /lab/lib /lib64
cd /lab || give_up "no /lab"
# From here on, all that the kernel says is worth reading.
dmesg -n 7
ulimit -l unlimited

if grep -q lab.terminal=1 /proc/cmdline; then
	export TERM=linux
	# shellcheck disable=SC2016
	setsid sh -c 'exec sh /lab/run.sh <>/dev/ttyS1 >&0 2>&1'
else
	stty -F /dev/ttyS1 raw -echo
	sh /lab/run.sh </dev/null >/dev/ttyS1 2>&1
fi
echo $? >/lab/code
cd /
sync
umount /lab || mount -o remount,ro /lab
lab-exit 16
reboot -f
