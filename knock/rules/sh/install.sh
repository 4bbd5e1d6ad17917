# --- install ---
#
# The rules are loaded again after a reboot, after a flush by another program, and after a
# load that failed. A script that runs while its parent holds the lock has PORTKNOCK_LOCKED=1
# in its environment.
#
# A part is what one profile has in the firewall. ID names a part. Files of a part:
#   /etc/portknock/ID.sh       the installed script, with this part only
#   /etc/portknock/ID.proved   the installed script before that one, if its rules were loaded
#   $state/ID.sum      the loaded rules: script, hash without constant sets, hash of everything
#   $state/ID.loaded   the installed script whose rules were loaded last
#   $state/ID.seen     when the rules were last found in order, in seconds of the uptime
#   $state/ID.failing  what is in force because the installed rules cannot be loaded, and
#                      when that was logged
#   $state/ID.refreshed, ID.refresh_failed  when the last refresh worked, and when a failure
#                      was logged
#   $state/unloaded    the parts that the administrator has unloaded, one on a line

# These systemd units may flush rules that are not their own.
flushers='nftables netfilter-persistent iptables ip6tables firewalld'

# log_err TEXT logs one line at priority err. In a systemd service, stderr is the journal,
# which reads the priority from the start of the line. A line from logger could lose the
# name of the service there.
log_err() {
	if [ -n "${JOURNAL_STREAM-}" ] && [ "$(stat -Lc %d:%i /proc/self/fd/2)" = "$JOURNAL_STREAM" ]; then
		printf '<3>portknock: %s\n' "$1" >&2
		return
	fi
	# Without a syslog daemon, some versions of logger report no error.
	{ [ -S /dev/log ] && logger -p daemon.err -t portknock -- "$1" 2>/dev/null && [ ! -t 2 ]; } || warn "$1"
}

# uptime_now prints the seconds since the machine started. A step of the clock does not
# change them.
uptime_now() {
	read -r uptime_seconds _ </proc/uptime || return
	printf '%s\n' "${uptime_seconds%%.*}"
}

# read_file FILE prints the first line of a file, and nothing if there is no such file.
read_file() {
	[ ! -f "$1" ] || sed q "$1"
}

# write_file FILE MODE writes stdin to a file. After a crash, the file has either its old or
# its new content.
write_file() (
	umask 077
	cat >"$1.tmp" && chmod "$2" "$1.tmp" && write_out "$1.tmp" && mv -f "$1.tmp" "$1" && write_out "${1%/*}"
)

# write_out PATH waits until a file or a folder is on the disk. Some versions of sync take
# no operands, or ignore them.
write_out() {
	sync "$1" 2>/dev/null || sync
}

# ----- the checksum of the loaded rules

# hash_rules ID [-s] prints a hash of the rules in force, and nothing if there are none.
hash_rules() {
	hash_text=$(fw_listing "$@" 2>/dev/null)
	[ -z "$hash_text" ] || printf '%s\n' "$hash_text" | sha256sum | cut -c 1-64
}

# sum_write ID remembers the rules in force as the right ones. Call it after each load or
# keep.
sum_write() (
	umask 077
	short=$(hash_rules "$1" -s)
	# The rules are gone if another program has flushed them since the load. The old
	# checksum shows that then.
	[ -n "$short" ] || exit 1
	printf '%s\n%s\n%s\n' "$id" "$short" "$(hash_rules "$1")" >"$state/$1.sum.tmp" &&
		mv -f "$state/$1.sum.tmp" "$state/$1.sum" && uptime_now >"$state/$1.seen"
)

# sum_state ID [full] prints what the rules in force are: same, gone, changed, or unknown
# (without a checksum). With full, it compares the constant sets too, which takes longer.
sum_state() (
	line=2 option=-s
	[ "${2-}" != full ] || line=3 option=
	# shellcheck disable=SC2086 # an empty option is no operand
	now=$(hash_rules "$1" $option)
	if [ -z "$now" ]; then
		echo gone
	elif [ ! -f "$state/$1.sum" ]; then
		echo unknown
	elif [ "$now" = "$(sed -n "${line}p" "$state/$1.sum")" ]; then
		echo same
	else
		echo changed
	fi
)

