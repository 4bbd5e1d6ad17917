package rules

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

func emitNftables(guards []guard, o Options) (document, error) {
	file := quote(o.File)
	d := nftDocument(nftRules{guards, o, true}, "nft ", file)
	d.parts = textIf(hasParts(d.body),
		`awk "/^`+partMark+`/ && close(\"nft -f -\") { exit 1 } { print | \"nft -f -\" } END { exit close(\"nft -f -\") != 0 }" `+file)
	d.notes = []string{
		`"flush ruleset" removes the guard and leaves the port open. Debian's
/etc/nftables.conf begins with it, and stopping its service does it: end that
file with the line  include "` + o.File + `"`,
		`Keep this file rather than the output of "nft list ruleset", which would
freeze who is in at that moment` + textIf(slices.ContainsFunc(guards, guard.timed), `, and outside UTC would
move the windows when clocks change`) + ".",
		nftVersionNote(guards),
		textIf(d.parts != "", `An unprivileged container may refuse so much at once ("Message too long"):
there load in parts, of which the guard itself is the last.`),
		floodNote(guards),
		textIf(slices.ContainsFunc(guards, guard.tokens), `A token serves the address that spends it first. From any other it is refused
and logged as "portknock refused". A restart of the server, an undo or a flush
forgets what is spent.`),
	}
	return d, nil
}

// nftDocument returns the document of rules that the command nft reads from a file,
// without notes.
func nftDocument(r nftRules, nft, file string) document {
	load, sets := nft+"-f "+file, ""
	for _, g := range r.guards {
		sets += nftExpand(g, r.options, "", " openN_ID")
	}
	return document{
		check:  nft + "-c -f " + file,
		load:   load,
		refuse: refuseToOpen("nft list chain inet portknock guard", r.guards),
		// The counters and the admitted addresses. Option -t leaves out what sets hold:
		// sequences and tokens.
		watch: "nft -t list table inet portknock; for s in" + sets + "; do nft list set inet portknock $s; done",
		undo:  "nft delete table inet portknock",
		// Below each error nft quotes the line of the file, which may be one of sequences
		// or tokens, and what a service says goes to the journal: only the errors
		// themselves are passed on.
		reload: `e=$(` + load + ` 2>&1) || { printf "%s\n" "$e" | sed -n "/: Error: /p" >&2; ` +
			`echo "portknock: nft did not load the rules" >&2; false; }`,
		body: r.text(),
	}
}

// nftVersionNote says which nft can load the rules: the oldest that the tests use.
func nftVersionNote(guards []guard) string {
	if slices.ContainsFunc(guards, guard.tokens) {
		return "Tokens do not work with nft 1.0.2. Use a later version; 1.0.6 is known to work."
	}
	return "These rules need nft 1.0.2 or later."
}

// setSize is how many addresses each set holds. It stays the same from file to
// file, since a loaded set cannot change its size.
const setSize = 65536

// floodNote tells what fills the sets: an element lives for KnockTimeout, and
// the kernel may take three seconds more to collect it.
func floodNote(guards []guard) string {
	longest := time.Duration(0)
	for _, g := range guards {
		if !g.tokens() { // which nobody can forge
			longest = max(longest, g.KnockTimeout)
		}
	}
	if longest == 0 {
		return ""
	}
	rate := int(setSize / (longest + 3*time.Second).Seconds())
	return fmt.Sprintf(`The kernel remembers %d knockers at once: first knocks from more than
%d forged addresses a second can keep others from knocking. Who is in
stays in.`, setSize, rate)
}

// nftRules is what the nftables text is made of. Without an automaton it only
// guards, and somebody else fills the sets of who is in.
type nftRules struct {
	guards    []guard
	options   Options
	automaton bool
}

// nftFamily is an address family. Each has sets of its own per guard: a set holds
// addresses of one length.
type nftFamily struct{ n, addr, proto string }

var nftFamilies = []nftFamily{{"4", "ip saddr", "ipv4"}, {"6", "ip6 saddr", "ipv6"}}

// nftMatches returns an expression for the ports of each transport:
// "tcp dport { 22, 80-81 }".
func nftMatches(ranges []knock.PortRange) []string {
	var all []string
	for _, t := range []knock.Transport{knock.TCP, knock.UDP} {
		if r := ofTransport(t, mergePorts(ranges)); len(r) > 0 {
			words := join(r, ", ", func(r knock.PortRange) string { return portNumbers(r, "-") })
			all = append(all, fmt.Sprintf("%s dport { %s }", t, words))
		}
	}
	return all
}

