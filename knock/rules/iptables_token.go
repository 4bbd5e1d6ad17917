package rules

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// This file writes the iptables rules for tokens. The match u32 compares the payload.
// Two lists of xt_recent record for each token whether it is spent, and by which
// address.
//
// An entry of a list belongs to one address family. A token that is spent over IPv4
// therefore still counts as unspent over IPv6. To prevent a second use, each family
// accepts only its own tokens: IPv4 the even ones, IPv6 the odd ones. A client begins with
// the tokens of its family.

// iptFamily holds what differs between the address families in a rule.
type iptFamily struct {
	flag    string // flag before a rule, for iptables-restore
	ipv6    bool
	start   string // u32 expression for the start of the UDP header; "" if offset is enough
	offset  int    // number of bytes to add to start
	anyMask string // mask that makes all addresses equal
}

// iptFamilies lists IPv4 and IPv6. The rules do not recognize a token in an IPv6 packet
// with extension headers, because u32 cannot skip these headers.
var iptFamilies = []iptFamily{
	{flag: "-4 ", start: "0>>22&0x3C@", anyMask: "0.0.0.0"},
	{flag: "-6 ", ipv6: true, offset: 40, anyMask: "::"},
}

// u32At returns the u32 expression for the 32 bits at an offset from the UDP header.
func (f iptFamily) u32At(offset int) string { return fmt.Sprintf("%s%d", f.start, f.offset+offset) }

// tokenMatch returns the match for a datagram that carries the token.
func (f iptFamily) tokenMatch(token []byte) string {
	var tests []string
	for i := 0; i < len(token); i += 4 {
		tests = append(tests, fmt.Sprintf("%s=0x%08x", f.u32At(udpHeader+i), binary.BigEndian.Uint32(token[i:])))
	}
	return fmt.Sprintf(`-p udp -m u32 --u32 "%s"`, strings.Join(tests, "&&"))
}

// iptTokenMatches returns matches for datagrams that have the length of a token.
func iptTokenMatches(g guard) []string {
	var all []string
	for _, f := range iptFamilies {
		all = append(all, fmt.Sprintf(`%s-p udp --dport %d -m u32 --u32 "%s>>16=%d"`, f.flag, g.TokenPort, f.u32At(4), udpHeader+knock.TokenSize))
	}
	return all
}

// iptTokenListCycle is the number of windows after which the rules use the lists of the
// first window again. By then, all old entries are older than two periods, the time
// for which the rules remember a spent token.
const iptTokenListCycle = 4

// iptTokenPeriod is the longest period for tokens. The module xt_recent counts ticks of
// the kernel's clock in 32 bits, and there may be 1000 ticks a second.
const iptTokenPeriod = 7 * 24 * time.Hour

// tokenChains returns the chains of a guard that tokens open.
func (r iptRules) tokenChains(g guard) []iptChain {
	slotOf := func(w window, n int) int { return int(w.number()%iptTokenListCycle)*len(w.Tokens) + n }
	addTokens := func(c *iptChain, w window) {
		for _, f := range iptFamilies {
			for n, token := range w.Tokens {
				if knock.IsTokenOf(f.ipv6, n) {
					c.add("%s%s -g %s", f.flag, f.tokenMatch(token), iptTokenChainName(g, slotOf(w, n)))
				}
			}
		}
	}
	var spent []iptChain
	for _, w := range g.Windows[:min(len(g.Windows), iptTokenListCycle)] {
		for n := range w.Tokens {
			for _, f := range iptFamilies {
				if knock.IsTokenOf(f.ipv6, n) {
					spent = append(spent, iptTokenChain(g, slotOf(w, n), iptSpentList(g, w, n), f, len(spent) == 0))
				}
			}
		}
	}
	root, admit, refused := iptChain{name: iptChainName(g, "")}, iptChain{name: iptChainName(g, "-in")}, iptChain{name: iptChainName(g, "-no")}
	even, _ := iptWindows(g, 0, addTokens)
	odd, _ := iptWindows(g, 1, addTokens)
	root.note(g.Name + ": a packet goes to the windows of the moment, in UTC, and is one of their tokens.")
	root.add("-j %s", even[0].name)
	root.add("-j %s", odd[0].name)
	admit.add("-m recent --name %s --set", iptOpenList(g))
	refused.add(`-m limit --limit 10/minute -j LOG --log-prefix "portknock refused: "`)
	if r.options.Consume {
		admit.add("-j DROP")
		refused.add("-j DROP")
	}
	return slices.Concat([]iptChain{root}, even, odd, spent, []iptChain{admit, refused})
}

// iptTokenChainName returns the name of the chain for the valid token in a slot.
func iptTokenChainName(g guard, slot int) string { return iptChainName(g, fmt.Sprint("-u", slot)) }

// iptSpentList returns the name of the list that records token n of a window. The name
// holds what the token is made of: the key, the period and the window. Thus profiles
// with the same key share the list, and a token stays spent after a profile is renamed.
// The list does not belong to a generation of the rules, so a trial shares it too.
func iptSpentList(g guard, w window, n int) string {
	return fmt.Sprintf("portspent_%s_%d_%d_%d", g.keyID(), w.End.Sub(w.Start)/time.Second, w.number()%iptTokenListCycle, n)
}

// iptTokenChain returns the chain that spends a token, or refuses the token if another
// address has spent it. The first of these chains has a comment that explains all.
//
// No list for knocks may have the name of the list, in earlier or later files. A list
// keeps the mask of its first rule, and the kernel empties the list when a rule asks for
// more hits than earlier rules.
func iptTokenChain(g guard, slot int, list string, f iptFamily, first bool) iptChain {
	c := iptChain{name: iptTokenChainName(g, slot)}
	if first {
		c.note("The address that has spent a token may use it again. Others may not. Four windows share the lists.")
	}
	admit, refused := iptChainName(g, "-in"), iptChainName(g, "-no")
	remembered := 2 * g.Windows[0].End.Sub(g.Windows[0].Start) / time.Second
	c.add("-m recent --name %s_by --rcheck --seconds %d -g %s", list, remembered, admit)
	// If two addresses send a token at the same moment, both are refused.
	c.add("%s-m recent --name %s --set --mask %s", f.flag, list, f.anyMask)
	c.add("%s-m recent --name %s --rcheck --seconds %d --hitcount 2 --mask %s -g %s", f.flag, list, remembered, f.anyMask, refused)
	c.add("-m recent --name %s_by --set -g %s", list, admit)
	return c
}