# ----- parts that the administrator has unloaded

# unloaded ID is true if the administrator has unloaded the part. Only load, or a reboot,
# brings such a part back.
unloaded() {
	grep -qx "$1" "$state/unloaded" 2>/dev/null
}

# unloaded_add ID... is for the verb unload.
unloaded_add() {
	for unloaded_id; do
		unloaded "$unloaded_id" || printf '%s\n' "$unloaded_id" >>"$state/unloaded"
		rm -f "$state/$unloaded_id.sum" "$state/$unloaded_id.failing"
	done
}

# unloaded_del ID... is for the verbs load, keep and install.
unloaded_del() {
	for unloaded_id; do
		unloaded "$unloaded_id" || continue
		grep -vx "$unloaded_id" "$state/unloaded" >"$state/unloaded.tmp"
		mv -f "$state/unloaded.tmp" "$state/unloaded"
	done
}

# ----- load, or do what --on-failure says

# load_or_fall_back ID loads a part of the installed script. If that fails, it tries in
# turn: the rules loaded before are still in force; the installed script before this one;
# with --on-failure closed, a plain drop of the guarded ports. It returns 1 unless the
# installed rules are in force. The verb watch tries again each minute.
load_or_fall_back() {
	close_if_gone "$1"
	fall_last=$(time_unseen "$1")
	if fall_fault=$(fw_load "$1" 2>&1); then
		sum_write "$1"
		printf '%s\n' "$id" >"$state/$1.loaded"
		if [ -f "$state/$1.failing" ]; then
			rm -f "$state/$1.failing"
			log_err "profile $(value name "$1"): the installed rules are loaded again after $fall_last"
		fi
		return 0
	fi
	fall_fault=$(printf '%s\n' "$fall_fault" | sed q)
	fall_undo="to unload: sh /etc/portknock/$1.sh unload"
	fall_ports="ports $(value ports "$1")"
	if [ "$(sum_state "$1")" = same ]; then
		fall_now='the rules loaded before stay in force'
		# A fallback that was loaded earlier is what stays.
		[ ! -f "$state/$1.failing" ] || fall_now=$(sed -n 3p "$state/$1.failing")
	elif proved_valid "$1" && PORTKNOCK_LOCKED=1 sh "/etc/portknock/$1.proved" load >/dev/null 2>&1; then
		fall_now='the rules installed before these are in force'
	elif [ "$on_failure" != closed ]; then
		fall_now="$fall_ports are OPEN" fall_undo="to retry: sh /etc/portknock/$1.sh load"
	elif fw_close "$1"; then
		fall_now="$fall_ports are closed"
	else
		fall_now="$fall_ports cannot be closed and are OPEN" fall_undo="to retry: sh /etc/portknock/$1.sh load"
	fi
	fall_fault="profile $(value name "$1"): cannot load the installed rules (${fall_fault:-no reason})"
	log_now_and_then "$state/$1.failing" "$fall_fault: $fall_now; $fall_undo" "$fall_now"
	return 1
}

# gone ID is true if the firewall has no rules of the part. The plain drop of fw_close does
# not count.
gone() {
	! fw_parts 2>/dev/null | grep -qx "$1"
}

# close_if_gone ID closes the ports of a part that is gone, because loading its rules takes
# much longer. The load removes the plain drop again.
close_if_gone() {
	[ "$on_failure" != closed ] || ! gone "$1" || fw_close "$1" 2>/dev/null || :
}

# proved_valid ID is true if there is an older script whose rules have not expired.
proved_valid() (
	[ -s "/etc/portknock/$1.proved" ] || exit 1
	until=$(sed -n "s/^until_$1=\([0-9]*\)\$/\1/p" "/etc/portknock/$1.proved" | sed q)
	[ -z "$until" ] || [ "$until" -gt "$(date +%s)" ]
)

