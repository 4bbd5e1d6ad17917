# --- nftables ---
#
# The names of a part's chains, sets and counters are ROLE_ID. The rules write .COPY after
# the ID. The shell removes it to load the rules, or replaces it by .trial to load a second
# copy beside them. Only the chains at the kernel's hooks, on-ROLE_ID, have no copy. During
# a trial they go to the copy as long as the set "trial" has an element, which expires.

# part_rules prints the rules of parts. $1 is the copy: "" or .trial
part_rules() {
	copy=$1
	shift
	{
		rules_shared
		for part; do
			"rules_$part"
			echo '# part'
		done
	} | sed "s/\.COPY/$copy/g" | if [ -n "$copy" ]; then
		# The present chains at the hooks stay, and get a rule in front. Those of an older version,
		# guard and input, stay too.
		sed -e '/^flush chain inet portknock on-/d' \
			-e '/ chain inet portknock guard$/d' -e '/ chain inet portknock input$/d' \
			-e 's/^add rule \(inet portknock on-[^ ]*\) goto /insert rule \1 meta nfproto @trial goto /'
	else
		cat
	fi
}

# nft_errors prints the first error that nft reports. nft also quotes lines of its input, which
# hold secrets.
nft_errors() {
	nft_line=$(sed -n 's/^[^ ]*: Error: /nft: /p; /^[^ ]*Error: /!{/^netlink: /p;/^internal:/p;}' | sed q)
	case $nft_line in
	*': Could not process rule: '*) ;; # from the kernel
	*) nft_line="${nft_line:-nft: no reason given} (nft $(nft_version) may be too old)" ;;
	esac
	printf '%s\n' "$nft_line" >&2
}

nft_version() { nft --version | sed 's/^[^ ]* v\([^ ]*\).*/\1/'; }

# nft_supported fails if nft is older than the rules require. Such a version may crash, after it
# has loaded the rules or before.
nft_supported() {
	command -v nft >/dev/null || {
		warn 'nft is not installed'
		return 1
	}
	case $(nft_version) in
	0.* | 1.0.0 | 1.0.1)
		warn "nft $(nft_version) is too old; the rules need nft 1.0.2 or later"
		return 1
		;;
	esac
}

# nft_in_parts is an awk program that makes nft read rules in parts.
nft_in_parts='/^# part$/ && close("nft -f -") { failed = 1; exit }
	{ print | "nft -f -" }
	END { exit failed || close("nft -f -") != 0 }'

# nft_run makes nft read rules in one transaction. If the kernel refuses that many rules at
# once, as it does in an unprivileged container, nft_run loads them in parts. The chains of
# a profile come last, so that the old rules are in force until then.
nft_run() {
	nft_input=$state/rules
	cat >"$nft_input" || return
	if nft_output=$(nft -f "$nft_input" 2>&1); then
		rm -f "$nft_input"
		return 0
	fi
	case $nft_output in
	*'Message too long'*)
		nft_output=$(awk "$nft_in_parts" "$nft_input" 2>&1) && nft_failed= || nft_failed=1
		;;
	*) nft_failed=1 ;;
	esac
	rm -f "$nft_input"
	[ -z "$nft_failed" ] || {
		printf '%s\n' "$nft_output" | nft_errors
		return 1
	}
}

# nft_objects prints one line "KIND NAME" for each chain, set, map and counter.
nft_objects() {
	nft -t list table inet portknock 2>/dev/null |
		awk '/^\t(chain|set|map|counter) / && $3 == "{" { print $1, $2 }'
}

# nft_delete reads lines "KIND NAME" and prints commands that delete these objects. Chains
# come first, and lose their rules before, because they refer to each other and to sets.
nft_delete() {
	sort -u | awk -v table='inet portknock' '
		$1 == "chain" {
			flush = flush "flush chain " table " " $2 "\n"
			chains = chains "delete chain " table " " $2 "\n"
			next
		}
		{ others = others "delete " $1 " " table " " $2 "\n" }
		END { printf "%s%s%s", flush, chains, others }'
}

