# --- verbs ---

state=/run/portknock # what lasts until the next reboot
trial_seconds=60

say() { printf '%s\n' "$*"; }
warn() { printf 'portknock: %s\n' "$*" >&2; }
die() {
	code=$1
	shift
	warn "$*"
	exit "$code"
}

# value prints the variable of a profile, such as ports_vps for "value ports vps".
value() { eval "printf '%s\n' \"\${$1_$2}\""; }

# names prints the names of profiles, separated by commas.
names() {
	list=
	for part; do list="$list, $(value name "$part")"; done
	printf '%s\n' "${list#, }"
}

# remember records that the rules of this script are in force for these profiles.
remember() {
	for part; do
		sum_write "$part" || warn "cannot record in $state that $(value name "$part") is loaded"
		# The daemon of rules in nftables would run on when these rules are unloaded.
		[ "$format" != iptables ] || other_firewall_has "$part" || daemons_end_left "$part"
	done
	unloaded_del "$@"
}

# in_force is true if the rules of this script are in force for a profile, unchanged.
in_force() {
	[ "$(read_file "$state/$1.sum")" = "$id" ] && [ "$(sum_state "$1" full)" = same ]
}

# lock makes verbs wait for each other. A script that another one runs under its lock has
# PORTKNOCK_LOCKED in its environment.
lock() {
	[ -z "${PORTKNOCK_LOCKED-}" ] && command -v flock >/dev/null || return 0
	exec 9>"$state/lock"
	lock_tries=0
	until flock -n 9; do # the flock of busybox cannot wait with a limit
		lock_tries=$((lock_tries + 1))
		[ "$lock_tries" -lt 60 ] || die 1 'another run of a portknock script does not end'
		sleep 1
	done
}

unlock() { [ -n "${PORTKNOCK_LOCKED-}" ] || exec 9>&-; }

# other_firewall_has ID is true if the other firewall has rules of the profile. A connection
# then needs both firewalls to let it through.
other_firewall_has() {
	case $format in
	iptables) nft -t list chain inet portknock "let_$1" ;;
	*) iptables -w -t mangle -S PORTKNOCK | grep -e "--comment \"\{0,1\}[14]:$1\"\{0,1\} " ;;
	esac >/dev/null 2>&1
}

# warn_of_other_firewall ID... warns of profiles that the other firewall has too.
warn_of_other_firewall() {
	other=iptables
	[ "$format" != iptables ] || other=nftables
	for part; do
		other_firewall_has "$part" || continue
		undo="sh /etc/portknock/$part.sh unload"
		! same_firewall "/etc/portknock/$part.sh" || undo="the verb unload of the script that loaded it"
		warn "$(value name "$part") is also loaded in $other, and both together admit nobody; first run: $undo"
	done
}

# trusted prints a line "KIND SOURCE" for each trusted source of a profile. KIND is interface,
# ipv4 or ipv6.
trusted() {
	for source in $(value trust "$1"); do
		case $source in
		*:*) echo "ipv6 $source" ;;
		*[!0-9./]*) echo "interface $source" ;;
		*) echo "ipv4 $source" ;;
		esac
	done
}

# warn_of_missing_interfaces ID... warns of trusted interfaces that this server does not have.
warn_of_missing_interfaces() {
	trusted "$1" | while read -r kind source; do # all profiles of a script trust the same sources
		[ "$kind" != interface ] || [ -e "/sys/class/net/$source" ] ||
			warn "trusted interface $source does not exist now"
	done
}

verb_test() {
	warn_of_other_firewall "$@"
	warn_of_missing_interfaces "$@"
	fw_test "$@" || die 1 "this server cannot load the rules of $(names "$@")"
	say "this server can load the rules of $(names "$@")"
}

