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
	load := "nft -f " + file
	text := nftRules{guards, o, true}.text()
	parts := ""
	if hasParts(text) {
		parts = `awk "/^` + partMark + `/ && close(\"nft -f -\") { exit 1 } { print | \"nft -f -\" } END { exit close(\"nft -f -\") != 0 }" ` + file
	}
	frozen := "who is in at that moment"
	if slices.ContainsFunc(guards, guard.timed) {
		frozen += ", and outside UTC would\nmove the windows when clocks change"
	}
	return document{
		check:  "nft -c -f " + file,
		load:   load,
		parts:  parts,
		refuse: nftRefuse(guards),
		watch:  nftWatch(guards),
		undo:   nftUndo,
		reload: nftQuiet(load),
		notes: []string{
			`"flush ruleset" removes the guard and leaves the port open. Debian's
/etc/nftables.conf begins with it, and stopping its service does it: end that
file with the line  include "` + o.File + `"`,
			`Keep this file rather than the output of "nft list ruleset", which would
freeze ` + frozen + `.`,
			nftVersionNote(guards),
			nftPartsNote(parts),
			floodNote(guards),
			tokenNote(guards),
		},
		body: text,
	}, nil
}

const nftUndo = "nft delete table inet portknock"

// nftQuiet returns a load for a service. Below each error nft quotes the line of the
// file, which may be one of sequences or tokens, and what a service says goes to the
// journal: only the errors themselves are passed on.
func nftQuiet(load string) string {
	return `e=$(` + load + ` 2>&1) || { printf "%s\n" "$e" | sed -n "/: Error: /p" >&2; echo "portknock: nft did not load the rules" >&2; false; }`
}

// nftWatch returns the command that shows the counters and the admitted
// addresses. Option -t leaves out what sets hold: sequences and tokens.
func nftWatch(guards []guard) string {
	sets := ""
	for _, g := range guards {
		for _, f := range nftFamilies {
			sets += fmt.Sprintf(" open%s_%s", f.n, g.ID)
		}
	}
	return "nft -t list table inet portknock; for s in" + sets + "; do nft list set inet portknock $s; done"
}

func nftRefuse(guards []guard) string {
	return refuseToOpen("nft list chain inet portknock guard", guards)
}

// nftVersionNote says which nft can load the rules: the oldest that the tests use.
func nftVersionNote(guards []guard) string {
	if slices.ContainsFunc(guards, guard.tokens) {
		return "Tokens do not work with nft 1.0.2. Use a later version; 1.0.6 is known to work."
	}
	return "These rules need nft 1.0.2 or later."
}

