package rules

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// Tokens by iptables: u32 compares the payload, and two lists of xt_recent say of
// each token whether it has been spent, and by whom. Their entries are of one
// family, so that a token spent by IPv4 would be fresh by IPv6: each family has
// tokens of its own instead, IPv4 the even ones. A client begins with these.

// iptFamily is what differs between the families in a rule.
type iptFamily struct {
	flag    string // before a rule, for iptables-restore
	ipv6    bool
	start   string // the start of the UDP header for u32: an expression
	offset  int    // and what is added to it
	anyMask string // the mask under which all addresses are one
}

// An IPv6 packet with extension headers is no token: u32 cannot skip them.
var iptFamilies = []iptFamily{
	{flag: "-4 ", start: "0>>22&0x3C@", anyMask: "0.0.0.0"},
	{flag: "-6 ", ipv6: true, offset: 40, anyMask: "::"},
}

// at is an expression of u32 for the 32 bits at an offset from the UDP header.
func (f iptFamily) u32At(offset int) string { return fmt.Sprintf("%s%d", f.start, f.offset+offset) }

// payload matches a datagram that carries a token.
func (f iptFamily) tokenMatch(token []byte) string {
	var tests []string
	for i := 0; i < len(token); i += 4 {
		tests = append(tests, fmt.Sprintf("%s=0x%08x", f.u32At(udpHeader+i), binary.BigEndian.Uint32(token[i:])))
	}
	return fmt.Sprintf(`-p udp -m u32 --u32 "%s"`, strings.Join(tests, "&&"))
}

// iptTokenMatches returns matches for what may be a token by its length.
func iptTokenMatches(g guard) []string {
	var all []string
	for _, f := range iptFamilies {
		all = append(all, fmt.Sprintf(`%s-p udp --dport %d -m u32 --u32 "%s>>16=%d"`, f.flag, g.TokenPort, f.u32At(4), udpHeader+knock.TokenSize))
	}
	return all
}

// iptSlots is after how many windows the lists of the first serve again. What is
// in them then has been there for longer than it is remembered, two periods.
const iptTokenListCycle = 4

// iptTokenPeriod is the longest: the module counts ticks of the kernel's clock in
// 32 bits, of which there may be 1000 a second.
const iptTokenPeriod = 7 * 24 * time.Hour

// tokens returns the chains of a guard that tokens open. Of the two trees one has
// the windows of even number, which around a boundary overlap those of the other.
func (r iptRules) tokenChains(g guard) []iptChain {
	slotOf := func(w window, n int) int { return int(w.number()%iptTokenListCycle)*len(w.Tokens) + n }
	var leaves, spent []iptChain
	var spans [2][]iptSpan
	for i, w := range g.Windows {
		c, span := iptWindowChain(g, i)
		for _, f := range iptFamilies {
			for n, token := range w.Tokens {
				if knock.IsTokenOf(f.ipv6, n) {
					c.add("%s%s -g %s", f.flag, f.tokenMatch(token), iptTokenChainName(g, slotOf(w, n)))
				}
			}
		}
		leaves = append(leaves, c)
		odd := w.number() & 1
		spans[odd] = append(spans[odd], span)
		for n := range w.Tokens {
			for _, f := range iptFamilies {
				if i < iptTokenListCycle && knock.IsTokenOf(f.ipv6, n) {
					spent = append(spent, iptTokenChain(g, slotOf(w, n), f, len(spent) == 0))
				}
			}
		}
	}
	root, even, odd := iptChain{name: iptChainName(g, "")}, iptChain{name: iptChainName(g, "-even")}, iptChain{name: iptChainName(g, "-odd")}
	root.note(g.Name + ": a packet goes to the windows of the moment, in UTC, and is one of their tokens.")
	root.add("-j %s", even.name)
	root.add("-j %s", odd.name)
	admit, refused := iptChain{name: iptChainName(g, "-in")}, iptChain{name: iptChainName(g, "-no")}
	admit.add("-m recent --name %s --set", iptOpenList(g))
	refused.add(`-m limit --limit 10/minute -j LOG --log-prefix "portknock refused: "`)
	if r.options.Consume {
		admit.add("-j DROP")
		refused.add("-j DROP")
	}
	nodes := new(int)
	trees := append(iptTree(g, even, spans[0], nodes, ""), iptTree(g, odd, spans[1], nodes, "")...)
	return slices.Concat([]iptChain{root}, trees, leaves, spent, []iptChain{admit, refused})
}

// iptSpent is the chain for a valid token, by its slot.
func iptTokenChainName(g guard, slot int) string { return iptChainName(g, fmt.Sprint("-u", slot)) }

// iptSpend returns the chain that spends a token, or says that somebody else has.
// The first of these chains explains them all.
func iptTokenChain(g guard, slot int, f iptFamily, first bool) iptChain {
	c := iptChain{name: iptTokenChainName(g, slot)}
	if first {
		c.note("Who has spent a token may again, others may not. Four windows share the lists.")
	}
	admit, refused := iptChainName(g, "-in"), iptChainName(g, "-no")
	remembered := 2 * g.Windows[0].End.Sub(g.Windows[0].Start) / time.Second
	// A name that no knock's list has, in a file before or after: a list keeps the
	// mask it was made with, and is emptied when a rule asks for more hits than
	// those before.
	list := fmt.Sprintf("portknock_%s_t%d", g.ID, slot)
	c.add("-m recent --name %s_by --rcheck --seconds %d -g %s", list, remembered, admit)
	// Of two that come at the same moment, neither is the first.
	c.add("%s-m recent --name %s --set --mask %s", f.flag, list, f.anyMask)
	c.add("%s-m recent --name %s --rcheck --seconds %d --hitcount 2 --mask %s -g %s", f.flag, list, remembered, f.anyMask, refused)
	c.add("-m recent --name %s_by --set -g %s", list, admit)
	return c
}
