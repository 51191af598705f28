# Makes a Debian system out of its packages: make.sh SUITE MIRROR FOLDER SIZE. In FOLDER are left: root.img, a file system of SIZE
# KiB at the offset of the disk's only partition, and GRUB's two images, boot.img and core.img. As root, or as what takes itself for it.
set -eu
suite=$1 mirror=$2 folder=$3 size=$4
here=$(dirname "$(readlink -f "$0")")
tree=$folder/tree

# Of a run that was ended; its files may belong to users that only exist here.
rm -rf "$tree"
mmdebstrap --quiet --mode=root --variant=minbase \
	--include=systemd-sysv,udev,fio,grub-pc-bin,initramfs-tools,linux-image-cloud-amd64 \
	--dpkgopt=path-exclude=/usr/share/man/* --dpkgopt=path-exclude=/usr/share/locale/* \
	--dpkgopt=path-exclude=/usr/share/doc/* \
	"$suite" "$tree" "$mirror"

chroot "$tree" grub-mkimage -O i386-pc -o /boot/core.img -p '(hd0,msdos1)/boot/grub' \
	biosdisk part_msdos ext2 normal linux serial terminal
mv "$tree/boot/core.img" "$tree/usr/lib/grub/i386-pc/boot.img" "$folder"
install -D -m 644 "$here/grub.cfg" "$tree/boot/grub/grub.cfg"
install -D "$here/run" "$tree/lab/run"
install -m 644 "$here/lab.service" "$tree/etc/systemd/system/lab.service"
echo "/dev/vda1 / ext4 errors=remount-ro 0 1" >"$tree/etc/fstab"
chroot "$tree" systemctl --quiet enable lab.service
# The console is the case's.
chroot "$tree" systemctl --quiet mask serial-getty@ttyS0.service
# Without one the first boot asks questions.
chroot "$tree" systemd-machine-id-setup >/dev/null 2>&1

truncate -s 0 "$folder/root.img"
mkfs.ext4 -q -F -b 4096 -m 0 -E offset=1048576,nodiscard,lazy_itable_init=1 -d "$tree" "$folder/root.img" "${size}k"
rm -r "$tree"
