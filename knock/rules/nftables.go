package rules

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

func emitNftables(w io.Writer, guards []guard, o Options) error {
	err := header{
		Guards: guards,
		Check:  "nft -c -f " + quote(o.File),
		Load:   "nft -f " + quote(o.File),
		Watch:  "nft list table inet portknock",
		Undo:   nftUndo,
		Notes: []string{
			`"flush ruleset" removes the guard and leaves the port open. Debian's
/etc/nftables.conf begins with it, and stopping its service does it: end that
file with the line  include "` + o.File + `"`,
			`Keep this file rather than the output of "nft list ruleset", which would
freeze who is in at that moment.`,
			floodNote(guards),
		},
	}.write(w, o)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, nftRules{guards, o, true}.text())
	return err
}

const nftUndo = "nft delete table inet portknock"

// setSize is how many addresses each set holds. It stays the same from file to
// file, since a loaded set cannot change its size.
const setSize = 65536

// floodNote tells what fills the sets: an element lives for KnockTimeout, and
// the kernel may take three seconds more to collect it.
func floodNote(guards []guard) string {
	longest := time.Duration(0)
	for _, g := range guards {
		longest = max(longest, g.KnockTimeout)
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

// nftSplit returns the ports of lists by transport.
func nftSplit(lists ...[]knock.PortRange) []nftPorts {
	var all []nftPorts
	for _, t := range transports {
		if p := ports(t, lists...); len(p) > 0 {
			all = append(all, nftPorts{t, p})
		}
	}
	return all
}

// nftIgnored returns the elements of the set of ports that do not reset.
func nftIgnored(g guard) string {
	var words []string
	for _, t := range transports {
		for _, r := range ports(t, g.IgnorePorts) {
			words = append(words, fmt.Sprintf("%s . %s", t, numbers(r, "-")))
		}
	}
	return strings.Join(words, ", ")
}

// nftNext returns the elements of the map from stage and knock to the next
// stage, for every knock but the last.
func nftNext(g guard) string {
	words := make([]string, len(g.Steps)-1)
	for i := range words {
		words[i] = fmt.Sprintf("%s : %s", nftKnock(i, g.Steps[i]), nftStage(i+1))
	}
	return strings.Join(words, ", ")
}

// nftLast returns the element of the set of last knocks.
func nftLast(g guard) string {
	i := len(g.Steps) - 1
	return nftKnock(i, g.Steps[i])
}

func nftKnock(stage int, s knock.Step) string {
	return fmt.Sprintf("%s . %s . %d", nftStage(stage), s.Transport, s.Port)
}

// nftStage writes a stage as a packet priority. The priority of the packet
// serves as the register for the stage while the packet is judged, since no
// local input uses it; its mark would be in use by others.
func nftStage(n int) string { return fmt.Sprintf("0:%x", n) }

// nftTime writes a duration as nftables reads it.
func nftTime(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return fmt.Sprintf("%dms", d.Milliseconds())
}

// text returns the rules, from the first table line on.
func (r nftRules) text() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`
# Rules are replaced in one step; the sets of who knocks and who is in stay.
table inet portknock
flush table inet portknock
table inet portknock {
	# Before NAT, so that published ports are guarded too.
	chain guard {
		type filter hook prerouting priority -150; policy accept;
		iif lo accept
		ct state established,related accept comment "also makes the kernel put fragments together first"
		fib daddr type != local accept`)
	for _, g := range r.guards {
		for _, o := range nftSplit(g.OpenPorts) {
			p("\t\t%s jump door_%s", o.begins(), g.ID)
		}
	}
	closed := nftSplit(guarded(r.guards)...)
	for _, c := range closed {
		p("\t\t%s counter drop", c.begins())
	}
	if r.automaton {
		p("\t\ttcp flags & (fin|syn|rst|ack) != syn accept")
		for _, g := range r.guards {
			for _, f := range nftFamilies {
				p("\t\tmeta nfproto %s meta l4proto { tcp, udp } jump knock%s_%s", f.proto, f.n, g.ID)
			}
		}
		p("\t\tmeta priority set 0:0")
	}
	p("\t}")
	for _, g := range r.guards {
		p("%s", r.guard(g))
	}
	if r.options.DropPolicy {
		p("%s\n}", r.input(closed))
	} else {
		// A file with the drop policy may have been loaded before.
		p("\n\tchain input {\n\t}\n}\ndelete chain inet portknock input")
	}
	if !r.automaton {
		return b.String()
	}
	for _, g := range r.guards {
		p("flush map inet portknock next_%s\nflush set inet portknock last_%[1]s\nflush set inet portknock ignore_%[1]s", g.ID)
		for _, set := range []struct{ name, elements string }{
			{"next", nftNext(g)}, {"last", nftLast(g)}, {"ignore", nftIgnored(g)},
		} {
			if set.elements != "" {
				p("add element inet portknock %s_%s { %s }", set.name, g.ID, set.elements)
			}
		}
	}
	return b.String()
}

// guard returns the chains and sets of one guard.
func (r nftRules) guard(g guard) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n\t# %s\n\tchain door_%s {\n", g.Name, g.ID)
	for _, f := range nftFamilies {
		fmt.Fprintf(&b, "\t\t%s @open%s_%s accept\n", f.addr, f.n, g.ID)
	}
	b.WriteString("\t}")
	for _, f := range nftFamilies {
		fmt.Fprintf(&b, "\n\tset open%s_%s { typeof %s; flags dynamic,timeout; size %d; }", f.n, g.ID, f.addr, setSize)
	}
	if !r.automaton {
		return b.String()
	}
	verdict, consume, single := "return", "", ""
	if r.options.Consume {
		verdict, consume = "drop", "\n\t\tdrop"
	}
	if len(g.Steps) == 1 {
		single = "\n\t\tmeta priority . meta l4proto . th dport @last_ID goto admitN_ID"
	}
	text := nftMaps
	for _, f := range nftFamilies {
		text += strings.NewReplacer("SADDR", f.addr, "N_ID", f.n+"_ID").Replace(strings.ReplaceAll(nftAutomaton, "SINGLE", single))
	}
	b.WriteString(strings.NewReplacer("ID", g.ID, "SIZE", fmt.Sprint(setSize), "REPEAT", verdict, "CONSUME", consume,
		"KNOCKTIMEOUT", nftTime(g.KnockTimeout), "OPENFOR", nftTime(g.OpenFor)).Replace(text))
	return b.String()
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
	nftMaps = `
	# The stage of a knocker and its knock lead to the next stage.
	map next_ID { typeof meta priority . meta l4proto . th dport : meta priority; }
	set last_ID { typeof meta priority . meta l4proto . th dport; }
	set ignore_ID { typeof meta l4proto . th dport; flags interval; }`

	nftAutomaton = `
	map atN_ID { typeof SADDR : meta priority; flags dynamic,timeout; size SIZE; }
	set madeN_ID { typeof SADDR . meta l4proto . th dport; flags dynamic,timeout; size SIZE; }
	set paceN_ID { typeof SADDR; flags dynamic,timeout; size SIZE; }
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
	chain startN_ID {
		meta priority set 0:0SINGLE
		meta priority set meta priority . meta l4proto . th dport map @next_ID goto beginN_ID
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
