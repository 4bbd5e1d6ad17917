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
	d := nftDocument(nftRules{o, true}, guards, "nft ", quote(o.File))
	d.notes = []string{
		textIf(slices.ContainsFunc(guards, guard.timed), `Do not save these rules with "nft list ruleset". Outside UTC, the saved times
are wrong after the clocks change.`),
		nftVersionNote(guards),
		floodNote(guards),
		textIf(slices.ContainsFunc(guards, guard.tokens), tokenNote+`
The kernel forgets used tokens when the server restarts, when you unload the
rules, and after "flush ruleset".`),
	}
	return d, nil
}

// unloadNote is the note about the command unload, which nft cannot limit to a profile.
const unloadNote = `unload removes the rules of all profiles on this server.`

// tokenNote is the note about tokens that all firewalls share.
const tokenNote = `Once used, a token works only for the address that used it, until its window
ends. The kernel log reports other uses with "portknock refused".`

// nftDocument returns the document of the guards' rules. The command nft reads them from
// file.
func nftDocument(r nftRules, guards []guard, nft, file string) document {
	d := document{
		plainNotes: []string{unloadNote},

		test:   nft + "-c -f " + file,
		load:   nft + "-f " + file,
		unload: "nft delete table inet portknock",
		shared: nftShared,
		parts:  each(guards, r.part),
	}
	d.body = d.rules()
	return d
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
	return fmt.Sprintf(`The kernel remembers up to %d addresses that have begun a sequence. An attacker
who sends first knocks from %d forged addresses a second fills this memory, and
other clients cannot knock. Admitted addresses are unaffected.`, setSize, rate)
}

// nftRules makes the text of parts. A part is what one profile has in the table: chains,
// sets and counters whose names end with the ID of the guard. Each part has chains of its
// own at the kernel's hooks, so that nft can load, replace and delete a part without
// knowing the others.
//
// A packet passes the hooks in this order:
//
//	begin        one for all parts: nothing is marked yet
//	on-let_ID    marks a new connection of an admitted address to a guarded port. It also
//	             marks those of sources that Trust lists
//	on-drop_ID   drops new connections to guarded ports that no part has marked
//	on-knock_ID  judges knocks
//	on-letin_ID  at input, after NAT: marks as on-let_ID does, and what Public lists
//	on-dropin_ID at input: drops as on-drop_ID does
//	on-allow_ID  at input, with the drop policy: marks what Allow and Trust list
//	on-close_ID  at input, with the drop policy: drops what no part has marked
//
// Because all parts mark before any part drops, an address that one part admits may
// connect although another part guards the same port.
//
// The chains on-letin_ID and on-dropin_ID are for packets that reach a guarded port of this
// server by another path: from another port by NAT, or at an address that is local by
// another routing table. A packet that a part has marked before NAT keeps its mark.
type nftRules struct {
	options   Options
	automaton bool // rules judge knocks and tokens; else a daemon fills the sets of admitted addresses
}

// nftHooks lists the hooks at which each part has a chain.
var nftHooks = []struct{ name, hook, priority string }{
	{"let", "prerouting", "-152"},
	{"drop", "prerouting", "-151"},
	{"knock", "prerouting", "-150"},
	{"letin", "input", "-3"},
	{"dropin", "input", "-2"},
	{"allow", "input", "-1"},
	{"close", "input", "0"},
}

// nftMark is the packet priority that marks a packet as let through. No queue of the
// kernel uses its major number, and its minor number selects the usual band.
const nftMark = "ffff:7070"

// nftShared is the text before all parts. Every file has it, and loading it again
// changes nothing. It also deletes the chains guard and input of older versions, which
// served all profiles of one file.
const nftShared = `# One table holds the rules of all profiles on this server. The rules come before
# NAT, so that published ports are guarded too. At input, after NAT, rules guard the ports
# again, because other ports may be redirected to them.
add table inet portknock
add chain inet portknock guard
add chain inet portknock input
add chain inet portknock begin { type filter hook prerouting priority -153; policy accept; }
flush chain inet portknock guard
flush chain inet portknock input
delete chain inet portknock guard
delete chain inet portknock input
flush chain inet portknock begin
add rule inet portknock begin meta priority ` + nftMark + ` meta priority set 0:0 comment "no packet arrives marked"
add rule inet portknock begin ct state established accept comment "makes the kernel join fragments first"
`