# log_now_and_then FILE TEXT [NOTE] logs a text, but the same text only once an hour. FILE
# keeps the time, the text and the note. log_now_and_then returns 1 if it has not logged.
log_now_and_then() {
	log_now=$(uptime_now)
	log_last=$(read_file "$1")
	if [ -n "$log_last" ] && [ $((log_now - log_last)) -lt 3600 ] && [ "$(sed -n 2p "$1")" = "$2" ]; then
		return 1
	fi
	printf '%s\n' "$log_now" "$2" "${3-}" >"$1"
	log_err "$2"
}

# ----- the verbs that the service manager calls

# not_ours ID is true if this script must not load the part: the administrator has unloaded
# it, or has installed another script while this one waited for the lock.
not_ours() {
	unloaded "$1" || [ "$(script_id "/etc/portknock/$1.sh")" != "$id" ]
}

# replaced ID is true if another script has loaded the part into the other firewall.
replaced() {
	case $(read_file "$state/$1.sum") in
	'' | "$id") return 1 ;;
	*) other_firewall_has "$1" ;;
	esac
}

# left_alone ID TRIAL is true if neither boot nor watch may load the part. TRIAL is not
# empty during a trial. A load would end the trial, so only a part that is gone is loaded
# then: a flush has removed the trial's rules as well.
left_alone() {
	not_ours "$1" || { replaced "$1" && gone "$1"; } || { [ -n "$2" ] && ! gone "$1"; }
}

# verb_boot loads the installed parts. The service calls it at the start of the machine, and
# so does each unit that flushes. With PORTKNOCK_CLOSE in the environment, it only closes
# the ports of parts that are gone.
verb_boot() {
	boot_status=0
	lock
	if [ -n "${PORTKNOCK_CLOSE-}" ]; then
		for boot_id in $profiles; do
			not_ours "$boot_id" || replaced "$boot_id" || close_if_gone "$boot_id"
		done
		unlock
		return
	fi
	boot_trial=$(fw_trial_left 2>/dev/null)
	for boot_id in $profiles; do
		left_alone "$boot_id" "$boot_trial" || load_or_fall_back "$boot_id" || boot_status=1
	done
	unlock
	return "$boot_status"
}

# verb_watch loads the installed parts that are gone or changed. It prints nothing if
# everything is in order.
verb_watch() {
	watch_status=0
	lock
	drop_ins_add
	watch_trial=$(fw_trial_left 2>/dev/null)
	for watch_id in $profiles; do
		left_alone "$watch_id" "$watch_trial" || watch_part "$watch_id" || watch_status=1
	done
	unlock
	# The lock is free while the command runs that makes new rules, so that a flush can
	# be repaired meanwhile.
	if [ -z "$watch_trial" ] && [ -n "$refresh" ]; then
		for watch_id in $profiles; do
			left_alone "$watch_id" '' || refresh_part "$watch_id" || watch_status=1
		done
	fi
	return "$watch_status"
}

# watch_part ID checks one part and repairs it.
watch_part() {
	watch_state=$(sum_state "$1")
	watch_time=$(time_unseen "$1")
	watch_loaded=$(read_file "$state/$1.loaded")
	watch_failing=
	[ ! -f "$state/$1.failing" ] || watch_failing=1
	if [ "$watch_state" = same ] && [ -z "$watch_failing" ] && [ "$watch_loaded" = "$id" ]; then
		uptime_now >"$state/$1.seen"
		return 0
	fi
	load_or_fall_back "$1" || return
	if [ "$watch_state" = same ] || [ -n "$watch_failing" ]; then
		return 0 # load_or_fall_back has logged what there is to say
	fi
	case $watch_state in
	gone) watch_state='the rules were gone' ;;
	changed) watch_state='the rules were changed' ;;
	*) watch_state='the checksum of the rules was gone' ;;
	esac
	log_err "profile $(value name "$1"): $watch_state; loaded again; ports $(value ports "$1") open for $watch_time"
}

