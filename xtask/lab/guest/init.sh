#!/bin/busybox sh
# /init of the guest's initial RAM disk: loads the kernel's drivers, then continues in the root file system named by
# root=, or stays in the RAM disk when there is none. Either way /sbin/init is lab/guest/main.sh.
/bin/busybox mkdir -p /proc /sys /dev /newroot
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
	/bin/busybox insmod "$module" || echo "guest: could not load $module"
done
root=
for word in $(/bin/busybox cat /proc/cmdline); do
	case $word in root=*) root=${word#root=} ;; esac
done
[ -z "$root" ] && exec /sbin/init

waited=0
while [ ! -b "$root" ] && [ $waited -lt 100 ]; do
	/bin/busybox usleep 100000
	waited=$((waited + 1))
done
if ! /bin/busybox mount -t ext4 -o rw "$root" /newroot; then
	echo "guest: could not mount $root"
	/bin/lab-exit 2
	/bin/busybox reboot -f
fi
for folder in proc sys dev; do
	/bin/busybox mount -o move /$folder /newroot/$folder
done
exec /bin/busybox switch_root /newroot /sbin/init
