package rules

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// emitNftables writes one file for nft.
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

// nftDocument returns the document of rules, without notes. The command nft reads them
// from file.
func nftDocument(r nftRules, nft, file string) document {
	load, sets := nft+"-f "+file, ""
	for _, g := range r.guards {
		sets += nftExpand(g, r.options, "", " openN_ID")
	}
	return document{
		check:  nft + "-c -f " + file,
		load:   load,
		refuse: refuseToOpen("nft list chain inet portknock guard", r.guards),
		// The command watch prints the counters and the admitted addresses. Option -t
		// omits the elements of sets, which contain sequences and tokens.
		watch: "nft -t list table inet portknock; for s in" + sets + "; do nft list set inet portknock $s; done",
		undo:  "nft delete table inet portknock",
		// nft quotes a line of the file after each error. The line may contain sequences
		// or tokens, and the output of a service goes to the journal. Thus reload prints
		// the errors without the quotes.
		reload: `e=$(` + load + ` 2>&1) || { printf "%s\n" "$e" | sed -n "/: Error: /p" >&2; ` +
			`echo "portknock: nft did not load the rules" >&2; false; }`,
		body: r.text(),
	}
}

// nftVersionNote names the versions of nft that can load the rules. The oldest version
// in it is the oldest one that the tests use.
func nftVersionNote(guards []guard) string {
	if slices.ContainsFunc(guards, guard.tokens) {
		return "Tokens do not work with nft 1.0.2. Use a later version; 1.0.6 is known to work."
	}
	return "These rules need nft 1.0.2 or later."
}

// setSize is the most addresses in a set. Every file must use the same number, because
// the size of a loaded set cannot change.
const setSize = 65536

// floodNote returns a note about floods of knocks that fill the sets. An element lives
// for KnockTimeout, and the kernel may need three more seconds to remove it.
func floodNote(guards []guard) string {
	longest := time.Duration(0)
	for _, g := range guards {
		if !g.tokens() { // an attacker cannot forge tokens
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

// nftRules is the input for the nftables text.
type nftRules struct {
	guards    []guard
	options   Options
	automaton bool // rules judge knocks and tokens; else a daemon fills the sets of admitted addresses
}

// nftFamily is an address family. Each guard has separate sets for each family, because
// a set holds addresses of one length.
type nftFamily struct{ n, addr, proto string }

var nftFamilies = []nftFamily{{"4", "ip saddr", "ipv4"}, {"6", "ip6 saddr", "ipv6"}}

// nftMatches returns one expression for each transport that has ports, such as
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

// nftStage writes a window's number and a stage in it as a packet priority. While the
// rules judge a packet, its priority is the register for the stage. The priority is
// free, because local input does not use it. The packet's mark is not free, because
// other rules use it. The priority has room for 27 bits of the number, so that all
// windows of a file differ.
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

// nftExpand returns the text perGuard, followed by the text perFamily once for each
// family. It replaces placeholders in capitals, such as OPENFOR, with values of the guard.
// In perFamily, it also replaces N_, SADDR and PROTO with values of the family. All
// replacements in a text happen in one pass: a second pass would also replace a
// placeholder in a value, such as in the name of a profile.
func nftExpand(g guard, o Options, perGuard, perFamily string) string {
	repeat, consume := "return", ""
	if o.Consume {
		repeat, consume = "drop", "\n\t\tdrop"
	}
	// The rules must remember a spent token for as long as it is valid: Period + 2 Skew.
	// This is less than two Periods, because Period must be more than twice Skew. One
	// minute more covers a clock that is set back.
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

// text returns the rules, from the first table line on. Sets and their elements come
// first, so that an earlier guard stays in force until the new guard replaces it. This
// also holds for a load in parts.
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
	// A TCP packet without a SYN belongs to a session, which may be older than the
	// rules. UDP has no such mark, so the rule for established flows precedes UDP's rules.
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

// sets returns the declarations of a guard's sets. Sets of the same name have the same
// declaration for every schedule, except for their timeouts, because the kernel keeps
// the first declaration of a set. A set also stays if the next file does not declare
// it, so that spent tokens stay known.
//
// Each dynamic set declares a timeout, although every element has one, because nft
// 1.0.2 drops the timeout of a map's element without an error.
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

// knockJumps returns the rules that select packets which count as knocks, right or
// wrong, and lead them to the guard's chains.
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
	// The rules try the first knock of each current window. Around a boundary, there
	// are two windows. One map cannot hold both, so even and odd windows have a map each.
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

// nftPartElements is the most elements in a part. An unprivileged container refuses
// more than about 130 kB at once, and loads the file in parts. Elsewhere the whole file
// loads in one transaction.
const nftPartElements = 2000

// nftElements writes the elements of a guard's sets: sequences, tokens and ports.
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
			for i, s := range w.Steps { // each stage and its knock lead to the next stage
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

// inputChain writes the chain that closes all other ports, and the end of the table.
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

// These are the texts for nftExpand.
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

	// Two addresses may send one token at the same moment. The kernel then makes only
	// one element for the token. The element's quota is 86 bytes, which is enough for
	// the first packet only: one packet with a token has 44 to 84 bytes, two have 88 or
	// more. If the set has no room for the element, the token does not admit an address.
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

	// The rules for a first knock stand between nftStageChains and nftAdvanceChains.
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
