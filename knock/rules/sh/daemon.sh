# --- knockd and fwknopd ---
#
# Each profile has a daemon of its own, which admits addresses to the profile's sets. No
# other knockd or fwknopd on this server is ended or changed, and neither are the files
# in /etc.
#
# A load starts the new daemon beside the old one, and ends the old one when the rules are
# loaded. A trial also starts a daemon beside the old one, for the sets of the copies. When
# the trial expires, the old rules are in force again and their daemon still runs. Only an
# fwknopd without packet capture needs systemd for that: see port_taken.
#
# An instance is one daemon: ID.a or ID.b for the rules in force, ID.trial for the copy.
# The files in $daemons:
#   INSTANCE/conf          knockd.conf or access.conf
#   INSTANCE/fwknopd.conf  for fwknopd only
#   INSTANCE/run           shell code that finds the interface and becomes the daemon
#   INSTANCE/process       process ID
#   ID.now                 instance of the rules in force
#   ID.next                instance of the rules that are about to be loaded
#   ID.digests             packets that the fwknopd of the profile has accepted

daemon=knockd
# shellcheck disable=SC2154 # the head of the script sets format and interface
[ "$format" = knockd ] || daemon=fwknopd

# interface_code prints shell code that sets "interface" to the interface of the default
# route, unless it is set.
interface_code() {
	cat <<-'END'
		for family in -4 -6; do
			[ -n "$interface" ] || interface=$(ip $family route show default 2>/dev/null |
				sed -n '/ dev lo /d; s/.* dev \([^ ]*\).*/\1/p' | sed q)
		done
	END
}

# daemon_can checks what a daemon needs on this server.
daemon_can() {
	command -v "$daemon" >/dev/null || {
		warn "$daemon is not installed"
		return 1
	}
	# shellcheck disable=SC2154 # the head of the script sets interface
	found=$(eval "$(interface_code)" && printf '%s' "$interface")
	[ -n "$found" ] || {
		warn "there is no default route, whose interface $daemon would use; emit the script with --interface NAME"
		return 1
	}
	ip link show dev "$found" >/dev/null 2>&1 || {
		warn "there is no interface $found; emit the script with --interface NAME"
		return 1
	}
}

# daemon_write INSTANCE FOLDER writes the files of an instance into a folder.
daemon_write() {
	mkdir -p "$2" || return
	case $1 in *.trial) daemon_copy=.trial ;; *) daemon_copy= ;; esac
	"daemon_${1%.*}" | sed "s/\.COPY/$daemon_copy/g" >"$2/conf" &&
		sed -n 's/^#; //p' "$2/conf" >"$2/fwknopd.conf" && daemon_code "$1" >"$2/run"
}

# daemon_code INSTANCE prints the shell code that becomes the daemon.
daemon_code() {
	echo "interface='$interface' folder=$daemons/$1 digests=$daemons/${1%.*}.digests"
	# shellcheck disable=SC2016 # the instance expands them
	printf '%s\n' 'echo $$ >"$folder/process"' 'PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin'
	interface_code
	cat <<-'END'
		[ -n "$interface" ] || {
			echo "there is no default route, whose interface to use" >&2
			exit 1
		}
	END
	if [ "$format" = knockd ]; then
		# shellcheck disable=SC2016 # the instance expands them
		echo 'exec knockd -i "$interface" -c "$folder/conf" -p "$folder/pid"'
	else
		cat <<-'END'
			exec fwknopd -f --syslog-enable -i "$interface" -a "$folder/conf" -c "$folder/fwknopd.conf" \
				-r "$folder" -p "$folder/pid" -d "$digests"
		END
	fi
}

# daemon_start INSTANCE [SECONDS] starts an instance. After SECONDS, the instance ends.
daemon_start() {
	if systemd_runs; then
		daemon_options='-p Restart=always -p RestartSec=3'
		[ -z "${2-}" ] || daemon_options="-p RuntimeMaxSec=$2"
		! automatic || daemon_options="$daemon_options --no-block"
		# shellcheck disable=SC2086 # these are several options
		systemd-run -q --collect --unit="portknock-daemon-$1" $daemon_options \
			--description="$daemon of the port knocking rules, profile $(value name "${1%.*}")" \
			/bin/sh "$daemons/$1/run"
	else
		daemon_limit=
		[ -z "${2-}" ] || ! command -v timeout >/dev/null || daemon_limit="timeout $2"
		# The daemon must not keep the lock of this script, which is open as file 9.
		# shellcheck disable=SC2086 # the limit is two words or none
		setsid $daemon_limit sh "$daemons/$1/run" </dev/null >/dev/null 2>&1 9>&- &
	fi
}

