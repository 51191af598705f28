# fio writes and verifies while its disk gets stuck, the machine is saved so, and goes on elsewhere with a disk that works.
. /cases/sign.sh
. /cases/fio.sh
. /cases/poweroff.sh
find_disk load
begin_load "$found" 1 1
wait_for_sign 2
expect "the driver said so" sh -c 'dmesg | grep -q "new size: 4096"'
end_load
expect "no complaint in the log" sh -c '! dmesg | grep -iE "i/o error|hung task|soft lockup|rcu.*stall"'
