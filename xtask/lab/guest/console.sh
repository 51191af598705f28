# What the host says on the console. Sourced by cases that wait for it.
host_says() {
	while read -r said; do
		[ "$said" = "$1" ] && return
	done
	expect "the host says $1" false
}