# nft_of selects, from the lines of nft_objects, the objects of these parts and of their
# copies. The sets of used tokens belong to keys and are never selected.
nft_of() {
	awk -v ids=" $* " '{ id = $2; role = $2; sub(/_.*/, "", role); sub(/^[^_]*_/, "", id); sub(/\.trial$/, "", id) }
		role !~ /^(used|usedby4|usedby6|trial)$/ && index($2, "_") && index(ids, " " id " ")'
}

# nft_declared prints the lines "KIND NAME" of the objects that the rules on stdin declare.
nft_declared() { awk '/^\t(chain|set|map|counter) / { print $1, $2 }'; }

# nft_trial_rules prints commands that delete the rules of a trial from the chains at the hooks.
nft_trial_rules() {
	nft -a -t list table inet portknock 2>/dev/null |
		awk '/^\tchain / { chain = $2 } / @trial / { print "delete rule inet portknock " chain " handle " $NF }'
}

# nft_end_trial prints commands that delete a trial: its rules, its copies, its marks, and
# the chains at the hooks of parts that have only a copy.
nft_end_trial() {
	nft_trial_rules
	nft_objects | awk '
		{ id = $2; sub(/^[^_]*_/, "", id) }
		/\.trial$/ || /^chain trial_/ || $0 == "set trial" { print; next }
		/^chain on-/ { hook[$0] = id }
		/^chain let_/ { present[id] = 1 }
		END { for (h in hook) if (!present[hook[h]]) print h }' | nft_delete
}

nft_test() {
	nft_supported || return
	if unshare -n true 2>/dev/null; then
		part_rules '' "$@" >"$state/test" || return
		# shellcheck disable=SC2016 # the other shell expands $1
		unshare -n sh -c 'exec 2>"$2"
			{ nft -f "$1" || { grep -q "Message too long" "$2" && awk "$3" "$1" 2>"$2"; }; } &&
				nft -t list table inet portknock' sh "$state/test" "$state/errors" "$nft_in_parts" >"$state/tested" || {
			nft_errors <"$state/errors"
			rm -f "$state/test" "$state/tested" "$state/errors"
			return 1
		}
		# Older versions of nft leave out what they do not know, without an error.
		nft_lost=$(awk '
			/^\t(set|map) / { set = $1 " " $2 }
			FNR == NR && set { want[set] = want[set] $0 }
			FNR == NR && /}$/ { set = "" }
			FNR == NR { next }
			/^\t(set|map) / { found[set] = 1 }
			/^\t\ttimeout / { timed[set] = 1 }
			END {
				for (set in want) {
					if (!(set in found)) print set
					else if (want[set] ~ /; timeout / && !(set in timed)) print "timeout of " set
				}
			}' "$state/test" "$state/tested")
		rm -f "$state/test" "$state/tested" "$state/errors"
		[ -z "$nft_lost" ] || {
			warn "this version of nft loses parts of the rules: $(echo "$nft_lost" | head -n 1); use a later version"
			return 1
		}
	fi
	nft_output=$(part_rules '' "$@" | nft -c -f - 2>&1) || case $nft_output in
	*'Message too long'*) ;; # nft_run then loads the rules in parts
	*)
		printf '%s\n' "$nft_output" | nft_errors
		return 1
		;;
	esac
}

# nft_takes_over fails if rules of an older version are in force that guard the ports of other
# profiles than these. Such rules go as a whole, and the ports would be open.
nft_takes_over() {
	for old in $(nft list chain inet portknock guard 2>/dev/null | sed -n 's/.* jump door_//p' | sort -u); do
		case " $* " in
		*" $old "*) ;;
		*)
			warn "this would open the ports of \"$old\", which rules of an older version guard;" \
				"put all profiles into one script, or first run: nft delete table inet portknock"
			return 1
			;;
		esac
	done
}

nft_load() {
	nft_supported && nft_takes_over "$@" || return
	part_rules '' "$@" | nft_run && nft_leftovers "$@" | nft_run
}

