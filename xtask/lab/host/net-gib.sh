# What comes goes into a file: to sum it up here would take longer than to carry it.
. ./net.sh
tunctl -t tap0 >/dev/null
tap_up
lab-pump take 1001 >stream &
start_vmm
ping_guest
wait_for "ready to compare"
lab-pump send $theirs 2001 noise.img "$(cat times)"
wait_for_vmm
