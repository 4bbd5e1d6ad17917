# --- status ---

# clock_state says whether the clock is synchronized: yes, no or unknown.
clock_state() {
	case $(timedatectl show -p NTPSynchronized --value 2>/dev/null) in
	yes) echo yes ;;
	no) echo no ;;
	*)
		if command -v chronyc >/dev/null && chronyc -n tracking 2>/dev/null | grep -q '^Leap status *: Normal'; then
			echo yes
		else
			echo unknown
		fi
		;;
	esac
}

# rules_state prints what is in force for a profile:
#   as loaded   these rules, unchanged since they were loaded
#   other       rules of another script for this profile
#   changed     rules that have changed since they were loaded
#   not loaded  nothing
rules_state() {
	case $(sum_state "$1" full) in
	gone) echo 'not loaded' ;;
	same) if [ "$(read_file "$state/$1.sum")" = "$id" ]; then echo 'as loaded'; else echo other; fi ;;
	*) echo changed ;;
	esac
}

# trial_state prints the state of a profile in the trial: none, proved, or not proved.
trial_state() {
	if [ -z "$left" ] || ! fw_trial_parts | grep -qx "$1"; then
		echo none
	elif fw_proved "$1"; then
		echo proved
	else
		echo 'not proved'
	fi
}

# list_size prints how many addresses a list of iptables holds, if the kernel tells.
list_size() {
	[ "$format" != iptables ] || cat /sys/module/xt_recent/parameters/ip_list_tot 2>/dev/null
}

# verb_status returns 1 unless the rules of all profiles are in force as they were loaded.
verb_status() {
	left=$(fw_trial_left) status=0 size=$(list_size)
	if [ -n "$json" ]; then status_json "$@"; else status_text "$@"; fi
	return "$status"
}

status_text() {
	# shellcheck disable=SC2154 # the head of the script sets made_by
	[ -z "$made_by" ] || say "made by    $made_by"
	if [ -n "$left" ]; then say "trial      $left s left"; else say 'trial      none'; fi
	[ -z "$size" ] || say "lists      hold $size addresses each"
	for part; do
		say ''
		say "profile    $(value name "$part"), guards $(value ports "$part")$(value key "$part" | sed 's/..*/, key &/')"
		until=$(value until "$part")
		rules=$(rules_state "$part")
		[ "$rules" = 'as loaded' ] || status=1
		case $rules in
		'as loaded') rules='in force, unchanged since they were loaded' ;;
		other) rules='in force, but from another script' ;;
		changed) rules='changed since they were loaded' ;;
		*) rules='not loaded' ;;
		esac
		say "rules      $rules"
		[ -z "$until" ] || say "valid      until $(show_time "$until"); clock synchronized: $(clock_state)"
		on_trial=$(trial_state "$part")
		[ "$on_trial" = none ] || say "on trial   $on_trial"
		installed_state "$part" | awk '
			{ word = $1; sub(/^[^ ]* /, ""); is[word] = $0 }
			END {
				printf "installed  %s", is["installed"]
				if (is["installed"] != "no") {
					printf "; service %s, enabled %s, ", is["service"], is["enabled"]
					printf "watchdog %s", is["watchdog"]
				}
				print ""
				if ("failing" in is) print "failing    " is["failing"]
			}'
		trust=$(value trust "$part" | sed 's/ /, /g')
		fw_counters "$part" | awk -v trust="$trust" '
			$1 == "trusted" { came = "; " $2 ($2 == 1 ? " connection" : " connections"); next }
			{ gsub(/_/, " ", $1); sub(/^stage/, "knock ", $1); list = list (list ? ", " : "") $1 ": " $2 }
			END {
				if (trust != "") print "trusted    " trust ": no knock needed" came
				if (list) print "counted    " list
			}'
		fw_admitted "$part" | awk '{ print "admitted   " $1 " for " $2 " s" }'
	done
	others=$(fw_parts | grep -vxF "$(printf '%s\n' "$@")" | tr '\n' ' ')
	[ -z "$others" ] || say "
other profiles loaded: $others"
}

# json_text prints a text as a string of JSON.
json_text() { printf '%s\n' "$1" | sed 's/[\\"]/\\&/g; s/^/"/; s/$/"/'; }

status_json() {
	printf '{"format":"%s","id":"%s","made_by":%s,"clock_synchronized":"%s",' \
		"$format" "$id" "$(json_text "$made_by")" "$(clock_state)"
	printf '"trial_seconds_left":%s,"list_size":%s,"profiles":[' "${left:-null}" "${size:-null}"
	comma=
	for part; do
		until=$(value until "$part")
		rules=$(rules_state "$part")
		[ "$rules" = 'as loaded' ] || status=1
		printf '%s{"name":%s,"ports":"%s","key":"%s","rules":"%s","valid_until":%s,"trial":"%s"' "$comma" \
			"$(json_text "$(value name "$part")")" "$(value ports "$part")" "$(value key "$part")" \
			"$rules" "${until:-null}" "$(trial_state "$part")"
		installed_state "$part" | while read -r word text; do
			printf ',"%s":%s' "$word" "$(json_text "$text")"
		done
		printf ',"trusted":[%s],"counters":{' "$(value trust "$part" | sed 's/[^ ][^ ]*/"&"/g; s/ /,/g')"
		fw_counters "$part" | awk '{ printf "%s\"%s\":%d", (NR > 1 ? "," : ""), $1, $2 }'
		printf '},"admitted":['
		fw_admitted "$part" | awk '{ printf "%s{\"address\":\"%s\",\"seconds_left\":%d}", (NR > 1 ? "," : ""), $1, $2 }'
		printf ']}'
		comma=,
	done
	printf '],"other_profiles":['
	fw_parts | grep -vxF "$(printf '%s\n' "$@")" | awk '{ printf "%s\"%s\"", (NR > 1 ? "," : ""), $1 }'
	printf ']}\n'
}