# without_capture FOLDER is true for an fwknopd without packet capture, as in Debian 13. It
# listens on a UDP port, and reads nothing else.
without_capture() {
	[ "$daemon" = fwknopd ] &&
		fwknopd -f -a "$1/conf" -c "$1/fwknopd.conf" -r "$1" -p "$1/pid" -d "$1/digests" \
			--exit-parse-config 2>&1 | grep -q 'pcap capture not compiled in'
}

# packets_arrive FOLDER checks that the daemon can receive the packets that it waits for.
packets_arrive() {
	if ! grep -q '^UDPSERV_PORT ' "$1/fwknopd.conf" && without_capture "$1"; then
		warn "this fwknopd cannot capture packets; set SPAProtocol udp and one SPAPort in the profile"
		return 1
	fi
}

# port_taken FOLDER is true if two daemons cannot run at once, because they need the same
# UDP port. Then the daemon of a trial takes the port, and systemd tries to start that of
# the old rules again and again, until the trial ends.
port_taken() { systemd_runs && ! automatic && without_capture "$1"; }

# daemons_start COPY SECONDS ID... starts the daemons of parts, and waits until they are
# known to run. COPY is .trial or empty. An instance that runs with the same files goes on.
daemons_start() {
	daemons_copy=$1 daemons_seconds=$2 daemons_started='' daemons_waiting='' daemons_status=0
	shift 2
	automatic || daemon_can || return
	mkdir -p "$daemons" || return
	for part; do
		daemons_old=$(cat "$daemons/$part.now" 2>/dev/null)
		case $daemons_copy,$daemons_old in
		.trial,*) daemons_new=$part.trial ;;
		,"$part.a") daemons_new=$part.b ;;
		*) daemons_new=$part.a ;;
		esac
		daemon_end "$daemons_new"
		daemon_write "$daemons_new" "$daemons/$daemons_new" || return
		automatic || packets_arrive "$daemons/$daemons_new" || return
		if [ -z "$daemons_copy" ] && daemon_same "$daemons_new" "$daemons_old" && daemon_runs "$daemons_old"; then
			daemons_new=$daemons_old
		else
			if port_taken "$daemons/$daemons_new"; then
				[ -z "$daemons_old" ] || daemons_waiting="$daemons_waiting $daemons_old"
				[ -z "$daemons_seconds" ] || daemons_seconds=$trial_seconds
				systemctl stop "portknock-daemon-$part.*.service"
			fi
			daemon_start "$daemons_new" "$daemons_seconds" || return
			daemons_started="$daemons_started $daemons_new"
		fi
		[ -n "$daemons_copy" ] || echo "$daemons_new" >"$daemons/$part.next"
	done
	# A daemon that finds nothing to listen at ends soon after its start.
	[ -z "$daemons_started" ] || { systemd_runs && automatic; } || sleep 1
	for daemons_new in $daemons_started; do
		daemon_runs "$daemons_new" || {
			warn "the $daemon of $(value name "${daemons_new%.*}") does not run; the system log says why"
			daemons_status=1
		}
	done
	for daemons_old in $daemons_waiting; do daemon_start "$daemons_old"; done
	return "$daemons_status"
}

# daemon_same INSTANCE INSTANCE is true if two instances of the rules in force do the same.
daemon_same() {
	cmp -s "$daemons/$1/conf" "$daemons/$2/conf" &&
		[ "$(sed "s|/$1 |/|" "$daemons/$1/run")" = "$(sed "s|/$2 |/|" "$daemons/$2/run")" ]
} 2>/dev/null

# daemons_switch ID... records that the next instances of parts belong to the rules in force.
daemons_switch() {
	for part; do mv -f "$daemons/$part.next" "$daemons/$part.now" || return; done
}

