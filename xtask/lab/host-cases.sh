#!/bin/busybox sh
# Runs in the lab machine: every case named in /lab/order, one after another. Tells the outer machine how far it is by
# lines that start with @lab; leaves all else in the case's own folder.
while read -r case limit; do
	cd "/lab/cases/$case" || exit 1
	echo "@lab begin $case"
	stat -c '%n %s %b' ./*.img >before.txt 2>/dev/null
	timeout -s KILL "$limit" sh ./run.sh </dev/null >console.log 2>errors.log
	echo $? >code
	sync
	stat -c '%n %s %b' ./*.img >after.txt 2>/dev/null
	echo "@lab end $case $(cat code)"
done </lab/order
exit 0