# nft_leftovers prints commands that delete the objects of parts that their rules do not
# declare, such as copies. Without other parts on trial, they end the trial too.
nft_leftovers() {
	{
		nft_objects | nft_of "$@" | nft_except "$@"
		if ! fw_trial_parts | grep -qvxF "$(printf '%s\n' "$@")"; then
			nft_objects | grep -e '^chain trial_' -e '^set trial$'
		fi
	} | nft_delete
}

# nft_end_empty_trial ends a trial that has no copies any more.
nft_end_empty_trial() { [ -n "$(fw_trial_parts)" ] || nft_end_trial | nft_run; }

# nft_except leaves out the objects that the rules of the parts declare.
nft_except() {
	for part; do "rules_$part"; done | sed 's/\.COPY//' | nft_declared >"$state/declared"
	grep -vxF -f "$state/declared"
	rm -f "$state/declared"
}

nft_trial() {
	nft_supported || return
	seconds=$1
	shift
	{
		nft_end_trial
		echo 'add table inet portknock'
		echo 'add set inet portknock trial { typeof meta nfproto; flags timeout; }'
		echo "add chain inet portknock trial_$id"
		part_rules .trial "$@"
		# An older version's chains must not drop what the copies let through.
		nft_objects | grep -x -e 'chain guard' -e 'chain input' |
			sed 's/^chain \(.*\)/insert rule inet portknock \1 meta nfproto @trial meta priority ffff:7070 accept/'
		echo "add element inet portknock trial { ipv4 timeout ${seconds}s, ipv6 timeout ${seconds}s }"
	} | nft_run
}

# nft_elements prints the lines "ELEMENT SECONDS-LEFT" of a set with timeouts.
nft_elements() {
	nft list set inet portknock "$1" 2>/dev/null |
		tr -d '\n\t' | sed -n 's/.*elements = {\([^}]*\)}.*/\1/p' | tr ',' '\n' |
		awk 'function seconds(time,   total, unit, n) {
				while (match(time, /^[0-9]+(ms|[dhms])/)) {
					n = time + 0
					unit = substr(time, 1, RLENGTH)
					sub(/^[0-9]+/, "", unit)
					total += n * (unit == "d" ? 86400 : unit == "h" ? 3600 : unit == "m" ? 60 : unit == "s" ? 1 : 0.001)
					time = substr(time, RLENGTH + 1)
				}
				return total
			}
			NF { for (i = 1; i < NF; i++) if ($i == "expires") print $1, int(seconds($(i + 1)) + 0.999) }'
}

fw_trial_left() { nft_elements trial | sed -n '1s/.* //p'; }

fw_trial_id() { nft_objects | sed -n 's/^chain trial_//p'; }

fw_trial_parts() { nft_objects | sed -n 's/^chain let_\(.*\)\.trial$/\1/p'; }

fw_proved() { nft list counter inet portknock "let_$1.trial" 2>/dev/null | grep -q 'packets [1-9]'; }

fw_trusted_came() { nft list counter inet portknock "trusted_$1.trial" 2>/dev/null | grep -q 'packets [1-9]'; }

nft_changed() {
	[ "$(nft_listing "$1" '' | cksum)" != "$(nft_listing "$1" .trial | sed 's/\.trial//g' | cksum)" ]
}

# nft_keep_openings prints commands that add the openings of a part's copy to the part. Each
# has the seconds that it has left, since the part may have another timeout. An address
# that the part admits too keeps the longer of its two openings.
nft_keep_openings() {
	for family in 4 6; do
		{
			nft_elements "open${family}_$1" | sed 's/$/ part/'
			nft_elements "open${family}_$1.trial"
		} | awk -v set="inet portknock open${family}_$1" '
			$3 == "part" { left[$1] = $2 }
			$3 == "" && $2 > left[$1] + 0 {
				add = "add element " set " { " $1 " timeout " $2 "s }"
				print add "\ndelete element " set " { " $1 " }\n" add
			}'
	done
}

nft_keep() {
	nft_takes_over "$@" || return
	{
		part_rules '' "$@"
		for part; do nft_keep_openings "$part"; done
		nft_leftovers "$@"
	} | nft_run
}

nft_cancel() {
	nft_end_trial | nft_run || return
	nft_guards || nft_objects | grep -q '^set used' || fw_remove
}