# time_unseen ID prints how long ago the part was last found in order.
time_unseen() (
	last=$(read_file "$state/$1.seen")
	if [ -n "$last" ]; then echo "at most $(($(uptime_now) - last)) s"; else echo 'an unknown time'; fi
)

# refresh_part ID makes a new script when the old one is due, and loads it. If that fails,
# the old one stays.
refresh_part() (
	now=$(date +%s)
	last=$(read_file "$state/$1.refreshed")
	until=$(value until "$1")
	slack=30 # half the interval of the timer, so that a timer that is early does not skip a refresh
	[ "$every" -ge 60 ] || slack=$((every / 2))
	# A clock that went back, or a reboot, makes a refresh due too: the rules may begin
	# later than now.
	if [ -n "$last" ] && [ "$now" -ge "$last" ] && [ $((now - last)) -lt $((every - slack)) ] &&
		{ [ -z "$until" ] || [ $((until - now)) -ge "$every" ]; }; then
		exit 0
	fi
	umask 077
	new=/etc/portknock/$1.refresh
	if ! fault=$({ limit_time sh -c "$refresh" >"$new"; } 2>&1); then
		fault="the command has failed: $(printf '%s\n' "$fault" | sed q)"
	elif [ "$(script_id "$new")" = "$id" ] && part_complete "$new" "$1"; then
		fault='' # the rules are the same
	else
		lock
		if [ "$(script_id "/etc/portknock/$1.sh")" != "$id" ]; then
			unlock # somebody has installed another script in the meantime
			rm -f "$new"
			exit 0
		fi
		if fault=$(put_part "$new" "$1" 2>&1); then
			unlock
			fault=
			sh "/etc/portknock/$1.sh" boot || fault='the new rules cannot be loaded'
		else
			unlock
			fault="cannot write /etc/portknock/$1.sh: $(printf '%s\n' "$fault" | sed q)"
		fi
	fi
	rm -f "$new"
	if [ -z "$fault" ]; then
		printf '%s\n' "$now" >"$state/$1.refreshed"
		rm -f "$state/$1.refresh_failed"
		exit 0
	fi
	fault="cannot refresh the rules: $fault; the old ones stay${until:+ until $(show_time "$until")}"
	# Only a failure that is logged is an error to the service manager, which would log
	# it each minute.
	! log_now_and_then "$state/$1.refresh_failed" "profile $(value name "$1"): $fault"
)

# limit_time COMMAND... ends a command that takes too long, where timeout is known.
limit_time() {
	if command -v timeout >/dev/null; then timeout 60 "$@"; else "$@"; fi
}

# show_time SECONDS prints a time in UTC. busybox needs another form of the operand on some
# systems.
show_time() {
	TZ=UTC0 date -d "@$1" '+%Y-%m-%d %H:%M:%S UTC' 2>/dev/null || printf '%s\n' "$1"
}

# ----- install and uninstall

# script_id FILE prints the ID of all rules in a script.
script_id() {
	[ ! -f "$1" ] || sed -n '/^id=[0-9a-f]*$/{ s/^id=//p; q; }' "$1"
}

# same_firewall FILE is true unless one of an installed script and this one loads rules with
# iptables, and the other one with nft.
same_firewall() {
	[ ! -f "$1" ] || case $format in
	iptables) grep -qx 'format=iptables' "$1" ;;
	*) ! grep -qx 'format=iptables' "$1" ;;
	esac
}

# part_complete FILE ID is true if a script holds the part and is not cut off.
part_complete() {
	# shellcheck disable=SC2016 # this is the last line of a script, as it stands there
	[ "$(tail -n 1 "$1" 2>/dev/null)" = 'main "$@"' ] && grep -qx "#> $2" "$1" && sh -n "$1" 2>/dev/null
}

