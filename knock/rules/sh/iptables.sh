# This file loads rules with iptables and ip6tables. It keeps the parts of several
# profiles in one guard.
#
# Each table has one root chain, PORTKNOCK. The table mangle has a second one, PORTKNOCKIN,
# at the hook INPUT. A part has chains PORTKNOCK-ID*, lists
# portknock_ID_* of xt_recent, and rules in the root chains. The comment PHASE:ID of each
# root rule holds its place and its part. The ID "-" marks rules that all parts share. The
# comment PHASE:ID trusted is for a rule of a source that needs no knock.
#
# A trial has copies: the root chains PORTTRIAL, PORTTRIALIN, chains PORTTRIAL-ID* and lists
# porttrial_ID_*. The first rule of PORTKNOCK leads to PORTTRIAL until a date. The chain
# PORTTRIAL_SCRIPTID is empty; its name records the script on trial.
#
# The lists portspent_* record spent tokens. They belong to a key, so copies share them.
# The chain PORTSPENT is never reached; its rules keep lists alive that no part uses now.
#
# shellcheck shell=sh disable=SC2154

#<plain
# ipt_program is an awk program that writes the input of iptables-restore.
#
# It reads the output of iptables-save -c, the line "# new", and new rules. The variable
# mode is one of:
#   load    replace the parts in the new rules, in force and on trial
#   keep    replace the parts in the new rules, in force only
#   trial   load the new rules as copies; the variable gate is the rule that leads there
#   unload  remove the parts in the variable ids
#   cancel  remove the trial
#   remove  remove everything
#
# Rules of other parts keep their counters, except with ip6tables-nft-restore 1.8.9, which
# does not restore counters.
#
# The lines "# part" show where a container that refuses many rules may split the output.
# Only the whole output is one transaction.
# shellcheck disable=SC2016 # awk expands this text
ipt_program='
# owner returns the ID of the part that has a chain, or "".
function owner(chain) {
	if (!sub(/^PORT(KNOCK|TRIAL)-/, "", chain)) return ""
	sub(/-.*/, "", chain)
	return chain
}
# label returns the comment PHASE:ID of a rule, or "".
function label(rule) {
	if (!match(rule, /--comment "?[0-9]:[a-z0-9_-]+/)) return ""
	rule = substr(rule, RSTART + 10, RLENGTH - 10)
	sub(/"/, "", rule)
	return rule
}
# list_name returns the option --name of a match without the mask.
function list_name(match_text) {
	sub(/ --mask .*/, "", match_text)
	return match_text
}
# put appends a rule to a root chain of the output.
function put(table, chain, rule, mark,   n) {
	n = ++size[table, chain]
	sub(/-A PORT(KNOCK|TRIAL)(IN)? /, "-A " chain suffix[table] " ", rule)
	out[table, chain, n] = rule
	mark_of[table, chain, n] = mark
	if (mark !~ /:-$/) used[table, chain] = 1
	if (chain == "PORTKNOCK") in_force[substr(mark, 3)] = 1
}
# root sets the variables table and chain for a chain of the text. For the root chains at the
# hook INPUT of the table mangle, they become "input" and the name without IN.
function root(name) {
	chain = name
	if (table == "input") table = "mangle"
	if (table == "mangle" && chain ~ /^PORT(KNOCK|TRIAL)IN$/) {
		table = "input"
		sub(/IN$/, "", chain)
	}
}
# copy puts the rules of a loaded root chain without the parts in skip and old shared rules.
function copy(table, from, to, replace, bare,   i, mark, rule) {
	for (i = 1; i <= loaded[table, from]; i++) {
		mark = old_mark[table, from, i]
		rule = old_rule[table, from, i]
		if (mark == "" ? !bare : replace && (substr(mark, 3) in gone || mark ~ /:-$/ && shared[table])) continue
		if (from != to) sub(/^\[[0-9:]*\] /, "", rule)
		put(table, to, rule, mark)
	}
}
# add puts the new rules of a root chain.
function add(table, chain,   i) {
	for (i = 1; i <= news[table]; i++) put(table, chain, new_rule[table, i], new_mark[table, i])
}
# spare lets the drop policy of a root chain pass the guarded ports of all parts. Without a
# drop policy, the chain of the table filter is empty.
function spare(chain,   i, n, k, w, p, d, id, rule, drops, seen, bare) {
	for (i = 1; i <= size["filter", chain]; i++) {
		if (mark_of["filter", chain, i] == "") bare = 1
		if (mark_of["filter", chain, i] ~ /^3/) drops = 1
	}
	if (bare) return
	n = size["filter", chain]
	size["filter", chain] = used["filter", chain] = 0
	if (!drops) return
	for (i = 1; i <= n; i++) if (mark_of["filter", chain, i] !~ /^1/)
		put("filter", chain, out["filter", chain, i], mark_of["filter", chain, i])
	for (i = 1; i <= size["mangle", chain]; i++) {
		if (mark_of["mangle", chain, i] !~ /^[25]/) continue
		id = substr(mark_of["mangle", chain, i], 3)
		k = split(out["mangle", chain, i], w, " ")
		for (; k > 0; k--) {
			if (w[k] == "-p") p = w[k + 1]
			if (w[k] == "--dport") d = w[k + 1]
		}
		rule = "-p " p (p == "tcp" ? " --syn" : "") " --dport " d " -m comment --comment \"1:" id "\" -j RETURN"
		if (!seen[rule]++) put("filter", chain, "-A " chain " " rule, "1:" id)
	}
}
# print_root prints a root chain in the order of phases, and of IDs within a phase.
function print_root(table, chain,   i, k, n, order) {
	n = size[table, chain]
	for (i = 1; i <= n; i++) {
		for (k = i; k > 1 && mark_of[table, chain, order[k - 1]] > mark_of[table, chain, i]; k--) order[k] = order[k - 1]
		order[k] = i
	}
	for (i = 1; i <= n; i++) print out[table, chain, order[i]]
}
# keeps reports whether a loaded chain stays as it is.
function keeps(table, chain,   id) {
	if ((table, chain) in declared || mode == "remove") return 0
	if (chain ~ /^PORTTRIAL_/) return on_trial && mode != "trial"
	id = owner(chain)
	if (chain ~ /^PORTTRIAL-/) return on_trial && mode != "trial" && (mode == "keep" || !(id in gone))
	if (chain !~ /^PORTKNOCK-/) return 0
	return mode == "trial" || mode == "cancel" || old_layout && mode == "unload" || !(id in gone) && id in in_force
}
BEGIN {
	hook["mangle"] = "PREROUTING"
	hook["filter"] = hook["input"] = "INPUT"
	suffix["input"] = "IN"
	n = split(ids, word, " ")
	for (i = 1; i <= n; i++) gone[word[i]] = 1
}
$0 == "# new" { complete = 1; table = ""; next }
/^\*/ { table = substr($1, 2) }
!complete && /^:PORT(KNOCK|TRIAL|SPENT)(IN)?[-_ ]/ {
	root(substr($1, 2))
	chains[table, ++chain_count[table]] = chain
}
!complete && /^\[/ {
	root($4 == "-j" && NF == 5 ? $5 : $3)
	if ($3 == hook[table] && $4 == "-j" && chain == "PORTKNOCK" && NF == 5) jumps[table]++
	else if (chain == "PORTKNOCK" && / -g PORTTRIAL(IN)?$/) { if (table == "mangle") old_gate = $0 }
	else if ($3 == chain suffix[table] && (chain == "PORTKNOCK" || chain == "PORTTRIAL")) {
		n = ++loaded[table, chain]
		old_rule[table, chain, n] = $0
		old_mark[table, chain, n] = label($0)
		if (label($0) == "") old_layout = 1
	} else if (/ portspent_/ && match($0, /--name portspent_[^ ]+( --mask [^ ]+)?/)) {
		spent_list[++spents] = substr($0, RSTART, RLENGTH)
		spent_by[spents] = $3
	}
}
!complete { next }
/^[^#]/ { last = $0 }
$0 == "# part" { body[++bodies] = $0 }
/^[-:]/ {
	chain = /^:/ ? substr($1, 2) : $1 == "-A" ? $2 : $3
	if ($1 == "-I") next
	root(chain)
	if (chain == "PORTKNOCK" || chain == "PORTTRIAL") {
		mark = label($0)
		if (/^:/ || mark ~ /:-$/ && repeated[table, $0]++) next
		n = ++news[table]
		new_rule[table, n] = $0
		new_mark[table, n] = mark
		if (mark ~ /:-$/) shared[table] = 1
		else gone[substr(mark, 3)] = 1
		next
	}
	if (/^:/) declared[table, chain] = 1
	if (match($0, /--name portspent_[^ ]+/)) refers[substr($0, RSTART, RLENGTH)] = 1
	body[++bodies] = $0
}
END {
	if (!complete) exit 1
	loads = mode == "load" || mode == "keep"
	if ((loads || mode == "trial") && last != "COMMIT") exit 2 # the file was cut off
	if (mode == "trial" || mode == "keep") on_trial = mode == "trial" || old_gate != ""
	else if (mode != "cancel" && mode != "remove" && old_gate != "" && match(old_gate, /--datestop [^ ]+/) &&
		substr(old_gate, RSTART + 11, RLENGTH - 11) >= now)
		for (i = 1; i <= chain_count["mangle"]; i++)
			if (chains["mangle", i] ~ /^PORTTRIAL-/ && !(owner(chains["mangle", i]) in gone)) on_trial = 1
	if (mode != "trial") gate = old_gate
	tables = split("mangle input filter", name, " ")
	for (i = 1; i <= tables; i++) {
		t = name[i]
		if (mode == "remove") break
		copy(t, "PORTKNOCK", "PORTKNOCK", mode != "trial" && mode != "cancel", !loads)
		if (loads) add(t, "PORTKNOCK")
		if (!on_trial) continue
		copy(t, mode == "trial" ? "PORTKNOCK" : "PORTTRIAL", "PORTTRIAL", mode != "keep", 0)
		if (mode == "trial" || mode == "load") add(t, "PORTTRIAL")
	}
	spare("PORTKNOCK")
	spare("PORTTRIAL")
	for (i = 1; i <= tables; i++) {
		t = name[i]
		gated = on_trial && (t == "mangle" || used[t, "PORTKNOCK"] || used[t, "PORTTRIAL"])
		needed = gated || used[t, "PORTKNOCK"]
		if (!needed && !chain_count[t] && !jumps[t] && (t != "mangle" || !bodies)) continue
		print "*" (t == "input" ? "mangle" : t)
		knock_chain = "PORTKNOCK" suffix[t]
		if (t == "mangle") {
			for (k = 1; k <= bodies; k++) print body[k]
			if (bodies) print "# part"
		}
		if (needed) print ":" knock_chain " - [0:0]"
		if (gated) {
			print ":PORTTRIAL" suffix[t] " - [0:0]"
			if (mode == "trial" && t == "mangle") print ":PORTTRIAL_" marker " - [0:0]"
			rule = gate
			sub(/-A PORTKNOCK /, "-A " knock_chain " ", rule)
			print rule suffix[t]
			print_root(t, "PORTTRIAL")
		}
		if (needed) print_root(t, "PORTKNOCK")
		if (needed && !jumps[t]) print "-I " hook[t] " -j " knock_chain
		for (k = needed ? 2 : 1; k <= jumps[t]; k++) print "-D " hook[t] " -j " knock_chain
		if (t == "mangle") {
			lists = 0
			for (k = 1; k <= spents; k++) if (keeps(t, spent_by[k])) refers[list_name(spent_list[k])] = 1
			for (k = 1; k <= spents && (needed || mode == "cancel"); k++) {
				if (refers[list_name(spent_list[k])]++) continue
				if (!lists++) print ":PORTSPENT - [0:0]"
				print "-A PORTSPENT -m recent --rcheck " spent_list[k]
			}
			if (needed) {
				if (!lists++) print ":PORTSPENT - [0:0]"
				print "-A PORTSPENT -m recent --rcheck --name portknock_clock"
			}
		}
		olds = 0
		for (k = 1; k <= chain_count[t]; k++) {
			chain = chains[t, k]
			if (chain == "PORTKNOCK" ? needed : chain == "PORTTRIAL" ? gated : chain == "PORTSPENT" ? lists : \
				mode == "trial" && chain == "PORTTRIAL_" marker ? 1 : (t, chain) in declared || keeps(t, chain)) continue
			if (olds++ % 100 == 0) print "# part"
			old[olds] = chain suffix[t]
			print ":" old[olds] " - [0:0]"
		}
		for (k = 1; k <= olds; k++) {
			if (k % 100 == 1) print "# part"
			print "-X " old[k]
		}
		print "COMMIT"
	}
}'

# ipt_merge prints the input of PROGRAM-restore for a MODE of ipt_program. The new rules
# are in ipt_text. If EMPTY is given, no rules are loaded yet.
ipt_merge() { # PROGRAM MODE [EMPTY]
	{
		[ "${3-}" ] || "$1-save" -c -t mangle 2>/dev/null || exit
		[ "${3-}" ] || "$1-save" -c -t filter 2>/dev/null # fails if the kernel lacks this table
		echo "# new"
		printf '%s\n' "$ipt_text"
	} | awk -v mode="$2" -v ids="$ipt_ids" -v gate="$ipt_gate" -v marker="$id" \
		-v now="$(date -u +%Y-%m-%dT%H:%M:%S)" "$ipt_program"
}

# ipt_restore loads the rules in ipt_merged. With --test it only checks them.
ipt_restore() { # PROGRAM [--test]
	ipt_errors=$(printf '%s\n' "$ipt_merged" | "$1-restore" -w --noflush -c ${2:+"$2"} 2>&1) && return
	case ${2-}$ipt_errors in
	--test*) ;;
	*'Message too long'*) # an unprivileged container refuses many rules at once
		printf '%s\n' "$ipt_merged" | awk -v r="$1-restore -w --noflush -c" '
			/^\*/ { table = $0 }
			/^# part$/ { print "COMMIT" | r; if (close(r)) exit 1; print table | r }
			{ print | r }
			END { exit close(r) != 0 }' && return
		;;
	esac
	printf '%s\n' "$ipt_errors" >&2
	return 1
}

# ipt_is_old reports whether an earlier version of portknock wrote the loaded rules. Their
# comments do not show which part has a rule.
ipt_is_old() {
	iptables -w -t mangle -S PORTKNOCK 2>/dev/null | grep -e ^-A | grep -qv -e --comment -e '-g PORTTRIAL$'
}

# ipt_change loads ipt_text in a MODE of ipt_program, first for IPv4 and then for IPv6. It
# checks both families before it changes one.
ipt_change() { # MODE
	# The lists of xt_recent show the stage of each address, which reveals the knocks. The
	# administrator's own size of the lists has priority over 4096 addresses.
	ipt_size='ip_list_tot=4096 ip_list_hash_size=512'
	! grep -qs '^options  *xt_recent .*ip_list_tot' /etc/modprobe.d/*.conf /run/modprobe.d/*.conf || ipt_size=
	# shellcheck disable=SC2086 # two words
	modprobe -q xt_recent ip_list_perms=0600 $ipt_size 2>/dev/null
	[ "$1" != load ] || ! ipt_is_old ||
		echo "portknock: replacing rules of an earlier version: load the rules of all profiles again" >&2
	for ipt_step in --test ''; do
		for ipt_t in iptables ip6tables; do
			ipt_merged=$(ipt_merge $ipt_t "$1")
			case $? in
			0) ;;
			2) echo "portknock: the rules are incomplete: load a complete file" >&2 && return 1 ;;
			*) echo "portknock: $ipt_t-save cannot list the table mangle" >&2 && return 1 ;;
			esac
			[ -z "$ipt_merged" ] || ipt_restore $ipt_t "$ipt_step" || return
		done
	done
	# If the module was loaded before, its lists are readable by all users.
	chmod 600 /proc/net/xt_recent/portknock_* /proc/net/xt_recent/porttrial_* \
		/proc/net/xt_recent/portspent_* 2>/dev/null || :
}

# ipt_test checks that this machine can load ipt_text. If possible, it loads the rules in a
# new network namespace, and compares the number of rules.
ipt_test() {
	for ipt_t in iptables ip6tables; do
		ipt_merged=$(ipt_merge $ipt_t load) && ipt_restore $ipt_t --test || return
		unshare -n true 2>/dev/null || continue
		ipt_other=-6
		[ $ipt_t = iptables ] || ipt_other=-4
		ipt_merged=$(ipt_merge $ipt_t load empty)
		ipt_want=$(printf '%s\n' "$ipt_merged" | grep -v "^$ipt_other " | grep -c -e '-A ')
		# shellcheck disable=SC2016 # the inner shell expands $0
		if ! ipt_got=$(printf '%s\n' "$ipt_merged" |
			unshare -n sh -c '"$0-restore" -w --noflush -c && "$0-save"' $ipt_t 2>&1); then
			case $ipt_got in *'Message too long'*) continue ;; esac
			printf '%s\n' "$ipt_got" >&2
			return 1
		fi
		ipt_got=$(printf '%s\n' "$ipt_got" | grep -c -e '^-A PORT')
		[ "$ipt_got" -eq "$ipt_want" ] && continue
		echo "portknock: $ipt_t loads only $ipt_got of $ipt_want rules" >&2
		return 1
	done
}

# ipt_plain runs the verb ipt_verb on the rules in ipt_file. The command in the header of
# the file calls it, so a file that was cut off does nothing.
ipt_verb=${1-} ipt_file=${2-}
ipt_plain() {
	ipt_text=$(cat <"$ipt_file") || return
	ipt_ids='' ipt_gate='' id=''
	# Two loads at once could each undo what the other adds to the root chains.
	mkdir -m 700 /run/portknock 2>/dev/null
	if command -v flock >/dev/null && [ -w /run/portknock ]; then
		exec 9>/run/portknock/lock
		flock 9
	fi
	case $ipt_verb in
	test) ipt_test ;;
	load) ipt_change load ;;
	unload)
		ipt_ids=$(printf '%s\n' "$ipt_text" | sed -n 's/.* --comment "7:\([a-z0-9_]*\)".*/\1/p' | tr '\n' ' ')
		ipt_text=
		ipt_change unload
		;;
	esac
}
#>plain

# ipt_rules prints the rules of parts.
ipt_rules() { # ID...
	for ipt_id; do
		"rules_$ipt_id"
		echo "# part"
	done
}

# ipt_do runs ipt_change MODE with the rules on stdin.
ipt_do() { # MODE [ID...]
	ipt_mode=$1
	shift
	ipt_text=$(cat) ipt_ids=$*
	ipt_change "$ipt_mode"
}

# ipt_date prints a second since 1970 as the time match reads it, in UTC.
ipt_date() { date -u -d "@$1" +%Y-%m-%dT%H:%M:%S; }

# ipt_lists prints the files of lists whose names begin with PREFIX.
ipt_lists() { # PREFIX
	for ipt_list in /proc/net/xt_recent/"$1"*; do
		[ ! -e "$ipt_list" ] || printf '%s\n' "$ipt_list"
	done
}

# ipt_saved prints the rules of both families, with "4 " or "6 " before each line. Each
# rule begins with its counters.
ipt_saved() {
	iptables-save -c -t mangle 2>/dev/null | sed 's/^/4 mangle /'
	iptables-save -c -t filter 2>/dev/null | sed 's/^/4 filter /'
	ip6tables-save -c -t mangle 2>/dev/null | sed 's/^/6 mangle /'
	ip6tables-save -c -t filter 2>/dev/null | sed 's/^/6 filter /'
}

fw_test() { # ID...
	ipt_text=$(ipt_rules "$@") ipt_ids=''
	ipt_test
}

fw_load() { # ID...
	ipt_rules "$@" | ipt_do load
}

fw_trial() { # SECONDS ID...
	ipt_start=$(date +%s)
	ipt_gate="-A PORTKNOCK -m time --datestart $(ipt_date "$ipt_start")"
	ipt_gate="$ipt_gate --datestop $(ipt_date $((ipt_start + $1 - 1))) -g PORTTRIAL" # the last second counts
	shift
	# An earlier trial may have left lists. Its openings would look like a proof of this one.
	for ipt_list in $(ipt_lists porttrial_); do
		{ echo / >"$ipt_list"; } 2>/dev/null || : # an unprivileged container may not write lists
	done
	ipt_rules "$@" | sed 's/PORTKNOCK/PORTTRIAL/g; s/--name portknock_/--name porttrial_/g' | ipt_do trial
}

fw_trial_left() {
	for ipt_t in iptables ip6tables; do
		$ipt_t -w -t mangle -S PORTKNOCK 2>/dev/null
	done | awk -v now="$(date +%s)" '
		# seconds returns the seconds since 1970 of a date in UTC, such as 2026-11-21T09:30:00.
		function seconds(date,   p, y, m) {
			split(date, p, /[-T:]/)
			y = p[1] - (p[2] <= 2)
			m = (p[2] + 9) % 12
			return (365 * y + int(y / 4) - int(y / 100) + int(y / 400) + int((153 * m + 2) / 5) + p[3] - 719469) * 86400 + \
				p[4] * 3600 + p[5] * 60 + p[6]
		}
		/ -g PORTTRIAL$/ && match($0, /--datestop [^ ]+/) {
			# The kernel still uses the copies in the last second.
			left = seconds(substr($0, RSTART + 11, RLENGTH - 11)) + 1 - now
			if (left > most) most = left
		}
		END { if (most > 0) print most }'
}

fw_trial_id() {
	ipt_saved | sed -n '/:PORTTRIAL_/{s/.*:PORTTRIAL_\([0-9a-f]*\) .*/\1/p;q;}'
}

fw_trial_parts() {
	ipt_saved | sed -n 's/^[46] mangle :PORTTRIAL-\([a-z0-9_]*\)[- ].*/\1/p' | sort -u
}

# fw_proved looks at the table mangle only: in the table filter, the drop policy counts
# connections to guarded ports from everyone who has passed the table mangle.
fw_proved() { # ID
	ipt_saved | grep -e "^[46] mangle .*-A PORTTRIAL .*--comment \"[14]:$1\"" | grep -v ' -j LOG ' | grep -qv ' \[0:'
}

fw_keep() { # ID...
	# While the parts replace the old ones, the copies stay in force.
	ipt_rules "$@" | ipt_do keep || return
	if ipt_clock; then
		# This renews the age of the openings: they last OpenFor from now on.
		for ipt_id; do
			ipt_open "$ipt_id" porttrial | while read -r ipt_addr _; do
				echo "+$ipt_addr" >"/proc/net/xt_recent/portknock_${ipt_id}_open"
			done
		done
	else
		echo "portknock: this container cannot keep the openings of the trial: clients must knock again" >&2
	fi
	# If something stops this between IPv4 and IPv6, the next keep or cancel completes it.
	fw_cancel
}

fw_cancel() { ipt_do cancel </dev/null; }

fw_unload() { # ID...
	ipt_do unload "$@" </dev/null
}

fw_remove() { ipt_do remove </dev/null; }

# fw_trusted_came is true if a connection from a trusted source has come since the trial began.
fw_trusted_came() { # ID
	ipt_saved | grep -e "^[46] mangle .*-A PORTTRIAL\(IN\)\{0,1\} .*--comment \"[14]:$1 trusted\"" | grep -qv ' \[0:'
}

# fw_parts leaves out parts that one family lacks, and all parts if a jump is missing, because
# then the guard has a gap. It leaves out the plain drops of fw_close, which do not know knocks.
fw_parts() {
	ipt_saved | awk '
		/-A PREROUTING -j PORTKNOCK$/ { before[$1] = 1 }
		/-A INPUT -j PORTKNOCKIN$/ { after[$1] = 1 }
		$2 == "mangle" && $5 == "PORTKNOCK" && match($0, /--comment "?[14]:[a-z0-9_]+("| -)/) {
			id = substr($0, RSTART, RLENGTH)
			gsub(/.*:|[" -]/, "", id)
			in_family[id, $1] = 1
			ids[id] = 1
		}
		END {
			if (!(before[4] && before[6] && after[4] && after[6])) exit
			for (id in ids) if (in_family[id, 4] && in_family[id, 6]) print id
		}' | sort
}

# ipt_listing prints the rules of a part in one root chain. It leaves out what depends on
# other parts: rules of the table filter that let the guarded ports pass, and the jump to
# rules of other parts.
ipt_listing() { # ID PORTKNOCK|PORTTRIAL
	ipt_saved | sed 's/ \[[0-9:]*\]//' | awk -v id="$1" -v root="$2" '
		$3 == "-A" && $5 == "-j" && ($6 == root || $6 == root "IN") { jump[$1, $2, $6] = $0 }
		$3 == "-A" && ($4 == root || $4 == root "IN") && $0 ~ ":" id "( trusted)?\"" && !($2 == "filter" && /--comment "1:/) {
			if (($1, $2, $4) in jump) print jump[$1, $2, $4]
			delete jump[$1, $2, $4]
			print
		}
		{ chain = $3 == "-A" ? $4 : substr($3, 2) }
		chain == root "-" id || index(chain, root "-" id "-") == 1 { print }'
}

# fw_listing does not need -s, because the only constant sets of iptables are chains.
fw_listing() { # ID [-s]
	ipt_listing "$1" PORTKNOCK
}

# fw_changed is true if the copy of a part has other rules than the part in force.
fw_changed() { # ID
	[ "$(ipt_listing "$1" PORTKNOCK | grep -v ' -j PORTKNOCK\(IN\)*$' | cksum)" != \
		"$(ipt_listing "$1" PORTTRIAL | sed 's/PORTTRIAL/PORTKNOCK/g; s/--name porttrial_/--name portknock_/g' | cksum)" ]
}

fw_counters() { # ID
	ipt_saved | awk -v id="$1" -v stages="$(value stages "$1")" -v trust="$(value trust "$1")" '
		$4 != "-A" { next }
		{ n = substr($3, 2) + 0 }
		$5 ~ /^PORT(KNOCK|TRIAL)IN$/ {
			# The other root chain counts the packets that these rules let through.
			if (index($0, ":" id "\"") && /--comment "[25]:/) dropped += n
			next
		}
		$5 == "PORTKNOCK" || $5 == "PORTTRIAL" {
			if ($2 == "mangle" && index($0, ":" id "\"")) {
				if (/--comment "[14]:/ && !/ -j LOG /) through += n
				if (/--comment "[25]:/) dropped += n
			}
			if ($2 == "mangle" && index($0, ":" id " trusted\"") && !/ -j LOG /) trusted += n
			next
		}
		{ chain = $5; sub(/^PORT(KNOCK|TRIAL)-/, "", chain); sub(/-.*/, "", chain) }
		chain != id { next }
		/ -g [^ ]*-no$/ { refused += n }
		/--set --name portspent_[^ ]*_by / { spent += n }
		match($0, /--comment "stage [0-9]+/) { stage[substr($0, RSTART + 17, RLENGTH - 17) + 0] += n }
		END {
			print "let_through " through + 0
			if (trust) print "trusted " trusted + 0
			print "dropped " dropped + 0
			for (i = 1; i <= stages; i++) print "stage" i " " stage[i] + 0
			if (!stages) print "tokens_spent " spent + 0 "\ntokens_refused " refused + 0
		}'
}

# ipt_stamp writes an address to the list portknock_clock, which no packet changes, and
# prints the kernel time of this entry. The lists count time in ticks since the boot.
ipt_stamp() {
	echo +0.0.0.0 >/proc/net/xt_recent/portknock_clock
	sed -n 's/^src=0\.0\.0\.0 .*last_seen: \([0-9]*\).*/\1/p' /proc/net/xt_recent/portknock_clock
}

# ipt_clock sets ipt_hz to the ticks in a second, as the kernel was configured. If no file
# has this number, ipt_clock measures it. It fails if the lists cannot be written.
ipt_clock() {
	[ -w /proc/net/xt_recent/portknock_clock ] || return
	[ -z "${ipt_hz-}" ] || return 0
	ipt_hz=$({ zcat /proc/config.gz || cat "/boot/config-$(uname -r)"; } 2>/dev/null | sed -n 's/^CONFIG_HZ=//p')
	[ -z "$ipt_hz" ] || return 0
	ipt_start=$(ipt_stamp)
	sleep 1
	ipt_hz=$(awk -v n="$(($(ipt_stamp) - ipt_start))" 'BEGIN {
		split("100 250 300 1000", hz, " ")
		for (i = 1; i <= 4; i++) {
			gap = n > hz[i] ? n - hz[i] : hz[i] - n
			if (i == 1 || gap < least) { least = gap; best = hz[i] }
		}
		print best
	}')
}

# ipt_open prints the addresses in a list of openings, with the seconds that are left. It
# leaves out openings that have ended. PREFIX is portknock, or porttrial for a copy.
ipt_open() { # ID PREFIX
	[ -e "/proc/net/xt_recent/${2}_${1}_open" ] || return 0
	ipt_for=$(ipt_saved |
		sed -n "/--comment \"[14]:/s/.* -A PORT.*--seconds \([0-9]*\) .*--name ${2}_${1}_open .*/\1/p" | sed q)
	awk -v now="$(ipt_stamp)" -v hz="$ipt_hz" -v long="${ipt_for:-0}" '
		# short returns an address without the zeros that the kernel writes for IPv6.
		function short(addr,   zeros, at) {
			if (addr !~ /:/) return addr
			addr = ":" addr ":"
			while (match(addr, /:0[1-9a-f]|:00/)) addr = substr(addr, 1, RSTART) substr(addr, RSTART + 2)
			for (zeros = ":0:0:0:0:0:0:0:0:"; length(zeros) > 3; zeros = substr(zeros, 3))
				if ((at = index(addr, zeros)) > 0) {
					addr = substr(addr, 1, at) "x" substr(addr, at + length(zeros) - 1)
					break
				}
			sub(/^:/, "", addr)
			sub(/:$/, "", addr)
			if (!sub(/:x:/, "::", addr)) if (!sub(/^x:/, "::", addr)) sub(/:x$/, "::", addr)
			return addr == "x" ? "::" : addr
		}
		/^src=/ && match($0, /last_seen: [0-9]+/) {
			age = now - substr($0, RSTART + 11, RLENGTH - 11)
			if (age < 0) age += 4294967296 # a kernel of 32 bits
			left = long - int(age / hz)
			if (left > 0) print short(substr($1, 5)), left
		}' "/proc/net/xt_recent/${2}_${1}_open"
}

fw_admitted() { # ID
	ipt_clock || return 0
	ipt_prefix=portknock
	[ -z "$(fw_trial_left)" ] || ! fw_trial_parts | grep -qx "$1" || ipt_prefix=porttrial
	ipt_open "$1" $ipt_prefix
}

# ipt_trust prints rules of both root chains that let pass what a match and a trusted source
# select. PHASE is that of the rule.
ipt_trust() { # ID PHASE MATCH
	trusted "$1" | while read -r ipt_kind ipt_source; do
		case $ipt_kind in
		interface) ipt_flag='' ipt_source="-i $ipt_source" ;;
		*) ipt_flag="-${ipt_kind#ipv} " ipt_source="-s $ipt_source" ;;
		esac
		for ipt_chain in PORTKNOCK PORTKNOCKIN; do
			echo "$ipt_flag-A $ipt_chain $3 $ipt_source -m comment --comment \"$2:$1 trusted\" -j RETURN"
		done
	done
}

# fw_close closes the ports of parts to everyone but trusted sources, before NAT and at input.
fw_close() { # ID...
	for ipt_id; do
		echo "*mangle"
		echo '-A PORTKNOCK -i lo -m comment --comment "0:-" -j RETURN'
		echo '-A PORTKNOCK -m conntrack --ctstate ESTABLISHED,RELATED -m comment --comment "3:-" -j RETURN'
		echo '-A PORTKNOCKIN -i lo -m comment --comment "0:-" -j RETURN'
		echo '-A PORTKNOCKIN -m conntrack --ctstate ESTABLISHED,RELATED -m comment --comment "3:-" -j RETURN'
		echo '-A PORTKNOCK -m addrtype ! --dst-type LOCAL -m comment --comment "6:-" -j RETURN'
		echo '-A PORTKNOCK -p tcp ! --syn -m comment --comment "6:-" -j RETURN'
		for ipt_port in $(value ports "$ipt_id"); do
			ipt_number=$(printf '%s\n' "${ipt_port%/*}" | tr - :)
			if [ "${ipt_port#*/}" = tcp ]; then
				ipt_trust "$ipt_id" 1 "-p tcp --syn --dport $ipt_number"
				ipt_match="-p tcp --dport $ipt_number --tcp-flags RST,ACK NONE"
				ipt_mark="-m comment --comment \"2:$ipt_id\" -j DROP"
				echo "-A PORTKNOCK $ipt_match -m addrtype --dst-type LOCAL $ipt_mark"
				echo "-A PORTKNOCKIN $ipt_match $ipt_mark"
				continue
			fi
			ipt_trust "$ipt_id" 4 "-p udp --dport $ipt_number"
			ipt_mark="-m comment --comment \"5:$ipt_id\" -j DROP"
			for ipt_local in '-4 -m addrtype --dst-type LOCAL,BROADCAST,MULTICAST' \
				'-6 -m addrtype --dst-type LOCAL,ANYCAST' '-6 -d ff00::/8'; do
				echo "${ipt_local%% *} -A PORTKNOCK -p udp --dport $ipt_number ${ipt_local#* } $ipt_mark"
			done
			echo "-A PORTKNOCKIN -p udp --dport $ipt_number $ipt_mark"
		done
		echo COMMIT
	done | ipt_do load
}