verb_load() {
	warn_of_other_firewall "$@"
	fw_load "$@" || die 1 "the rules of $(names "$@") are not loaded; the rules in force have not changed"
	remember "$@"
	say "loaded: $(names "$@")"
	[ -f "/etc/portknock/$1.sh" ] || say "The rules are lost at a reboot. To load them at each boot: sh $0 install"
}

verb_trial() {
	warn_of_other_firewall "$@"
	warn_of_missing_interfaces "$@"
	left=$(fw_trial_left)
	[ -z "$left" ] || die 1 "another trial ends in $left seconds; wait, or run: sh $0 cancel"
	fw_test "$@" || die 1 'the trial has not begun; the rules in force have not changed'
	if ! fw_trial "$trial_seconds" "$@"; then
		fw_cancel # with iptables, the rules for IPv4 may be on trial
		die 1 'the trial has not begun; the rules in force have not changed'
	fi
	unlock
	say "The new rules of $(names "$@") are in force for $trial_seconds seconds. Keep this session open."
	say 'Log in from another terminal, with a new connection: ssh -S none HOST'
	trust=$(value trust "$1" | sed 's/ /, /g')
	[ -z "$trust" ] || say "Connections from trusted sources do not count: $trust"
	if [ -t 0 ] && [ -t 1 ]; then
		say 'If that works, press Enter here. Otherwise the trial ends by itself:'
		say 'then the rules from before are in force again, or the ports are open if there were none.'
		countdown "$@"
	else
		say "If that works, run: sh $0 keep"
		say 'Otherwise the trial ends by itself: then the rules from before are in force again,'
		say 'or the ports are open if there were none.'
	fi
}

# countdown shows the remaining seconds of a trial. The key Enter means keep.
countdown() {
	terminal=$(stty -g) || return 0
	trap 'stty "$terminal"' EXIT
	trap 'exit 1' HUP INT TERM
	stty -icanon -echo min 0 time 10
	enter='
'
	while [ -t 0 ] && left=$(fw_trial_left) && [ -n "$left" ]; do
		printf '\r%s seconds left  ' "$left"
		# dd waits one second for a key. The x keeps a newline, which $() would remove.
		if [ "$(dd bs=1 count=1 2>/dev/null && echo x)" = "${enter}x" ]; then
			printf '\n'
			(lock && verb_keep) && exit 0
		fi
	done
	printf '\n'
	for part; do
		in_force "$part" || die 1 'the trial has ended without keep; the rules from before are in force again'
	done
	say 'The rules were kept by another run of this script.'
}

# keep_trial makes the rules on trial permanent.
keep_trial() {
	[ "$(fw_trial_id)" = "$id" ] || die 1 "no trial of these rules is running; it may have ended; run: sh $0 trial"
	[ -n "$(fw_trial_left)" ] || die 1 "the trial has ended, and the rules from before are in force; run: sh $0 trial"
	tried=$(fw_trial_parts)
	if [ -z "$force" ]; then
		for part in $tried; do
			if fw_changed "$part" && ! fw_proved "$part"; then
				warn "no new connection has come through the new rules of $(value name "$part") yet"
				! fw_trusted_came "$part" || die 1 'connections from trusted sources do not prove that' \
					"knocks work; log in from elsewhere, or run: sh $0 keep --force"
				die 1 'log in with a new connection (ssh -S none HOST), then keep the rules'
			fi
		done
	fi
	# shellcheck disable=SC2086 # IDs are single words
	fw_keep $tried || die 1 'not kept; the trial continues'
	# shellcheck disable=SC2086
	remember $tried
}

verb_keep() {
	keep_trial
	say "The new rules stay loaded until a reboot. To load them at each boot: sh $0 install"
}

verb_cancel() {
	left=$(fw_trial_left)
	fw_cancel || die 1 'the trial has not been canceled; it ends by itself'
	if [ -n "$left" ]; then
		say 'the trial has ended; the rules from before are in force again'
	else
		say 'no trial was running; the rules in force have not changed'
	fi
}