# put_part FILE ID installs one part of a script, without the other parts.
put_part() (
	umask 077
	mkdir -p /etc/portknock && chmod 0700 /etc/portknock || exit
	if ! part_complete "$1" "$2"; then
		warn "$1: the script is incomplete, or has no profile $2"
		exit 1
	fi
	old=/etc/portknock/$2.sh
	old_id=$(script_id "$old")
	loaded_id=$(read_file "$state/$2.loaded")
	if ! same_firewall "$old"; then
		rm -f "/etc/portknock/$2.proved" # a load of these rules would not replace the new ones
	elif [ -n "$old_id" ] && [ "$old_id" = "$loaded_id" ] && [ "$old_id" != "$(script_id "$1")" ]; then
		write_file "/etc/portknock/$2.proved" 0600 <"$old" || exit
	fi
	awk -v id="$2" '
		/^#< / { other = $2 != id }
		!other
		/^#> / { other = 0 }
	' "$1" >"/etc/portknock/$2.new" && part_complete "/etc/portknock/$2.new" "$2" &&
		write_file "$old" 0600 <"/etc/portknock/$2.new" && rm -f "/etc/portknock/$2.new"
)

# install_parts ID... installs parts of this script whose rules are in force, and what loads
# them again.
install_parts() {
	for install_id; do
		if ! put_part "$0" "$install_id"; then
			warn "cannot write /etc/portknock/$install_id.sh"
			return 1
		fi
		printf '%s\n' "$id" >"$state/$install_id.loaded"
		rm -f "$state/$install_id.failing" "$state/$install_id.refreshed"
		sum_write "$install_id"
	done
	unloaded_del "$@"
	service_install
}

# uninstall_parts ID... removes installed parts. It leaves their rules in force.
uninstall_parts() {
	for install_id; do rm -f "/etc/portknock/$install_id".* "$state/$install_id".*; done
	unloaded_del "$@"
	if parts_installed; then
		service_install
		return
	fi
	service_uninstall
	rm -f /etc/portknock/each /etc/portknock/each.tmp
	rmdir /etc/portknock 2>/dev/null || [ ! -d /etc/portknock ] ||
		warn "/etc/portknock has files that portknock did not write; remove them yourself"
}

# parts_installed is true if any part is installed.
parts_installed() {
	for parts_file in /etc/portknock/*.sh; do
		[ ! -f "$parts_file" ] || return 0
	done
	return 1
}

# installed_formats prints the formats of all installed parts.
installed_formats() {
	sed -n 's/^format=\([a-z]*\)$/\1/p' /etc/portknock/*.sh | sort -u
}

# watch_interval prints the seconds between two runs of watch: 60, or fewer if a refresh is
# due more often.
watch_interval() {
	sed -n 's/^every=\([0-9][0-9]*\)$/\1/p' /etc/portknock/*.sh | sort -n | sed q | {
		read -r interval || interval=60
		[ "$interval" -lt 60 ] || interval=60
		[ "$interval" -gt 0 ] || interval=1
		printf '%s\n' "$interval"
	}
}

# service_install makes the machine call boot at its start and watch each minute.
service_install() {
	write_file /etc/portknock/each 0600 <<-'END' || return
		# This runs a verb of all installed portknock scripts: boot or watch. It exits with the worst status.
		PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
		export PATH
		worst=0
		if [ "$1" = boot ]; then # first close all ports, which takes less time than to load rules
		    for script in /etc/portknock/*.sh; do
		        [ ! -f "$script" ] || PORTKNOCK_CLOSE=1 sh "$script" boot
		    done
		fi
		for script in /etc/portknock/*.sh; do
		    [ -f "$script" ] || continue
		    sh "$script" "$1"
		    status=$?
		    [ "$status" -le "$worst" ] || worst=$status
		done
		exit "$worst"
	END
	if [ -d /run/systemd/system ]; then
		systemd_install
	elif command -v rc-update >/dev/null && [ -d /etc/init.d ]; then
		openrc_install
	else
		cron_install boot
	fi
}

# service_uninstall removes everything that service_install wrote.
service_uninstall() {
	if [ -d /run/systemd/system ]; then
		systemctl -q disable --now portknock-watch.timer portknock.service 2>/dev/null
	elif command -v rc-update >/dev/null; then
		rc-update -q del portknock default 2>/dev/null
	fi
	rm -f /etc/systemd/system/portknock.service /etc/systemd/system/portknock-watch.service \
		/etc/systemd/system/portknock-watch.timer /etc/init.d/portknock /etc/cron.d/portknock
	for flusher in $flushers; do
		rm -f "/etc/systemd/system/$flusher.service.d/portknock.conf"
		rmdir "/etc/systemd/system/$flusher.service.d" 2>/dev/null
	done
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
		systemctl reset-failed portknock.service portknock-watch.service 2>/dev/null
	fi
	crontab_edit
	return 0
}

# ----- systemd

# systemd_install writes the units, and starts them to see whether they work.
systemd_install() {
	systemd_units || return
	for flusher in $flushers; do
		drop_in "$flusher" || return
	done
	systemctl daemon-reload && systemctl -q enable portknock.service portknock-watch.timer || return
	unlock # the services need the lock
	systemd_status=0
	systemctl restart portknock.service || systemd_status=1
	systemctl restart portknock-watch.timer && systemctl start portknock-watch.service || systemd_status=1
	lock
	[ "$systemd_status" = 0 ] ||
		warn "a unit does not work; see: journalctl -b -u portknock.service -u portknock-watch.service"
	return "$systemd_status"
}

# unit_file NAME prints the file of a systemd service, and nothing if systemd does not have the
# service, or if it is masked or an alias.
unit_file() (
	for folder in /etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system /usr/lib/systemd/system \
		/lib/systemd/system; do
		file=$folder/$1.service
		[ -e "$file" ] || [ -L "$file" ] || continue
		[ -f "$file" ] || exit 0
		[ ! -L "$file" ] || case $(readlink "$file") in "$1.service" | */"$1.service") ;; *) exit 0 ;; esac
		printf '%s\n' "$file"
		exit
	done
)

