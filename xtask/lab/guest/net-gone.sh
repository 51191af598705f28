# The host's end goes while the guest runs: the link is down, and nothing else happens.
. /cases/net.sh
card_up
ping_host
expect "the link is up" [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]
echo "guest: ready to lose its link"
waited=0
while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ] && [ $waited -lt 300 ]; do
	usleep 100000
	waited=$((waited + 1))
done
expect "the link is down" [ "$(cat /sys/class/net/eth0/carrier)" = 0 ]
refuse "the host does not answer" ping -q -c 2 -W 1 $theirs >/dev/null 2>&1
expect "the card goes down" ip link set eth0 down
expect "and up" ip link set eth0 up
expect "the link stays down" [ "$(cat /sys/class/net/eth0/carrier)" = 0 ]
expect "no hung task" sh -c '! dmesg | grep -iE "hung task|netdev watchdog"'
