# --- instances of knockd and fwknopd ---
#
# Scripts of all formats have these functions, because a script of another format may have
# left daemons. daemon.sh says what an instance is, and lists the files in $daemons.

daemons=$state/daemon

# systemd_runs is true if systemd can start the daemons.
systemd_runs() { [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; }

# automatic is true if no administrator waits for an answer. At boot, the network may
# start only after the rules are loaded.
# shellcheck disable=SC2154 # main sets verb
automatic() { [ "$verb" = boot ] || [ "$verb" = watch ]; }

# daemon_runs INSTANCE is true if an instance runs. At boot, systemd may start it later.
daemon_runs() {
	if ! systemd_runs; then
		read -r daemon_process <"$daemons/$1/process" &&
			tr '\0' ' ' <"/proc/$daemon_process/cmdline" | grep -qF "$daemons/$1/"
	elif automatic; then
		[ "$(systemctl show -p LoadState --value "portknock-daemon-$1.service")" = loaded ]
	else
		systemctl -q is-active "portknock-daemon-$1.service"
	fi
} 2>/dev/null

# daemon_end INSTANCE ends an instance and removes its files. The TCP server of an fwknopd
# may outlive the fwknopd, but is in the same process group.
daemon_end() {
	if systemd_runs; then
		systemctl stop "portknock-daemon-$1.service" 2>/dev/null
	elif daemon_runs "$1"; then
		daemon_group=$(sed 's/.*) //' "/proc/$daemon_process/stat" | cut -d ' ' -f 3)
		for _ in 1 2 3 4 5 6 7 8 9 10; do
			kill "$daemon_process" 2>/dev/null
			sleep 0.2 2>/dev/null || sleep 1
			daemon_runs "$1" || break
		done
		kill -9 "-${daemon_group:?}" 2>/dev/null
	fi
	rm -rf "${daemons:?}/$1"
}

# daemons_end_left ID... ends the daemons of parts whose rules have no daemon any more. Such a
# daemon would still admit addresses.
daemons_end_left() {
	for part; do
		for instance in "$part.a" "$part.b" "$part.trial"; do
			[ ! -d "$daemons/$instance" ] || daemon_end "$instance"
		done
		rm -f "$daemons/$part.now"
	done
}