# drop_in NAME makes a service that flushes load the rules again. systemd runs the commands
# of a drop-in after those of the unit. A minus sign keeps our failure from becoming the
# service's. Only a unit that can reload gets ExecReload, because that setting would make
# any unit reloadable.
drop_in() (
	file=$(unit_file "$1")
	[ -n "$file" ] || exit 0
	command='/bin/sh /etc/portknock/each boot'
	mkdir -p "/etc/systemd/system/$1.service.d" || exit
	{
		echo "# portknock: $1 flushes all rules or some, and these commands load portknock's again."
		echo '[Service]'
		# firewalld counts as started, and as reloaded, before it flushes. It
		# answers only after that.
		[ "$1" != firewalld ] || echo 'ExecStartPost=-/bin/sh -c "firewall-cmd --state"'
		echo "ExecStartPost=-$command"
		if grep -q '^ExecReload=.' "$file"; then
			[ "$1" != firewalld ] || echo 'ExecReload=-/bin/sh -c "firewall-cmd --state"'
			echo "ExecReload=-$command"
		fi
		echo "ExecStopPost=-$command"
	} | write_file "/etc/systemd/system/$1.service.d/portknock.conf" 0644
)

# drop_ins_add writes the drop-ins for services that were installed after portknock.
drop_ins_add() {
	[ -f /etc/systemd/system/portknock.service ] || return 0
	drop_ins_new=
	for flusher in $flushers; do
		[ ! -f "/etc/systemd/system/$flusher.service.d/portknock.conf" ] || continue
		[ -n "$(unit_file "$flusher")" ] || continue
		! drop_in "$flusher" || drop_ins_new=1
	done
	[ -z "$drop_ins_new" ] || systemctl daemon-reload
}

# early_flushers prints the flushers that start before sockets.target. portknock.service may
# wait for these only: it starts before ssh.socket, so an order after any other service
# would be a cycle. The drop-ins cover the others.
early_flushers() (
	for flusher in $flushers; do
		file=$(unit_file "$flusher")
		if [ -n "$file" ] && grep -q '^DefaultDependencies=\(no\|false\|off\|0\)' "$file"; then
			printf ' %s.service' "$flusher"
		fi
	done
)

