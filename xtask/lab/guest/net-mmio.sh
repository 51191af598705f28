# A network card over virtio-mmio, and as much as the host wants both ways at once.
. /cases/net.sh
take 2001 &
taking=$!
card_up
ping_host ${lossy:+lossy}
before=$(now)
give 1001 "$(word lab.size)"
wait $taking
echo "guest: $(word lab.size) MiB both ways took $(since "$before") s"
cat /proc/net/dev
grep virtio /proc/interrupts
expect "no error in the log" sh -c '! dmesg | grep -iE "hung task|netdev watchdog|virtio_net.*(error|fail)"'