# daemons_prune ends the instances that belong neither to rules in force nor to a trial.
# When one of several fwknopds ends that share a port, another one must begin to listen
# there, which fwknopd does only at its start.
daemons_prune() {
	rm -f "$daemons"/*.next
	daemons_trial=" $(fw_trial_parts | tr '\n' ' ') " daemons_ended=''
	for daemons_folder in "$daemons"/*.[ab] "$daemons"/*.trial; do
		[ -d "$daemons_folder" ] || continue
		daemons_old=${daemons_folder##*/}
		part=${daemons_old%.*}
		case $daemons_old,$daemons_trial in *.trial,*" $part "*) continue ;; esac
		[ "$daemons_old" != "$(cat "$daemons/$part.now" 2>/dev/null)" ] || continue
		daemon_end "$daemons_old"
		daemons_ended=1
	done
	[ -n "$daemons_ended" ] || return 0
	for daemons_folder in "$daemons"/*.[ab]; do
		daemons_old=${daemons_folder##*/}
		if systemd_runs && ! systemctl -q is-active "portknock-daemon-$daemons_old.service"; then
			systemctl restart "portknock-daemon-$daemons_old.service" 2>/dev/null
			continue
		fi
		grep -q '^ENABLE_TCP_SERVER Y' "$daemons_folder/fwknopd.conf" 2>/dev/null || continue
		if systemd_runs; then
			systemctl --no-block restart "portknock-daemon-$daemons_old.service"
		else
			daemon_runs "$daemons_old" && kill -HUP "$daemon_process"
		fi
	done
}

# daemons_result STATUS ends the daemons that the rules do not need, and returns the status.
daemons_result() {
	daemons_prune
	return "$1"
}

fw_test() {
	daemon_can || return
	daemons_test=$daemons/test daemons_status=0
	rm -rf "$daemons_test" # a killed run may have left it
	for part; do
		if ! daemon_write "$part.a" "$daemons_test/$part" || ! daemon_test "$daemons_test/$part"; then
			warn "$daemon cannot read its file for $(value name "$part")"
			daemons_status=1
		elif ! packets_arrive "$daemons_test/$part"; then
			daemons_status=1
		fi
	done
	rm -rf "$daemons_test"
	[ "$daemons_status" = 0 ] && nft_test "$@"
}

# daemon_test FOLDER checks that the daemon can read its files.
daemon_test() {
	if [ "$daemon" = fwknopd ]; then
		fwknopd -f -i lo -a "$1/conf" -c "$1/fwknopd.conf" -r "$1" -p "$1/pid" -d "$1/digests" \
			--exit-parse-config >/dev/null 2>&1
	elif unshare -n true 2>/dev/null && command -v timeout >/dev/null; then
		# knockd cannot only check its file. It ends at once if it cannot read the file.
		# shellcheck disable=SC2016 # the other shell expands $1
		unshare -n sh -c 'ip link set lo up && exec timeout 1 knockd -i lo -c "$1/conf" -p "$1/pid"' sh "$1" \
			>/dev/null 2>&1
		case $? in 124 | 143) ;; *) return 1 ;; esac
	fi
}

fw_load() {
	daemons_start '' '' "$@" && nft_load "$@" && daemons_switch "$@"
	daemons_result $?
}

fw_trial() {
	daemons_limit=$1
	shift
	# Nobody needs the daemon when the trial has expired. It may end later, but not earlier.
	daemons_start .trial $((daemons_limit + 30)) "$@" && nft_trial "$daemons_limit" "$@"
	daemons_result $?
}

fw_keep() {
	daemons_start '' '' "$@" && nft_keep "$@" && daemons_switch "$@"
	daemons_result $?
}

fw_cancel() {
	nft_cancel
	daemons_result $?
}

fw_unload() {
	nft_unload "$@" && for part; do rm -f "$daemons/$part.now"; done
	daemons_result $?
}

fw_changed() {
	! sed 's/\.trial//g' "$daemons/$1.trial/conf" |
		cmp -s - "$daemons/$(cat "$daemons/$1.now" 2>/dev/null)/conf" || nft_changed "$1"
}

# The listing of a part changes if its daemon has ended.
fw_listing() {
	daemons_listing=$(nft_listing "$1" '' "${2-}")
	[ -n "$daemons_listing" ] || return 0
	printf '%s\n' "$daemons_listing"
	! daemon_runs "$(cat "$daemons/$1.now" 2>/dev/null)" || echo "$daemon runs"
}