# systemd_units writes the service for the start, and the timer and the service for the
# watchdog.
#
# portknock.service has no default dependencies, because it starts before them. It has no
# ExecStop: a stop leaves the rules in force. The journal of the watchdog, which runs each
# minute, has no lines about its starts: they have priority info.
systemd_units() {
	systemd_formats=" $(installed_formats | tr '\n' ' ')"
	systemd_modules='' systemd_calls=''
	if [ "$systemd_formats" != ' nftables ' ]; then # iptables loads kernel modules itself
		systemd_modules=' CAP_SYS_MODULE' systemd_calls=' @module'
	fi
	write_file /etc/systemd/system/portknock.service 0644 <<-END || return
		[Unit]
		Description=Port knocking rules
		DefaultDependencies=no
		ConditionPathExistsGlob=/etc/portknock/*.sh
		RequiresMountsFor=/etc/portknock
		After=local-fs.target$(early_flushers)
		Wants=network-pre.target
		Before=network-pre.target ssh.service sshd.service ssh.socket sshd.socket
		Before=shutdown.target
		Conflicts=shutdown.target
		StartLimitIntervalSec=0

		[Service]
		Type=oneshot
		RemainAfterExit=yes
		ExecStart=/bin/sh /etc/portknock/each boot
		ExecReload=/bin/sh /etc/portknock/each boot
		SyslogIdentifier=portknock
		$(systemd_sandbox)

		[Install]
		WantedBy=multi-user.target
	END
	write_file /etc/systemd/system/portknock-watch.service 0644 <<-END || return
		[Unit]
		Description=Watchdog of the port knocking rules
		ConditionPathExistsGlob=/etc/portknock/*.sh
		After=portknock.service
		StartLimitIntervalSec=0

		[Service]
		Type=oneshot
		ExecStart=/bin/sh /etc/portknock/each watch
		SyslogIdentifier=portknock
		SyslogLevel=notice
		LogLevelMax=notice
		$(systemd_sandbox)
	END
	write_file /etc/systemd/system/portknock-watch.timer 0644 <<-END
		[Unit]
		Description=Watchdog of the port knocking rules

		[Timer]
		OnBootSec=5s
		OnUnitActiveSec=$(watch_interval)s
		OnClockChange=yes
		AccuracySec=1s

		[Install]
		WantedBy=timers.target
	END
}

# systemd_sandbox prints settings that limit what a service may do. None of them makes a
# mount namespace: at an early moment of the boot, systemd cannot always make one, and the
# service would fail.
systemd_sandbox() {
	cat <<-END
		TimeoutStartSec=3min
		UMask=0077
		CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW$systemd_modules
		NoNewPrivileges=yes
		LockPersonality=yes
		MemoryDenyWriteExecute=yes
		RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6
		RestrictRealtime=yes
		RestrictSUIDSGID=yes
		SystemCallArchitectures=native
		SystemCallFilter=@system-service$systemd_calls
	END
}

# ----- other service managers

# openrc_install writes a service for the start. It is in the runlevel default, because an
# order counts only within a runlevel, and sshd and most firewalls are in that one.
openrc_install() {
	write_file /etc/init.d/portknock 0755 <<-'END' || return
		#!/sbin/openrc-run
		description="Port knocking rules"
		extra_started_commands="reload"

		depend() {
		    need localmount
		    after nftables iptables ip6tables
		    before net sshd
		}

		start() {
		    ebegin "Loading port knocking rules"
		    sh /etc/portknock/each boot
		    eend $?
		}

		reload() {
		    start
		}

		stop() {
		    return 0 # the rules stay in force
		}
	END
	rc-update -q add portknock default && cron_install || return
	unlock # the service needs the lock
	rc-service -q portknock restart
	openrc_status=$?
	lock
	return "$openrc_status"
}

# cron_install [boot] makes cron run watch each minute. With boot, cron also loads the rules
# at the start.
cron_install() {
	cron_watch='* * * * *' cron_command='/bin/sh /etc/portknock/each'
	if ! cron_runs; then
		warn "found neither systemd nor a running cron"
		warn "before the network starts, run: $cron_command boot"
		warn "each minute, run: $cron_command watch"
		return 1
	elif [ -d /etc/cron.d ] && [ ! -d /etc/crontabs ]; then # busybox has /etc/crontabs and reads no /etc/cron.d
		{
			echo '# portknock: loads its rules again if they are gone'
			[ -z "${1-}" ] || echo "@reboot root $cron_command boot"
			echo "$cron_watch root $cron_command watch"
		} | write_file /etc/cron.d/portknock 0644 || return
	elif ! crontab_edit ${1:+"@reboot $cron_command boot"} "$cron_watch $cron_command watch"; then
		warn "cannot change the crontab of root"
		return 1
	fi
	[ "$(watch_interval)" -ge 60 ] || warn "cron runs the refresh once a minute only"
	[ -n "${1-}" ] || return 0
	warn "cron may load the rules after the network; to load them before, run: $cron_command boot"
	[ ! -d /etc/crontabs ] # the cron of busybox may not know @reboot
}

# cron_runs is true if there is a process of a cron. A folder for it may be there without
# one.
cron_runs() {
	cat /proc/[0-9]*/comm 2>/dev/null | grep -qx -e cron -e crond -e fcron -e dcron
}