// nftStage writes a window's number and a stage in it as a packet priority. The
// priority of the packet serves as the register for the stage while the packet
// is judged, since no local input uses it; its mark would be in use by others.
// Of the number there is room for 27 bits, so that no two windows of a file meet.
func (w window) nftStage(n int) string {
	state := uint32(w.number())*knock.MaxSteps + uint32(n)
	return fmt.Sprintf("%x:%x", state>>16, state&0xffff)
}

// nftTime writes a duration as nftables reads it.
func nftTime(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return fmt.Sprintf("%dms", d.Milliseconds())
}

// nftFill returns the text once, followed by the text each for every family. Words
// in capitals stand for what differs from guard to guard, and in each the words N,
// SADDR and PROTO stand for what differs from family to family. It replaces them in
// one pass, so that a name in capitals stays as it is.
func nftExpand(g guard, o Options, perGuard, perFamily string) string {
	repeat, consume := "return", ""
	if o.Consume {
		repeat, consume = "drop", "\n\t\tdrop"
	}
	// For how long a token is known to be spent: longer than it is good for, whatever
	// the Skew, and a little more for a clock that is set back.
	remembered := 2*g.Windows[0].End.Sub(g.Windows[0].Start) + time.Minute
	words := []string{
		"NAME", g.Name, "ID", g.ID, "SIZE", fmt.Sprint(setSize), "OPENFOR", nftTime(g.OpenFor), "KNOCKTIMEOUT", nftTime(g.KnockTimeout),
		"REMEMBERED", nftTime(remembered), "REPEAT", repeat, "CONSUME", consume,
	}
	expanded := strings.NewReplacer(words...).Replace(perGuard)
	for _, f := range nftFamilies {
		expanded += strings.NewReplacer(append(words, "N_", f.n+"_", "SADDR", f.addr, "PROTO", f.proto)...).Replace(perFamily)
	}
	return expanded
}

// text returns the rules, from the first table line on. Sets and their elements
// come first, so that in parts, too, a guard that is loaded again stands until
// the new one takes its place.
func (r nftRules) text() string {
	var b lines
	b.add("\n# Rules are replaced in one step; the sets of who knocks and who is in stay.\ntable inet portknock {")
	for _, g := range r.guards {
		b.add("%s", r.sets(g))
	}
	b.add("}")
	if r.automaton {
		for _, g := range r.guards {
			nftElements(&b, g)
		}
	}
	b.add("flush table inet portknock\ntable inet portknock {")
	guarded := guardedPorts(r.guards)
	guardRules := func(t knock.Transport, beginsFlow string) {
		for _, g := range r.guards {
			for _, m := range nftMatches(ofTransport(t, g.OpenPorts)) {
				b.add("\t\t%s%s jump door_%s", m, beginsFlow, g.ID)
			}
		}
		for _, m := range nftMatches(ofTransport(t, guarded)) {
			b.add("\t\t%s%s fib daddr type { local, broadcast, anycast, multicast } counter drop", m, beginsFlow)
		}
	}
	b.add(`	# Before NAT, so that published ports are guarded too. A SYN is judged even where
	# the kernel remembers its ports from a session: who was in could begin another.
	chain guard {
		type filter hook prerouting priority -150; policy accept;
		iif lo accept`)
	// A TCP packet without a SYN belongs to a session, perhaps to one older than the
	// rules. UDP has no such mark: the rule on established flows goes before.
	guardRules(knock.TCP, " tcp flags & (fin|syn|rst|ack) == syn")
	b.add(`		ct state established,related accept comment "also makes the kernel put fragments together first"`)
	guardRules(knock.UDP, "")
	b.add("\t\tfib daddr type != local accept")
	if r.automaton {
		b.add("\t\ttcp flags & (fin|syn|rst|ack) != syn accept")
		for _, g := range r.guards {
			b.WriteString(r.knockJumps(g))
		}
		b.add("\t\tmeta priority set 0:0")
	}
	b.add("\t}")
	for _, g := range r.guards {
		b.add("%s", r.chains(g))
	}
	if r.options.DropPolicy {
		r.inputChain(&b, guarded)
	} else {
		// A file with the drop policy may have been loaded before.
		b.add("\n\tchain input {\n\t}\n}\ndelete chain inet portknock input")
	}
	return b.String()
}

// sets returns the declarations of a guard's sets. Those of one name are the same
// for every schedule, but for their timeouts: the kernel keeps a set as it was
// first declared. A set that the next file does not declare stays too, and with it
// the spent tokens. Each dynamic set declares its timeout although every element
// has one: nft 1.0.2 drops the timeout of a map's element without an error.
func (r nftRules) sets(g guard) string {
	perGuard, perFamily := "\t# NAME", nftOpenSet
	switch {
	case !r.automaton:
	case g.tokens():
		perGuard, perFamily = perGuard+nftWindowMaps+nftTokenSets, perFamily+nftSpentSets
	default:
		perGuard, perFamily = perGuard+nftWindowMaps+nftStageMaps, perFamily+nftClientSets
	}
	return nftExpand(g, r.options, perGuard, perFamily)
}

