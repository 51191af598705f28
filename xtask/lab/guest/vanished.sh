# Two disks fail under the guest: it gets errors, and all else goes on.
. /cases/sign.sh
find_disk failing
failing=$found
find_disk gone
gone=$found
seq 1 20000 | head -c 65536 >/pattern
write() { dd if=/pattern of="$1" bs=4k oflag=direct conv=notrunc 2>/dev/null; }
read_back() { dd if="$1" bs=4k count=16 iflag=direct 2>/dev/null | cmp -s - /pattern; }
expect "written" write "$failing"
expect "written" write "$gone"
expect "read back" read_back "$failing"
expect "read back" read_back "$gone"
echo "guest: both disks work"
wait_for_sign 2
refuse "a write to a disk that fails" write "$failing"
refuse "a read from a disk that fails" read_back "$failing"
refuse "a read from a file that was cut off" read_back "$gone"
expect "the log has I/O errors" sh -c 'dmesg | grep -iq "i/o error"'
echo "guest: one disk is lost"
wait_for_sign 3
write "$failing" &
stuck=$!
usleep 500000
expect "the rest of the machine works" [ "$(seq 1 100 | wc -l)" = 100 ]
echo "guest: stuck"
expect "what was stuck is done once it is let go" wait $stuck
expect "the disk works again" read_back "$failing"
