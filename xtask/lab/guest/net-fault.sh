# Every twentieth frame or so that the guest sends is lost; TCP delivers all the same.
lossy=yes
. /cases/net-mmio.sh
grep -E '^Tcp' /proc/net/snmp
expect "frames were sent again" [ "$(awk '/^Tcp:/ { n = $13 } END { print n }' /proc/net/snmp)" -gt 0 ]
