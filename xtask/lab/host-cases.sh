#!/bin/busybox sh
# Runs in the lab machine: every case named in /lab/order, as many at once as /lab/jobs says. Tells the outer machine how
# far it is by lines that start with @lab; leaves all else in the case's own folder.
claims=$(mktemp -d)

# Runs the cases that nobody else has begun.
work_off() {
	while read -r case limit <&3; do
		mkdir "$claims/$case" 2>/dev/null || continue
		cd "/lab/cases/$case" || exit 1
		echo "@lab begin $case"
		stat -c '%n %s %b' ./*.img >before.txt 2>/dev/null
		timeout -s KILL "$limit" sh ./run.sh </dev/null >console.log 2>errors.log 3<&-
		echo $? >code
		sync
		stat -c '%n %s %b' ./*.img >after.txt 2>/dev/null
		echo "@lab end $case $(cat code)"
	done 3</lab/order
}

workers=
job=0
while [ $job -lt "$(cat /lab/jobs)" ]; do
	work_off &
	workers="$workers $!"
	job=$((job + 1))
done
# shellcheck disable=SC2086
wait $workers
exit 0
