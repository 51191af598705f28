# The daemon behind the disk is killed and started anew again and again.
. /cases/console.sh
. /cases/load.sh
disk /dev/vda
expect "two queues" [ "$(ls -d /sys/block/vda/mq/* | wc -l)" = 2 ]
begin_load /dev/vda
echo "guest: under load"
host_says enough
end_load