// nftPartsNote says what the parts are for, where there are any.
func nftPartsNote(parts string) string {
	if parts == "" {
		return ""
	}
	return `An unprivileged container may refuse so much at once ("Message too long"):
there load in parts, of which the guard itself is the last.`
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

// tokenNote tells what becomes of a token that comes twice.
func tokenNote(guards []guard) string {
	if !slices.ContainsFunc(guards, guard.tokens) {
		return ""
	}
	return `A token serves the address that spends it first. From any other it is refused
and logged as "portknock refused". A restart of the server, an undo or a flush
forgets what is spent.`
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

// nftPorts is some ports of one transport.
type nftPorts struct {
	transport knock.Transport
	ports     []knock.PortRange
}

// match returns the expression for the ports: "tcp dport { 22, 80-81 }".
func (p nftPorts) match() string {
	words := make([]string, len(p.ports))
	for i, r := range p.ports {
		words[i] = numbers(r, "-")
	}
	return fmt.Sprintf("%s dport { %s }", p.transport, strings.Join(words, ", "))
}

// begins narrows match to what opens a connection. A TCP packet without a SYN
// belongs to a session, perhaps to one older than the rules. UDP has no such
// mark: the rule on established flows has gone before.
func (p nftPorts) begins() string {
	if p.transport == knock.TCP {
		return p.match() + " tcp flags & (fin|syn|rst|ack) == syn"
	}
	return p.match()
}

// nftSplit returns ports by transport.
func nftSplit(ranges []knock.PortRange) []nftPorts {
	var all []nftPorts
	for _, t := range transports {
		if p := ports(t, ranges); len(p) > 0 {
			all = append(all, nftPorts{t, p})
		}
	}
	return all
}

// nftIgnored returns the elements of the set of ports that do not reset.
func nftIgnored(g guard) []string {
	var words []string
	for _, t := range transports {
		for _, r := range ports(t, g.IgnorePorts) {
			words = append(words, fmt.Sprintf("%s . %s", t, numbers(r, "-")))
		}
	}
	return words
}

// nftKnock is an element that leads on from a stage of a window: the stage and
// the knock.
func (w window) nftKnock(stage int) string {
	return fmt.Sprintf("%s . %s . %d", w.nftStage(stage), w.Steps[stage].Transport, w.Steps[stage].Port)
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

// text returns the rules, from the first table line on. Sets and their elements
// come first, so that in parts, too, a guard that is loaded again stands until
// the new one takes its place.
func (r nftRules) text() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("\n# Rules are replaced in one step; the sets of who knocks and who is in stay.\ntable inet portknock {")
	for _, g := range r.guards {
		p("%s", r.sets(g))
	}
	p("}")
	if r.automaton {
		for _, g := range r.guards {
			nftElements(&b, g)
		}
	}
	p("flush table inet portknock\ntable inet portknock {")
	closed := nftSplit(guarded(r.guards))
	doors := func(t knock.Transport) {
		for _, g := range r.guards {
			for _, o := range nftSplit(g.OpenPorts) {
				if o.transport == t {
					p("\t\t%s jump door_%s", o.begins(), g.ID)
				}
			}
		}
		for _, c := range closed {
			if c.transport == t {
				p("\t\t%s fib daddr type { local, broadcast, anycast, multicast } counter drop", c.begins())
			}
		}
	}
	p(`	# Before NAT, so that published ports are guarded too. A SYN is judged even where
	# the kernel remembers its ports from a session: who was in could begin another.
	chain guard {
		type filter hook prerouting priority -150; policy accept;
		iif lo accept`)
	doors(knock.TCP)
	p(`		ct state established,related accept comment "also makes the kernel put fragments together first"`)
	doors(knock.UDP)
	p(`		fib daddr type != local accept`)
	if r.automaton {
		p("\t\ttcp flags & (fin|syn|rst|ack) != syn accept")
		for _, g := range r.guards {
			if g.tokens() {
				p("\t\tudp dport %d udp length %d jump token_%s", g.TokenPort, udpHeader+knock.TokenSize, g.ID)
				continue
			}
			for _, f := range nftFamilies {
				for _, ports := range nftKnockPorts(g) {
					p("\t\tmeta nfproto %s %s jump knock%s_%s", f.proto, ports, f.n, g.ID)
				}
			}
		}
		p("\t\tmeta priority set 0:0")
	}
	p("\t}")
	for _, g := range r.guards {
		p("%s", r.chains(g))
	}
	if r.options.DropPolicy {
		p("%s\n}", r.input(closed))
	} else {
		// A file with the drop policy may have been loaded before.
		p("\n\tchain input {\n\t}\n}\ndelete chain inet portknock input")
	}
	return b.String()
}

// sets returns the declarations of a guard's sets. Those of one name are the same
// for every schedule, but for their timeouts: the kernel keeps a set as it was
// first declared. A set that the next file does not declare stays too, and with it
// the spent tokens. Each dynamic set declares its timeout although every element
// has one: nft 1.0.2 drops the timeout of a map's element without an error.
func (r nftRules) sets(g guard) string {
	text, ofFamily := "\t# NAME", nftOpen
	if r.automaton {
		shape := nftShapeOf(g)
		text += nftWindowMaps + shape.sets
		ofFamily += shape.ofFamily
	}
	for _, f := range nftFamilies {
		text += strings.NewReplacer("SADDR", f.addr, "N_ID", f.n+"_ID").Replace(ofFamily)
	}
	return strings.NewReplacer("NAME", g.Name, "ID", g.ID, "SIZE", fmt.Sprint(setSize), "OPENFOR", nftTime(g.OpenFor),
		"KNOCKTIMEOUT", nftTime(g.KnockTimeout), "REMEMBERED", nftTime(remembered(g))).Replace(text)
}

// chains returns the chains of one guard.
func (r nftRules) chains(g guard) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n\t# %s\n\tchain door_%s {\n", g.Name, g.ID)
	for _, f := range nftFamilies {
		fmt.Fprintf(&b, "\t\t%s @open%s_%s accept\n", f.addr, f.n, g.ID)
	}
	if g.timed() && r.options.OpenAtEnd {
		fmt.Fprintf(&b, "\t\tmeta time >= %d accept comment \"the last window has ended\"\n", g.until().Unix())
	}
	b.WriteString("\t}")
	if !r.automaton {
		return b.String()
	}
	verdict, consume := "return", ""
	if r.options.Consume {
		verdict, consume = "drop", "\n\t\tdrop"
	}
	if g.tokens() {
		b.WriteString(strings.NewReplacer("ID", g.ID, "REMEMBERED", nftTime(remembered(g)), "CONSUME", consume,
			"OPENFOR", nftTime(g.OpenFor)).Replace(nftTokenChains))
		return b.String()
	}
	single := len(g.Windows[0].Steps) == 1
	start := ""
	for _, window := range nftWindows(g) {
		if single {
			start += "\n\t\tmeta priority set " + window + " meta priority . meta l4proto . th dport @last_ID goto admitN_ID"
		} else {
			start += "\n\t\tmeta priority set " + window + " meta priority set meta priority . meta l4proto . th dport map @next_ID goto beginN_ID"
		}
	}
	text := ""
	for _, f := range nftFamilies {
		text += strings.NewReplacer("SADDR", f.addr, "N_ID", f.n+"_ID").Replace(strings.ReplaceAll(nftAutomaton, "START", start))
	}
	b.WriteString(strings.NewReplacer("ID", g.ID, "REPEAT", verdict, "CONSUME", consume,
		"KNOCKTIMEOUT", nftTime(g.KnockTimeout), "OPENFOR", nftTime(g.OpenFor)).Replace(text))
	return b.String()
}

// remembered is for how long a token is known to be spent: longer than it is good
// for, whatever the Skew, and a little more for a clock that is set back.
func remembered(g guard) time.Duration {
	w := g.Windows[0]
	return 2*w.End.Sub(w.Start) + time.Minute
}

const udpHeader = 8 // bytes

// nftShape is what one kind of sequence needs beside nftWindowMaps: sets, those
// among them that there are of each family, and what is flushed when they are
// filled anew.
type nftShape struct {
	sets, ofFamily string
	filled         []string
}

func nftShapeOf(g guard) nftShape {
	if g.tokens() {
		return nftShape{nftTokens, nftSpent, []string{"set tokens"}}
	}
	return nftShape{nftMaps, nftKnockers, []string{"map next", "set last", "set ignore"}}
}

// nftWindows returns what gives the windows of the present moment, as stages
// before the first knock. There are two in the time around a boundary: one map
// cannot say that, so that even and odd ones have one each.
func nftWindows(g guard) []string {
	if g.timed() {
		return []string{"meta time map @even_ID", "meta time map @odd_ID"}
	}
	return []string{"0:0"}
}

// nftKnockPorts returns matches for what counts as a knock, right or wrong.
func nftKnockPorts(g guard) []string {
	if len(g.KnockPorts) == 0 {
		return []string{"meta l4proto { tcp, udp }"}
	}
	var all []string
	for _, ports := range nftSplit(g.KnockPorts) {
		all = append(all, ports.match())
	}
	return all
}

// An unprivileged container refuses more than about 130 kB at once: there the
// file is loaded in parts. Elsewhere it is one transaction.
const nftPartElements = 2000

// nftElements writes what a guard's sequences and ports put into its sets.
func nftElements(b *strings.Builder, g guard) {
	for _, set := range append([]string{"map even", "map odd"}, nftShapeOf(g).filled...) {
		kind, name, _ := strings.Cut(set, " ")
		fmt.Fprintf(b, "flush %s inet portknock %s_%s\n", kind, name, g.ID)
	}
	add := func(set string, elements []string) {
		if len(elements) > 0 {
			fmt.Fprintf(b, "add element inet portknock %s_%s { %s }\n", set, g.ID, strings.Join(elements, ", "))
		}
	}
	if !g.tokens() {
		add("ignore", nftIgnored(g))
	}
	most := nftPartElements / (1 + len(g.Windows[0].Steps) + len(g.Windows[0].Tokens))
	for windows := range slices.Chunk(g.Windows, most) {
		var parity [2][]string
		var next, last, tokens []string
		for _, w := range windows {
			if g.timed() {
				p := &parity[w.number()&1]
				*p = append(*p, fmt.Sprintf("%d-%d : %s", w.opens(g.Skew), w.closes(g.Skew), w.nftStage(0)))
			}
			for i := range w.Steps {
				if i == len(w.Steps)-1 {
					last = append(last, w.nftKnock(i))
				} else {
					next = append(next, w.nftKnock(i)+" : "+w.nftStage(i+1))
				}
			}
			for _, token := range w.Tokens {
				tokens = append(tokens, fmt.Sprintf("%s . 0x%x", w.nftStage(0), token))
			}
		}
		add("even", parity[0])
		add("odd", parity[1])
		add("next", next)
		add("last", last)
		add("tokens", tokens)
		if len(g.Windows) > most {
			fmt.Fprintln(b, partMark)
		}
	}
}

// input returns the chain that closes everything else.
func (r nftRules) input(closed []nftPorts) string {
	var b strings.Builder
	b.WriteString(`
	chain input {
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		meta l4proto { icmp, ipv6-icmp } accept
		udp sport 67 udp dport 68 accept comment "DHCP"
		udp dport 546 accept comment "DHCPv6"
		tcp flags & (fin|syn|rst|ack) != syn accept comment "sessions older than the rules"
`)
	for _, c := range closed {
		fmt.Fprintf(&b, "\t\t%s accept comment \"judged by the guard\"\n", c.match())
	}
	for _, a := range nftSplit(r.options.Allow) {
		fmt.Fprintf(&b, "\t\t%s accept\n", a.match())
	}
	b.WriteString("\t}")
	return b.String()
}

// Words in capitals stand for what differs from guard to guard and from family
// to family.
const (
	nftWindowMaps = `
	# The window of a moment, as a stage before the first knock.
	map even_ID { typeof meta time : meta priority; flags interval; }
	map odd_ID { typeof meta time : meta priority; flags interval; }`

	nftMaps = `
	# The stage of a knocker and its knock lead to the next stage.
	map next_ID { typeof meta priority . meta l4proto . th dport : meta priority; }
	set last_ID { typeof meta priority . meta l4proto . th dport; }
	set ignore_ID { typeof meta l4proto . th dport; flags interval; }`

	nftOpen = `
	set openN_ID { typeof SADDR; flags dynamic,timeout; timeout OPENFOR; size SIZE; }`

	nftKnockers = `
	map atN_ID { typeof SADDR : meta priority; flags dynamic,timeout; timeout KNOCKTIMEOUT; size SIZE; }
	set madeN_ID { typeof SADDR . meta l4proto . th dport; flags dynamic,timeout; timeout KNOCKTIMEOUT; size SIZE; }
	set paceN_ID { typeof SADDR; flags dynamic,timeout; timeout 10s; size SIZE; }`

	nftTokens = `
	# A window and what opens in it; of that, what has been spent, and by whom.
	set tokens_ID { typeof meta priority . @th,64,128; } # needs a later nft than 1.0.2
	set used_ID { typeof @th,64,128; flags dynamic,timeout; timeout REMEMBERED; size SIZE; }`

	nftSpent = `
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

	nftAutomaton = `
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
	chain startN_ID {START
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