// nftFamily is an address family. Each guard has separate sets for each family, because
// a set holds addresses of one length.
type nftFamily struct{ n, addr, proto string }

var nftFamilies = []nftFamily{{"4", "ip saddr", "ipv4"}, {"6", "ip6 saddr", "ipv6"}}

// nftPorts returns the ports of one transport as a set, such as "{ 22, 80-81 }", or "".
func nftPorts(t knock.Transport, ranges []knock.PortRange) string {
	ports := join(ofTransport(t, mergePorts(ranges)), ", ", func(r knock.PortRange) string { return portNumbers(r, "-") })
	return textIf(ports != "", "{ "+ports+" }")
}

// nftMatches returns one expression for each transport that has ports, such as
// "tcp dport { 22, 80-81 }".
func nftMatches(ranges []knock.PortRange) []string {
	var all []string
	for _, t := range []knock.Transport{knock.TCP, knock.UDP} {
		if ports := nftPorts(t, ranges); ports != "" {
			all = append(all, fmt.Sprintf("%s dport %s", t, ports))
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

// expand returns the text perGuard, followed by the text perFamily once for each
// family. It replaces placeholders in capitals, such as OPENFOR, with values of the guard.
// In perFamily, it also replaces N_, SADDR and PROTO with values of the family. A text may
// be expanded twice, because no value contains a placeholder. TRUSTED is an exception: only
// the last expansion may have it.
func (r nftRules) expand(g guard, perGuard, perFamily string) string {
	repeat, consume, log := "return", "", ""
	if r.options.Consume {
		repeat, consume = "drop", "\n\t\tdrop"
	}
	if r.options.Log {
		log = "\n\t\tlimit rate 10/minute burst 10 packets log prefix \"portknock lets through, " + g.ID + ": \""
	}
	// The rules must remember a spent token for as long as it is valid: Period + 2 Skew.
	// This is less than two Periods, because Period must be more than twice Skew. One
	// minute more covers a clock that is set back.
	remembered := 2*g.Windows[0].End.Sub(g.Windows[0].Start) + time.Minute
	words := []string{
		"TRUSTED", `"` + strings.Join(r.options.trusted().interfaces, `", "`) + `"`,
		"ID", g.ID + g.copy, "KEY", g.keyID(), "SIZE", fmt.Sprint(setSize), "MARK", nftMark,
		"OPENFOR", nftTime(g.OpenFor), "KNOCKTIMEOUT", nftTime(g.KnockTimeout), "REMEMBERED", nftTime(remembered),
		"REPEAT", repeat, "CONSUME", consume, "LOG", log, "LAST", fmt.Sprint(g.stages()),
	}
	expanded := strings.NewReplacer(words...).Replace(perGuard)
	for _, f := range nftFamilies {
		expanded += strings.NewReplacer(append(words, "N_", f.n+"_", "SADDR", f.addr, "PROTO", f.proto)...).Replace(perFamily)
	}
	return expanded
}

// part returns the rules of one profile. Sets and their elements come first, so that an
// earlier version of the part stays in force until the new chains replace it. This also
// holds for a load in parts.
func (r nftRules) part(g guard) string {
	var b lines
	chains := r.chains(g)
	b.add("\n# profile %s\ntable inet portknock {%s", g.Name, r.sets(g))
	for _, h := range nftHooks {
		b.add("\tchain on-%s_%s { type filter hook %s priority %s; policy accept; }", h.name, g.ID, h.hook, h.priority)
	}
	for _, c := range chains {
		b.add("\tchain %s { }", c.name)
	}
	b.add("}")
	if r.automaton {
		r.elements(&b, g)
	}
	for _, h := range nftHooks {
		b.add("flush chain inet portknock on-%s_%s", h.name, g.ID)
	}
	for _, c := range chains {
		b.add("flush chain inet portknock %s", c.name)
	}
	b.add("table inet portknock {")
	for _, c := range chains {
		b.add("\tchain %s {%s\n\t}", c.name, c.rules)
	}
	b.add("}")
	for _, h := range nftHooks {
		b.add("add rule inet portknock on-%s_%[2]s goto %[1]s_%[2]s%[3]s", h.name, g.ID, g.copy)
	}
	return b.String()
}

// sets returns the declarations of a guard's sets and counters. Sets of the same name
// have the same declaration for every schedule, except for their timeouts, because the
// kernel keeps the first declaration of a set. The sets of spent tokens belong to the key
// and not to the profile, so that no other name or copy of a profile revives a token.
//
// Each dynamic set declares a timeout, although every element has one, because nft
// 1.0.2 drops the timeout of a map's element without an error.
func (r nftRules) sets(g guard) string {
	perGuard, perFamily := nftCounters, nftOpenSet
	if len(r.options.Trust) > 0 {
		perGuard += nftTrustCounter
	}
	switch {
	case !r.automaton:
	case g.tokens():
		perGuard, perFamily = perGuard+nftTokenCounters+nftWindowMaps+nftTokenSets, perFamily+nftSpentSets
	default:
		for i := range g.stages() {
			perGuard += fmt.Sprintf("\n\tcounter stage%d_ID { }", i+1)
		}
		perGuard, perFamily = perGuard+nftWindowMaps+nftStageMaps, perFamily+nftClientSets
	}
	return r.expand(g, perGuard, perFamily)
}

// nftChain is a chain that is not at a hook, with its rules.
type nftChain struct{ name, rules string }

// chains returns the chains of one guard. The first ones are those to which the chains
// at the hooks lead.
func (r nftRules) chains(g guard) []nftChain {
	text := r.letChains(g)
	switch {
	case !r.automaton:
		text += "\nchain knock_ID"
	case g.tokens():
		text += fmt.Sprintf(nftKnockChain, fmt.Sprintf("\n\t\tudp dport %d udp length %d jump token_ID", g.TokenPort, udpHeader+knock.TokenSize)) + nftTokenChains
	default:
		text += fmt.Sprintf(nftKnockChain, r.knockJumps(g))
	}
	text += r.inputChains(g)
	text = r.expand(g, text, "")
	if r.automaton && !g.tokens() {
		text += r.stageChains(g)
	}
	var chains []nftChain
	for c := range strings.SplitSeq(text, "\nchain ") {
		if name, rules, _ := strings.Cut(c, "\n"); name != "" {
			chains = append(chains, nftChain{name, textIf(rules != "", "\n"+rules)})
		}
	}
	return chains
}

// letChains returns the chains that let through or drop new connections, before NAT and at
// input. A SYN is judged even if the kernel remembers its ports from an earlier session:
// an address that was admitted then could otherwise begin another session. UDP has no
// such mark of a new connection, so the kernel's state decides.
//
// A session's packets have ACK or RST, except for its SYN. The rules also drop all other
// packets without ACK and RST, because the answer of a server would tell a scanner
// whether a service listens.
func (r nftRules) letChains(g guard) string {
	const newTCP, newUDP = " tcp flags & (fin|syn|rst|ack) == syn", " ct state != { established, related }"
	const noSession = " tcp flags & (rst|ack) == 0"
	tcp, udp := nftMatches(ofTransport(knock.TCP, g.OpenPorts)), nftMatches(ofTransport(knock.UDP, g.OpenPorts))
	text := "\nchain let_ID\n\t\tiif lo accept"
	for _, m := range tcp {
		text += "\n\t\t" + m + newTCP + " goto admitted_ID"
	}
	for _, m := range udp {
		text += "\n\t\t" + m + newUDP + " goto admitted_ID"
	}
	text += "\nchain admitted_ID" + r.expand(g, "", "\n\t\tSADDR @openN_ID goto pass_ID")
	for _, m := range r.trusted() {
		text += "\n\t\t" + m + " goto trust_ID"
	}
	if g.timed() && r.options.OpenAtEnd {
		text += fmt.Sprintf("\n\t\tmeta time >= %d goto pass_ID comment \"the last window has ended\"", g.end().Unix())
	}
	text += "\nchain pass_ID\n\t\tcounter name let_ID" + "LOG" + "\n\t\tmeta priority set MARK"
	if len(r.options.Trust) > 0 {
		// A connection from here does not prove that the knocks work, so it has its own counter.
		text += "\nchain trust_ID\n\t\tcounter name trusted_ID" + "LOG" + "\n\t\tmeta priority set MARK"
	}
	refuse := func(in string) string {
		chain := "\nchain drop" + in + "_ID\n\t\tmeta priority MARK accept\n\t\tiif lo accept"
		for _, m := range tcp {
			chain += "\n\t\t" + m + noSession + " goto refuse" + in + "_ID"
		}
		for _, m := range udp {
			chain += "\n\t\t" + m + newUDP + " goto refuse" + in + "_ID"
		}
		return chain + "\nchain refuse" + in + "_ID"
	}
	text += refuse("") + "\n\t\tfib daddr type { local, broadcast, anycast, multicast } counter name dropped_ID drop"
	text += "\nchain letin_ID\n\t\tmeta priority MARK accept"
	for _, t := range []knock.Transport{knock.TCP, knock.UDP} {
		if ports := nftPorts(t, r.options.Public); ports != "" {
			text += fmt.Sprintf("\n\t\tmeta l4proto %s ct status dnat ct original proto-dst %s meta priority set MARK accept", t, ports)
		}
	}
	return text + "\n\t\tgoto let_ID" + refuse("in") + "\n\t\tcounter name dropped_ID drop"
}

// knockJumps returns the rules that select packets which count as knocks, right or
// wrong, and lead them to the guard's chains.
func (r nftRules) knockJumps(g guard) string {
	matches := nftMatches(g.KnockPorts)
	if len(matches) == 0 {
		matches = []string{"meta l4proto { tcp, udp }"}
	}
	return r.expand(g, "", join(matches, "", func(m string) string {
		return "\n\t\tmeta nfproto PROTO " + m + " jump knockN_ID"
	}))
}

// stageChains returns the chains that follow an address through its sequence.
func (r nftRules) stageChains(g guard) string {
	// The rules try the first knock of each current window. Around a boundary, there
	// are two windows. One map cannot hold both, so even and odd windows have a map each.
	windows := []string{"0:0"}
	if g.timed() {
		windows = []string{"meta time map @even_ID", "meta time map @odd_ID"}
	}
	first := "meta priority set meta priority . meta l4proto . th dport map @next_ID goto beginN_ID"
	if g.stages() == 1 {
		first = "meta priority . meta l4proto . th dport @last_ID goto admitN_ID"
	}
	start := join(windows, "", func(w string) string { return "\n\t\tmeta priority set " + w + " \\\n\t\t\t" + first })
	if r.options.Consume {
		// A repeat may arrive after the end of its sequence. The server must not answer it.
		start += "\n\t\tSADDR . meta l4proto . th dport @madeN_ID drop comment \"a repeat\""
	}
	count := ""
	for i := 1; i < g.stages(); i++ {
		count += fmt.Sprintf("\n\t\tmeta priority & 0:%x == 0:%x counter name stage%d_ID", knock.MaxSteps-1, i, i)
	}
	return r.expand(g, "", nftStageChains+start+nftAdvanceChains+count+nftAdmitChains)
}

// trusted returns one expression for the interfaces of Trust, and one for the prefixes of
// each family. The names of interfaces follow in [nftRules.expand], because a name may
// contain a placeholder.
func (r nftRules) trusted() []string {
	var all []string
	s := r.options.trusted()
	if len(s.interfaces) > 0 {
		all = append(all, "iifname { TRUSTED }")
	}
	if len(s.ipv4) > 0 {
		all = append(all, "ip saddr { "+strings.Join(s.ipv4, ", ")+" }")
	}
	if len(s.ipv6) > 0 {
		all = append(all, "ip6 saddr { "+strings.Join(s.ipv6, ", ")+" }")
	}
	return all
}

// inputChains returns the chains that close all other ports. Without the drop policy,
// they are empty.
func (r nftRules) inputChains(g guard) string {
	if !r.options.DropPolicy {
		return "\nchain allow_ID\nchain close_ID"
	}
	text := "\nchain allow_ID"
	for _, m := range nftMatches(r.options.Allow) {
		text += "\n\t\t" + m + " meta priority set MARK"
	}
	for _, m := range r.trusted() {
		text += "\n\t\t" + m + " meta priority set MARK"
	}
	return text + nftCloseChain
}

const udpHeader = 8 // bytes

// nftPartElements is the most elements in a part. An unprivileged container refuses
// more than about 130 kB at once, and loads the file in parts. Elsewhere the whole file
// loads in one transaction.
const nftPartElements = 2000

// elements writes the elements of a guard's sets: sequences, tokens and ports.
func (r nftRules) elements(b *lines, g guard) {
	sets := []string{"map even", "map odd", "map next", "set last", "set ignore"}
	if g.tokens() {
		sets = []string{"map even", "map odd", "set tokens"}
	}
	for _, set := range sets {
		kind, name, _ := strings.Cut(set, " ")
		b.add("flush %s inet portknock %s_%s", kind, name, g.ID+g.copy)
	}
	elements := map[string][]string{}
	addElement := func(set, format string, args ...any) {
		elements[set] = append(elements[set], fmt.Sprintf(format, args...))
	}
	writeElements := func() {
		for _, set := range sets {
			if all := elements[set]; len(all) > 0 {
				b.add("add element inet portknock %s_%s { %s }", set[len("map "):], g.ID+g.copy, strings.Join(all, ", "))
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

// These are the texts for expand. In a text of chains, a line "chain NAME" begins a chain.
const (
	nftCounters = `
	counter let_ID { }
	counter dropped_ID { }`

	nftTrustCounter = `
	counter trusted_ID { }`

	nftTokenCounters = `
	counter spent_ID { }
	counter refused_ID { }`

	nftWindowMaps = `
	# The current time leads to the number of the window, as the stage before the first knock.
	map even_ID { typeof meta time : meta priority; flags interval; }
	map odd_ID { typeof meta time : meta priority; flags interval; }`

	nftStageMaps = `
	# The stage of an address and its next knock lead to the next stage.
	map next_ID { typeof meta priority . meta l4proto . th dport : meta priority; }
	set last_ID { typeof meta priority . meta l4proto . th dport; }
	set ignore_ID { typeof meta l4proto . th dport; flags interval; }`

	nftOpenSet = `
	set openN_ID { typeof SADDR; flags dynamic,timeout; timeout OPENFOR; size SIZE; }`

	nftClientSets = `
	map atN_ID { typeof SADDR : meta priority; flags dynamic,timeout; timeout KNOCKTIMEOUT; size SIZE; }
	set madeN_ID { typeof SADDR . meta l4proto . th dport; \
		flags dynamic,timeout; timeout KNOCKTIMEOUT; size SIZE; }
	set lastmadeN_ID { typeof SADDR . meta l4proto . th dport; \
		flags dynamic,timeout; timeout 1s; size SIZE; }
	set paceN_ID { typeof SADDR; flags dynamic,timeout; timeout 10s; size SIZE; }`

	nftTokenSets = `
	# The tokens of each window; the used tokens of the key; the addresses that used them.
	set tokens_ID { typeof meta priority . @th,64,128; } # nft 1.0.2 cannot read this line
	set used_KEY { typeof @th,64,128; flags dynamic,timeout; timeout REMEMBERED; size SIZE; }`

	nftSpentSets = `
	set usedbyN_KEY { typeof @th,64,128 . SADDR; flags dynamic,timeout; timeout REMEMBERED; size SIZE; }`

	nftKnockChain = `
chain knock_ID
		meta priority MARK accept
		iif lo accept
		tcp flags & (fin|syn|rst|ack) != syn accept
		ct state established,related accept
		fib daddr type != local accept%s
		meta priority set 0:0`

	// Two addresses may send one token at the same moment. The kernel then makes only
	// one element for the token. The element's quota is 86 bytes, which is enough for
	// the first packet only: one packet with a token has 44 to 84 bytes, two have 88 or
	// more. If the set has no room for the element, the token does not admit an address.
	nftTokenChains = `
chain token_ID
		meta priority set meta time map @even_ID \
			meta priority . @th,64,128 @tokens_ID goto valid_ID
		meta priority set meta time map @odd_ID \
			meta priority . @th,64,128 @tokens_ID goto valid_ID
chain valid_ID
		@th,64,128 . ip saddr @usedby4_KEY goto admit_ID
		@th,64,128 . ip6 saddr @usedby6_KEY goto admit_ID
		meta nfproto ipv4 add @used_KEY { @th,64,128 timeout REMEMBERED quota until 86 bytes } \
			update @usedby4_KEY { @th,64,128 . ip saddr timeout REMEMBERED } goto spent_ID
		meta nfproto ipv6 add @used_KEY { @th,64,128 timeout REMEMBERED quota until 86 bytes } \
			update @usedby6_KEY { @th,64,128 . ip6 saddr timeout REMEMBERED } goto spent_ID
		counter name refused_ID
		limit rate 10/minute log prefix "portknock refused: "CONSUME
chain spent_ID
		counter name spent_ID
		goto admit_ID
chain admit_ID
		update @open4_ID { ip saddr timeout OPENFOR }
		update @open6_ID { ip6 saddr timeout OPENFOR }CONSUME`

	// The rules for a first knock stand between nftStageChains and nftAdvanceChains.
	//
	// The rules also record the last knock, because its copies may arrive after the admission.
	// As it is in the set made, a copy does not set back a sequence that has begun since. As it is
	// in the set lastmade for a second, a copy does not begin a sequence whose first knock it is.
	// A first knock in made alone begins a sequence, because an address may begin again at once
	// after a wrong knock. In that second, the address is admitted anyway.
	nftStageChains = `
chain knockN_ID
		meta priority set SADDR map @atN_ID goto midN_ID
		goto startN_ID
chain midN_ID
		meta priority set meta priority . meta l4proto . th dport map @next_ID goto advanceN_ID
		meta priority . meta l4proto . th dport @last_ID goto admitN_ID
		SADDR . meta l4proto . th dport @madeN_ID REPEAT comment "a repeat"
		meta l4proto . th dport @ignore_ID return
		delete @atN_ID { SADDR : meta priority } comment "a wrong knock"
		goto startN_ID
chain startN_ID`
	nftAdvanceChains = `
chain beginN_ID
		SADDR . meta l4proto . th dport @lastmadeN_ID REPEAT comment "a repeat"
		update @paceN_ID { SADDR timeout 10s limit rate over 20/second burst 60 packets } REPEAT
		goto advanceN_ID
chain advanceN_ID
		delete @atN_ID { SADDR : meta priority }
		add @atN_ID { SADDR timeout KNOCKTIMEOUT : meta priority }
		update @madeN_ID { SADDR . meta l4proto . th dport timeout KNOCKTIMEOUT }`
	nftAdmitChains = `CONSUME
chain admitN_ID
		delete @atN_ID { SADDR : meta priority }
		update @madeN_ID { SADDR . meta l4proto . th dport timeout KNOCKTIMEOUT }
		update @lastmadeN_ID { SADDR . meta l4proto . th dport timeout 1s }
		update @openN_ID { SADDR timeout OPENFOR } counter name stageLAST_IDCONSUME`

	nftCloseChain = `
chain close_ID
		iif lo accept
		tcp flags & (rst|ack) == 0 tcp flags & (fin|syn) != syn drop comment "FIN, NULL and Xmas scans"
		meta priority MARK accept
		ct state established,related accept
		meta l4proto != { tcp, udp } accept
		udp sport 67 udp dport 68 accept comment "DHCP"
		ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept comment "DHCPv6"
		tcp flags & (rst|ack) != 0 accept comment "sessions older than the rules"
		drop`
)