// knocks returns the rules for what counts as a knock, right or wrong.
func (r nftRules) knockJumps(g guard) string {
	if g.tokens() {
		return fmt.Sprintf("\t\tudp dport %d udp length %d jump token_%s\n", g.TokenPort, udpHeader+knock.TokenSize, g.ID)
	}
	matches := nftMatches(g.KnockPorts)
	if len(matches) == 0 {
		matches = []string{"meta l4proto { tcp, udp }"}
	}
	return nftExpand(g, r.options, "", join(matches, "", func(m string) string {
		return "\t\tmeta nfproto PROTO " + m + " jump knockN_ID\n"
	}))
}

// chains returns the chains of one guard.
func (r nftRules) chains(g guard) string {
	text := nftExpand(g, r.options, "\n\t# NAME\n\tchain door_ID {\n", "\t\tSADDR @openN_ID accept\n")
	if g.timed() && r.options.OpenAtEnd {
		text += fmt.Sprintf("\t\tmeta time >= %d accept comment \"the last window has ended\"\n", g.end().Unix())
	}
	text += "\t}"
	switch {
	case !r.automaton:
		return text
	case g.tokens():
		return text + nftExpand(g, r.options, nftTokenChains, "")
	}
	// The first knock in each of the windows of the present moment. There are two in
	// the time around a boundary: one map cannot say that, so that even and odd ones
	// have one each.
	windows := []string{"0:0"}
	if g.timed() {
		windows = []string{"meta time map @even_ID", "meta time map @odd_ID"}
	}
	first := "meta priority set meta priority . meta l4proto . th dport map @next_ID goto beginN_ID"
	if len(g.Windows[0].Steps) == 1 {
		first = "meta priority . meta l4proto . th dport @last_ID goto admitN_ID"
	}
	start := join(windows, "", func(w string) string { return "\n\t\tmeta priority set " + w + " " + first })
	return text + nftExpand(g, r.options, "", nftStageChains+start+nftAdvanceChains)
}

const udpHeader = 8 // bytes

// An unprivileged container refuses more than about 130 kB at once: there the
// file is loaded in parts. Elsewhere it is one transaction.
const nftPartElements = 2000

// nftElements writes what a guard's sequences and ports put into its sets.
func nftElements(b *lines, g guard) {
	sets := []string{"map even", "map odd", "map next", "set last", "set ignore"}
	if g.tokens() {
		sets = []string{"map even", "map odd", "set tokens"}
	}
	for _, set := range sets {
		kind, name, _ := strings.Cut(set, " ")
		b.add("flush %s inet portknock %s_%s", kind, name, g.ID)
	}
	elements := map[string][]string{}
	addElement := func(set, format string, args ...any) {
		elements[set] = append(elements[set], fmt.Sprintf(format, args...))
	}
	writeElements := func() {
		for _, set := range sets {
			if all := elements[set]; len(all) > 0 {
				b.add("add element inet portknock %s_%s { %s }", set[len("map "):], g.ID, strings.Join(all, ", "))
			}
		}
		clear(elements)
	}
	for _, r := range mergePorts(g.IgnorePorts) {
		addElement("set ignore", "%v . %s", r.Transport, portNumbers(r, "-"))
	}
	writeElements()
	windowsPerPart := nftPartElements / (1 + len(g.Windows[0].Steps) + len(g.Windows[0].Tokens))
	for windows := range slices.Chunk(g.Windows, windowsPerPart) {
		for _, w := range windows {
			if g.timed() {
				addElement(sets[w.number()&1], "%d-%d : %s", w.startSecond(g.Skew), w.endSecond(g.Skew), w.nftStage(0))
			}
			for i, s := range w.Steps { // a stage and its knock, which lead on
				if i < len(w.Steps)-1 {
					addElement("map next", "%s . %v . %d : %s", w.nftStage(i), s.Transport, s.Port, w.nftStage(i+1))
				} else {
					addElement("set last", "%s . %v . %d", w.nftStage(i), s.Transport, s.Port)
				}
			}
			for _, token := range w.Tokens {
				addElement("set tokens", "%s . 0x%x", w.nftStage(0), token)
			}
		}
		writeElements()
		if len(g.Windows) > windowsPerPart {
			b.add(partMark)
		}
	}
}

// input writes the chain that closes everything else, and ends the table.
func (r nftRules) inputChain(b *lines, guarded []knock.PortRange) {
	b.add(`
	chain input {
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		meta l4proto { icmp, ipv6-icmp } accept
		udp sport 67 udp dport 68 accept comment "DHCP"
		udp dport 546 accept comment "DHCPv6"
		tcp flags & (fin|syn|rst|ack) != syn accept comment "sessions older than the rules"`)
	for _, m := range nftMatches(guarded) {
		b.add("\t\t%s accept comment \"judged by the guard\"", m)
	}
	for _, m := range nftMatches(r.options.Allow) {
		b.add("\t\t%s accept", m)
	}
	b.add("\t}\n}")
}