verb_install() {
	[ -r "$0" ] || die 1 'save this script as a file first; install copies it'
	tried=
	[ -z "$(fw_trial_left)" ] || [ "$(fw_trial_id)" != "$id" ] || tried=$(fw_trial_parts)
	for part; do
		printf '%s\n' "$tried" | grep -qx "$part" || in_force "$part" ||
			die 1 "the rules of $(value name "$part") in this script are not loaded; first run trial, then log in"
	done
	[ -z "$tried" ] || keep_trial
	install_parts "$@" || die 1 "not completely installed; the rules stay loaded until a reboot; to undo: sh $0 uninstall"
	if grep -qs '^[^#]*include.*portknock' /etc/nftables.conf; then
		warn 'remove the include line from /etc/nftables.conf: it loads the rules of another file'
	fi
	say "installed: $(names "$@"). The rules are loaded at each boot, and when they are removed."
	# shellcheck disable=SC2154 # the head of the script sets on_failure
	[ "$on_failure" = open ] || {
		say 'If the rules cannot be loaded, the ports are closed. To open them at the console:'
		for part; do say "  sh /etc/portknock/$part.sh unload"; done
	}
}

verb_unload() {
	warn_of_other_firewall "$@"
	fw_unload "$@" || die 1 "the rules of $(names "$@") are still loaded"
	unloaded_add "$@"
	say "unloaded: $(names "$@"). The ports are open, unless another profile or firewall closes them."
	! parts_installed || say "Installed rules return at the next boot. To remove them for good: sh $0 uninstall"
}

verb_uninstall() {
	warn_of_other_firewall "$@"
	# The files go first: the watchdog must not load the rules again.
	uninstall_parts "$@" || die 1 "not uninstalled: $(names "$@")"
	fw_unload "$@" || die 1 "the rules of $(names "$@") are still loaded"
	parts_installed || [ -n "$(fw_parts)" ] || rm -rf "$state"
	say "uninstalled: $(names "$@")"
}

# select_profiles sets "selected" to the IDs of profiles that the user names, or of all.
select_profiles() {
	selected=
	# shellcheck disable=SC2154 # the head of the script sets profiles
	for name; do
		found=
		for part in $profiles; do
			case $name in "$part" | "$(value name "$part")") found=$part ;; esac
		done
		# shellcheck disable=SC2086 # IDs are single words
		[ -n "$found" ] || die 2 "unknown profile \"$name\"; this script has: $(names $profiles)"
		selected="$selected $found"
	done
	selected=${selected:-$profiles}
}

main() {
	umask 077
	PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
	verb=${1-} force='' json=''
	[ $# -eq 0 ] || shift
	case $verb in
	test | load | trial | keep | cancel | status | install | uninstall | unload | boot | watch) ;;
	*) die 2 "unknown verb \"$verb\"; use: sh $0 test|trial|keep|cancel|install|load|status|unload|uninstall" ;;
	esac
	case $verb,${1-} in
	keep,--force | install,--force)
		force=1
		shift
		;;
	status,--json)
		json=1
		shift
		;;
	trial,[0-9]*)
		case $1 in *[!0-9]*) die 2 "\"$1\" is not a number of seconds" ;; esac
		trial_seconds=$1
		shift
		case $trial_seconds in
		0* | ?????*) die 2 'a trial takes 1 to 9999 seconds' ;;
		esac
		;;
	esac
	case ${1-} in -*) die 2 "unknown flag \"$1\" of $verb" ;; esac
	case $verb,${1-} in keep,?* | cancel,?*) die 2 "$verb takes no profiles: it is for the whole trial" ;; esac
	select_profiles "$@"
	[ "$(id -u)" = 0 ] || die 1 "only root can do this; run: sudo sh $0 $verb"
	mkdir -p "$state" || exit 1
	case $verb in status | boot | watch) ;; *) lock ;; esac
	# shellcheck disable=SC2086 # IDs are single words
	"verb_$verb" $selected
}