# crontab_edit LINE... replaces portknock's lines in the crontab of root.
crontab_edit() (
	command -v crontab >/dev/null || exit 1
	old=$(crontab -l 2>&1) || case $old in
	*'no crontab'* | *"can't open"*) old='' ;; # root has none yet
	*) exit 1 ;;
	esac
	new=$(
		printf '%s\n' "$old" | grep -v ' /bin/sh /etc/portknock/each '
		[ $# = 0 ] || printf '%s\n' "$@"
	)
	[ "$new" = "$old" ] || printf '%s\n' "$new" | crontab -
)

# ----- status

# installed_state ID prints lines for the verb status, each a word and a value:
#   installed yes|no       other: another script is installed for the profile
#   service active|inactive|failed|none
#   enabled yes|no
#   watchdog active|inactive|missing
#   watchdog_last SECONDS  when watch last found the rules in order, since 1970
#   failing TEXT           only if the installed rules cannot be loaded: what is in force instead
installed_state() (
	installed=no service=none enabled=no watchdog=missing
	if [ -f "/etc/portknock/$1.sh" ]; then
		installed=other
		[ "$(script_id "/etc/portknock/$1.sh")" != "$id" ] || installed=yes
	fi
	if [ -f /etc/systemd/system/portknock.service ]; then
		service=$(systemctl is-active portknock.service)
		! systemctl -q is-enabled portknock.service portknock-watch.timer 2>/dev/null || enabled=yes
		watchdog=inactive
		[ "$(systemctl is-active portknock-watch.timer)" != active ] || watchdog=active
	elif [ -f /etc/init.d/portknock ] && command -v rc-service >/dev/null; then
		service=inactive
		! rc-service -q portknock status >/dev/null 2>&1 || service=active
		! rc-update show default 2>/dev/null | grep -qw portknock || enabled=yes
	elif [ -f /etc/cron.d/portknock ]; then
		enabled=yes
	fi
	seen=$(read_file "$state/$1.seen")
	if [ "$watchdog" = missing ] &&
		{ [ -f /etc/cron.d/portknock ] || crontab -l 2>/dev/null | grep -q '/etc/portknock/each watch'; }; then
		watchdog=inactive
		[ -z "$seen" ] || [ $(($(uptime_now) - seen)) -gt 150 ] || watchdog=active
	fi
	printf 'installed %s\nservice %s\nenabled %s\nwatchdog %s\n' "$installed" "$service" "$enabled" "$watchdog"
	[ -z "$seen" ] || printf 'watchdog_last %s\n' $(($(date +%s) - $(uptime_now) + seen))
	[ ! -f "$state/$1.failing" ] || printf 'failing %s\n' "$(sed -n 2p "$state/$1.failing")"
)