// The texts for nftFill.
const (
	nftWindowMaps = `
	# The window of a moment, as a stage before the first knock.
	map even_ID { typeof meta time : meta priority; flags interval; }
	map odd_ID { typeof meta time : meta priority; flags interval; }`

	nftStageMaps = `
	# The stage of a knocker and its knock lead to the next stage.
	map next_ID { typeof meta priority . meta l4proto . th dport : meta priority; }
	set last_ID { typeof meta priority . meta l4proto . th dport; }
	set ignore_ID { typeof meta l4proto . th dport; flags interval; }`

	nftOpenSet = `
	set openN_ID { typeof SADDR; flags dynamic,timeout; timeout OPENFOR; size SIZE; }`

	nftClientSets = `
	map atN_ID { typeof SADDR : meta priority; flags dynamic,timeout; timeout KNOCKTIMEOUT; size SIZE; }
	set madeN_ID { typeof SADDR . meta l4proto . th dport; flags dynamic,timeout; timeout KNOCKTIMEOUT; size SIZE; }
	set paceN_ID { typeof SADDR; flags dynamic,timeout; timeout 10s; size SIZE; }`

	nftTokenSets = `
	# A window and what opens in it; of that, what has been spent, and by whom.
	set tokens_ID { typeof meta priority . @th,64,128; } # needs a later nft than 1.0.2
	set used_ID { typeof @th,64,128; flags dynamic,timeout; timeout REMEMBERED; size SIZE; }`

	nftSpentSets = `
	set usedbyN_ID { typeof @th,64,128 . SADDR; flags dynamic,timeout; timeout REMEMBERED; size SIZE; }`

	// Two addresses may send one token at the same moment. The kernel makes only one
	// element of it, and of that element's quota the first to come gets its share:
	// a packet of a token has 44 to 84 bytes, two have 88 and more. If there is no
	// room for the element, nobody is let in.
	nftTokenChains = `
	chain token_ID {
		meta priority set meta time map @even_ID meta priority . @th,64,128 @tokens_ID goto valid_ID
		meta priority set meta time map @odd_ID meta priority . @th,64,128 @tokens_ID goto valid_ID
	}
	chain valid_ID {
		@th,64,128 . ip saddr @usedby4_ID goto admit_ID
		@th,64,128 . ip6 saddr @usedby6_ID goto admit_ID
		meta nfproto ipv4 add @used_ID { @th,64,128 timeout REMEMBERED quota until 86 bytes } update @usedby4_ID { @th,64,128 . ip saddr timeout REMEMBERED } goto admit_ID
		meta nfproto ipv6 add @used_ID { @th,64,128 timeout REMEMBERED quota until 86 bytes } update @usedby6_ID { @th,64,128 . ip6 saddr timeout REMEMBERED } goto admit_ID
		counter
		limit rate 10/minute log prefix "portknock refused: "CONSUME
	}
	chain admit_ID {
		update @open4_ID { ip saddr timeout OPENFOR } counter
		update @open6_ID { ip6 saddr timeout OPENFOR } counterCONSUME
	}`

	// The rules for a first knock stand between the two.
	nftStageChains = `
	chain knockN_ID {
		meta priority set SADDR map @atN_ID goto midN_ID
		goto startN_ID
	}
	chain midN_ID {
		meta priority set meta priority . meta l4proto . th dport map @next_ID goto advanceN_ID
		meta priority . meta l4proto . th dport @last_ID goto admitN_ID
		SADDR . meta l4proto . th dport @madeN_ID REPEAT comment "a repeat"
		meta l4proto . th dport @ignore_ID return
		delete @atN_ID { SADDR : meta priority } comment "a wrong knock"
		goto startN_ID
	}
	chain startN_ID {`
	nftAdvanceChains = `
	}
	chain beginN_ID {
		update @paceN_ID { SADDR timeout 10s limit rate over 20/second burst 60 packets } REPEAT
		goto advanceN_ID
	}
	chain advanceN_ID {
		delete @atN_ID { SADDR : meta priority }
		add @atN_ID { SADDR timeout KNOCKTIMEOUT : meta priority }
		update @madeN_ID { SADDR . meta l4proto . th dport timeout KNOCKTIMEOUT }CONSUME
	}
	chain admitN_ID {
		delete @atN_ID { SADDR : meta priority }
		update @openN_ID { SADDR timeout OPENFOR } counterCONSUME
	}`
)