nft_unload() {
	nft_takes_over "$@" || return
	nft_objects | nft_of "$@" | nft_delete | nft_run && nft_end_empty_trial || return
	nft_guards || fw_remove
}

# nft_guards is true if the table guards a port, by parts, copies, plain drops or the rules of
# an older version.
nft_guards() { nft_objects | grep -q -e '^chain on-' -e '^chain closed_' -e '^chain guard$'; }

fw_remove() {
	nft list table inet portknock >/dev/null 2>&1 || return 0
	echo "delete table inet portknock" | nft_run
}

fw_parts() { nft_objects | sed -n '/\.trial$/d; s/^chain let_//p'; }

# nft_listing prints the chains and sets of a part, or of its copy. With -s, it leaves out
# the elements of constant sets.
nft_listing() {
	TZ=UTC nft -s -t list table inet portknock 2>/dev/null | awk -v end="_$1$2" -v hook="_$1" '
		/^\t(chain|set|map|counter) / {
			role = $2
			sub(/_.*/, "", role)
			on = substr($2, length(role) + 1) == (role ~ /^on-/ ? hook : end)
			if (on && role == "let" && $1 == "chain") present = 1
		}
		on && !/ @trial / { text = text $0 "\n" }
		/^\t}/ { on = 0 }
		END { if (present) printf "%s", text }'
	[ -z "${3-}" ] || return 0
	nft_objects | grep -xE "(set|map) (even|odd|next|last|ignore|tokens)_$1$2" | sort |
		while read -r kind name; do
			TZ=UTC nft -s list "$kind" inet portknock "$name"
		done
}

fw_counters() {
	nft list counters table inet portknock 2>/dev/null | awk -v end="_$1" '
		$1 == "counter" {
			role = $2
			sub(/_.*/, "", role)
			name = substr($2, length(role) + 1) == end ? role : ""
		}
		$1 == "packets" && name {
			sub(/^let$/, "let_through", name)
			sub(/^(spent|refused)$/, "tokens_&", name)
			print name, $2
		}'
}

fw_admitted() {
	copy=
	[ -z "$(fw_trial_left)" ] || ! fw_trial_parts | grep -qx "$1" || copy=.trial
	for family in 4 6; do nft_elements "open${family}_$1$copy"; done
}

# nft_trust prints one match for each trusted source of a part.
nft_trust() {
	trusted "$1" | sed 's/^interface \(.*\)/iifname "\1"/; s/^ipv4/ip saddr/; s/^ipv6/ip6 saddr/'
}

# The plain drop spares what other parts, or copies on trial, have marked as let through. It
# also spares trusted sources, which chains before it mark. The rules of an older version
# stay: unlike the shared rules, fw_close does not delete them.
fw_close() {
	{
		echo 'add table inet portknock'
		rules_shared | grep ' inet portknock begin '
		for part; do
			for hook in closedlet/prerouting/-152 closed/prerouting/-151 closedletin/input/-3 closedin/input/-2; do
				chain="inet portknock ${hook%%/*}_$part"
				where=${hook#*/}
				case $hook,$(value trust "$part") in closedlet*,) continue ;; esac
				echo "add chain $chain { type filter hook ${where%/*} priority ${where#*/}; policy accept; }"
				echo "flush chain $chain"
				echo "add rule $chain meta priority ffff:7070 accept"
				echo "add rule $chain iif lo accept"
				for range in $(value ports "$part"); do
					case $range,$hook in
					*/tcp,closedlet*) new='tcp flags & (fin|syn|rst|ack) == syn' ;;
					*/tcp,*) new='tcp flags & (rst|ack) == 0' ;;
					*) new='ct state != { established, related }' ;;
					esac
					new="${range#*/} dport ${range%/*} $new"
					case $hook in
					closedlet*)
						nft_trust "$part" | while read -r match; do
							echo "add rule $chain $new $match meta priority set ffff:7070"
						done
						;;
					*) echo "add rule $chain $new drop" ;;
					esac
				done
			done
		done
	} | nft_run
}
