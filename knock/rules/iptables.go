package rules

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// iptJump is the rule that sends all packets to the chain PORTKNOCK.
const iptJump = "PREROUTING -j PORTKNOCK"

// iptInputJump is the rule that sends the packets for this server to the chain PORTKNOCKIN,
// after NAT.
const iptInputJump = "INPUT -j PORTKNOCKIN"

// iptPlainScript returns the part of sh/iptables.sh that a file without a script needs: the
// functions that test, load and unload its rules.
func iptPlainScript() string {
	_, text, _ := strings.Cut(shellFile("iptables.sh"), "#<plain\n")
	text, _, _ = strings.Cut(text, "#>plain\n")
	return text
}

// iptPlainCommand returns the command that runs a verb of [iptPlainScript] on a file.
// The script is in the file, in comments. If the file is missing or cut off, the command
// fails, because the call of the script is not in the file.
func iptPlainCommand(verb, file string) string {
	return fmt.Sprintf(`(sed -n "s/^#: //p" %[2]s; echo ipt_plain) | sh -s %[1]s %[2]s`, verb, quote(file))
}

// emitIptables writes one text for both iptables-restore and ip6tables-restore. Both
// can read the text because no rule for both families names an address.
func emitIptables(guards []guard, o Options) (document, error) {
	for _, g := range guards {
		if err := iptCheck(g); err != nil {
			return document{}, err
		}
	}
	r := iptRules{guards, o}
	rules := r.text()
	knocks := slices.ContainsFunc(guards, func(g guard) bool { return !g.tokens() })
	return document{
		test:       iptPlainCommand("test", o.File),
		load:       iptPlainCommand("load", o.File),
		unload:     iptPlainCommand("unload", o.File),
		parts:      each(guards, r.part),
		plainNotes: []string{`unload removes the rules of the profiles in this file.`},
		notes: []string{
			`A flush of the table mangle also removes the rules. firewalld flushes this table
when it starts or reloads. On a server with firewalld, use the format nftables or
the script's service.`,
			`Loading makes the lists in /proc/net/xt_recent readable by root only. Otherwise
other users of this server could learn the knocks from these lists.`,
			textIf(strings.Contains(rules, "\n"+partMark+"\n"), `An unprivileged container may refuse this number of rules at once ("Message too
long"). The load command will then load in parts, with the guard itself last.`),
			textIf(knocks, `xt_recent remembers 100 addresses in each list. An attacker who forges many addresses
can fill a list, and other clients cannot knock. For longer lists, set
"options xt_recent ip_list_tot=1000" in a file in /etc/modprobe.d, or use nftables.`),
			textIf(slices.ContainsFunc(guards, guard.tokens), `A token admits the first address that uses it. From any other address it is refused
and logged as "portknock refused". IPv4 and IPv6 have separate tokens, half
of them each. After a restart of the server, or a flush, spent tokens are forgotten.`),
		},
		body: "\n" + strings.ReplaceAll(comments("#: ", iptPlainScript()), "#: \n", "#:\n") + rules,
	}, nil
}

// iptCheck refuses guards that iptables cannot express.
func iptCheck(g guard) error {
	// The other formats with a clock can express these guards.
	others := func(f format) bool { return f.clock && f.name != "iptables" }
	w := g.Windows[0]
	switch {
	case g.OpenFor%time.Second != 0 || g.KnockTimeout%time.Second != 0:
		return refuse("", others, "%s: iptables counts whole seconds; set OpenFor and KnockTimeout to whole seconds", g.Name)
	case g.tokens() && w.End.Sub(w.Start) > iptTokenPeriod:
		return refuse("", others, "%s: iptables remembers spent tokens for a Period of at most %v; shorten the Period", g.Name, iptTokenPeriod)
	case g.tokens() && len(w.Tokens) < len(iptFamilies):
		return refuse("", others, "%s: iptables needs separate tokens for IPv4 and IPv6; set TokensPerWindow to 2 or more", g.Name)
	}
	return nil
}

// iptMatches returns matches for the first packets of connections and flows to ports.
func iptMatches(ranges []knock.PortRange) []string {
	var all []string
	for _, r := range mergePorts(ranges) {
		all = append(all, iptMatch(r.Transport, portNumbers(r, ":")))
	}
	return all
}

// iptMatch returns the match for one port or range, such as "22" or "60000:61000".
func iptMatch(t knock.Transport, ports string) string {
	if t == knock.TCP {
		return "-p tcp --syn --dport " + ports
	}
	return "-p udp --dport " + ports
}

// iptNoSession matches the packets that no TCP session sends, and its SYN. All other packets
// of a session have ACK or RST. A server's answer to the rest, such as FIN alone, would
// tell a scanner whether a service listens.
const iptNoSession = "--tcp-flags RST,ACK NONE"

// iptRules is the input for the iptables text.
type iptRules struct {
	guards  []guard
	options Options
}

// part returns the rules of one guard as iptables-restore reads them. The rules of
// several guards can be loaded one after the other; see sh/iptables.sh.
func (r iptRules) part(g guard) string { return iptRules{[]guard{g}, r.options}.text() }

// text returns the rules as iptables-restore reads them.
func (r iptRules) text() string {
	var b lines
	b.add("\n# In mangle, before NAT, so that published ports are guarded too.\n*mangle")
	parts := r.parts()
	last := len(parts) - 1
	parts[last] = slices.Insert(parts[last], 0, r.rootChain(), r.inputChain())
	for i, chains := range parts {
		for _, c := range chains {
			b.add(":%s - [0:0]", c.name)
		}
		if i == last {
			b.add("-I %s\n-I %s", iptJump, iptInputJump)
		}
		for _, c := range chains {
			for _, line := range c.lines {
				b.add("%s", line)
			}
		}
		if i < last {
			b.add(partMark)
		}
	}
	b.add("COMMIT")
	if r.options.DropPolicy {
		b.add("*filter\n:PORTKNOCK - [0:0]\n-I INPUT -j PORTKNOCK")
		for _, line := range r.filterChain().lines {
			b.add("%s", line)
		}
		b.add("COMMIT")
	}
	return b.String()
}

// iptPhase is the place of a rule in a root chain. The rules of all loaded profiles are
// in the order of their phases. Thus an address that any profile admits passes before
// any profile drops its packet.
type iptPhase int

// The phases of the root chains in the table mangle. The chain at the hook INPUT has those
// before iptNotKnocks.
const (
	iptFirst      iptPhase = iota // what the guard does not judge
	iptPassTCP                    // let through SYNs of admitted addresses
	iptDropTCP                    // drop other SYNs
	iptKnown                      // connections that the kernel knows
	iptPassUDP                    // let through datagrams of admitted addresses
	iptDropUDP                    // drop other datagrams
	iptNotKnocks                  // packets that cannot be knocks
	iptSendKnocks                 // send the rest to the chains of the profiles
)

// The phases of the root chain in the table filter.
const (
	iptBasics   iptPhase = iota // what the drop policy never drops
	iptGuarded                  // ports that the guard in mangle has judged
	iptAllowed                  // ports that Options.Allow lists, and sources that Options.Trust lists
	iptDropRest                 // the drop policy
)

// iptFixed is the ID of rules that are the same in all files.
const iptFixed = "-"

// addRoot appends a rule of a root chain. The comment of the rule has its phase and the
// ID of its guard. The load command finds the rules of a profile by these comments.
func (c *iptChain) addRoot(phase iptPhase, id, match, target string) {
	c.add(`%s -m comment --comment "%d:%s" -j %s`, match, phase, id, target)
}

// rootChain returns the chain that every packet enters.
func (r iptRules) rootChain() iptChain {
	c := iptChain{name: "PORTKNOCK"}
	guardRules := func(pass, drop iptPhase, t knock.Transport, localMatches ...string) {
		for _, g := range r.guards {
			for _, m := range iptMatches(ofTransport(t, g.OpenPorts)) {
				r.addPass(&c, pass, g, m, r.options.Log)
			}
		}
		r.addDrops(&c, drop, t, localMatches...)
	}
	c.addRoot(iptFirst, iptFixed, "-i lo", "RETURN")
	c.note("A SYN is judged even if the kernel remembers its ports from an open session. Otherwise\n" +
		"# an address that was admitted before could begin another session.")
	guardRules(iptPassTCP, iptDropTCP, knock.TCP, "%s -m addrtype --dst-type LOCAL")
	c.note("The state also makes the kernel put fragments together first.")
	c.addRoot(iptKnown, iptFixed, "-m conntrack --ctstate ESTABLISHED,RELATED", "RETURN")
	// Datagrams also reach a service by broadcast, multicast and anycast addresses.
	guardRules(iptPassUDP, iptDropUDP, knock.UDP, "-4 %s -m addrtype --dst-type LOCAL,BROADCAST,MULTICAST",
		"-6 %s -m addrtype --dst-type LOCAL,ANYCAST", "-6 %s -d ff00::/8")
	c.addRoot(iptNotKnocks, iptFixed, "-m addrtype ! --dst-type LOCAL", "RETURN")
	c.addRoot(iptNotKnocks, iptFixed, "-p tcp ! --syn", "RETURN")
	for _, g := range r.guards {
		knocks := iptMatches(g.KnockPorts)
		switch {
		case g.tokens():
			knocks = iptTokenMatches(g)
		case len(knocks) == 0:
			knocks = []string{"-p tcp", "-p udp"}
		}
		for _, m := range knocks {
			c.addRoot(iptSendKnocks, g.ID, m, iptChainName(g, ""))
		}
	}
	return c
}

// iptAdmitted returns a match for the packets of match that admitted addresses send.
func iptAdmitted(g guard, match string) string {
	return fmt.Sprintf("%s -m recent --name %s --rcheck --seconds %d", match, iptOpenList(g), g.OpenFor/time.Second)
}

// iptTrusted is the text after the ID in the comments of rules for Trust. Such a rule has the
// place and the part of any other, but a connection through it does not prove that the knocks
// work.
const iptTrusted = " trusted"

// trusted returns matches for the packets of match that come from the sources in Trust.
func (r iptRules) trusted(match string) []string {
	s := r.options.trusted()
	add := func(before, after string) func(string) string {
		return func(source string) string { return before + match + after + source }
	}
	return slices.Concat(each(s.interfaces, add("", " -i ")), each(s.ipv4, add("-4 ", " -s ")), each(s.ipv6, add("-6 ", " -s ")))
}

// addPass adds the rules that let the packets of match through: those of admitted addresses,
// those from the sources in Trust, and all of them after the last window if OpenAtEnd is set.
func (r iptRules) addPass(c *iptChain, phase iptPhase, g guard, match string, log bool) {
	pass := func(id, match string) {
		if log {
			// The kernel allows 29 bytes, and an ID has at most 12.
			c.addRoot(phase, id, match+" -m limit --limit 10/minute --limit-burst 10",
				fmt.Sprintf(`LOG --log-prefix "portknock pass %s: "`, g.ID))
		}
		c.addRoot(phase, id, match, "RETURN")
	}
	pass(g.ID, iptAdmitted(g, match))
	for _, m := range r.trusted(match) {
		pass(g.ID+iptTrusted, m)
	}
	if g.timed() && r.options.OpenAtEnd {
		c.addRoot(phase, g.ID, match+" -m time --datestart "+iptTime(g.end().Unix()), "RETURN")
	}
}

// addDrops adds the rules that drop packets to guarded ports which belong to no session. Each
// of the formats in local adds matches to the match of a port, and makes a rule.
func (r iptRules) addDrops(c *iptChain, phase iptPhase, t knock.Transport, local ...string) {
	for _, g := range r.guards {
		for _, m := range iptMatches(ofTransport(t, g.OpenPorts)) {
			m = strings.Replace(m, "--syn", iptNoSession, 1)
			for _, format := range local {
				c.addRoot(phase, g.ID, fmt.Sprintf(format, m), "DROP")
			}
		}
	}
}

// inputChain returns the chain for packets that reach this server, after NAT. It guards the
// ports again, because other ports may be redirected to them, and because addresses may be
// local by another routing table. It admits an address that may connect to the port before
// NAT or to the port after NAT.
func (r iptRules) inputChain() iptChain {
	c := iptChain{name: "PORTKNOCKIN"}
	beforeNAT := func(t knock.Transport, ports string) string {
		return fmt.Sprintf("-p %v%s -m conntrack --ctstate DNAT --ctorigdstport %s", t, textIf(t == knock.TCP, " --syn"), ports)
	}
	guardRules := func(pass, drop iptPhase, t knock.Transport) {
		for _, g := range r.guards {
			for _, p := range ofTransport(t, mergePorts(g.OpenPorts)) {
				ports := portNumbers(p, ":")
				for _, m := range []string{iptMatch(t, ports), beforeNAT(t, ports)} {
					r.addPass(&c, pass, g, m, false) // the other root chain logs the connection
				}
			}
			for _, p := range ofTransport(t, mergePorts(r.options.Public)) {
				c.addRoot(pass, g.ID, beforeNAT(t, portNumbers(p, ":")), "RETURN")
			}
		}
		r.addDrops(&c, drop, t, "%s")
	}
	c.note("After NAT. Ports before NAT are those of ctorigdstport.")
	c.addRoot(iptFirst, iptFixed, "-i lo", "RETURN")
	guardRules(iptPassTCP, iptDropTCP, knock.TCP)
	c.addRoot(iptKnown, iptFixed, "-m conntrack --ctstate ESTABLISHED,RELATED", "RETURN")
	guardRules(iptPassUDP, iptDropUDP, knock.UDP)
	return c
}

// iptPartRules is the most rules in a part, unless one chain has more. An unprivileged
// container refuses more than about 250 rules at once, and loads the file in parts.
// Elsewhere the whole file loads in one transaction.
const iptPartRules = 150

// parts returns the chains of all guards, divided into parts. The parts can be loaded
// one after the other while an earlier guard is in force. A rule that leads to a chain
// is in the same part as the chain or in a later part.
func (r iptRules) parts() [][]iptChain {
	var parts [][]iptChain
	var part []iptChain
	n := 0
	for _, g := range slices.Backward(r.guards) {
		for _, c := range slices.Backward(r.chains(g)) {
			if n += c.rules; n > iptPartRules && part != nil {
				parts, part, n = append(parts, part), nil, c.rules
			}
			part = slices.Insert(part, 0, c)
		}
	}
	return append(parts, part)
}

// iptChain is a chain with its rules.
type iptChain struct {
	name  string
	lines []string // comments, and rules as iptables-restore reads them
	rules int      // number of rules in lines
}

// note appends a comment.
func (c *iptChain) note(comment string) { c.lines = append(c.lines, "# "+comment) }

// add appends a rule. A rule for one address family begins with the flag of the
// family; add moves the flag to the start of the line.
func (c *iptChain) add(format string, args ...any) {
	flag, rule := "", fmt.Sprintf(format, args...)
	for _, f := range iptFamilies {
		if rest, only := strings.CutPrefix(rule, f.flag); only {
			flag, rule = f.flag, rest
		}
	}
	c.lines = append(c.lines, flag+"-A "+c.name+" "+strings.TrimSpace(rule))
	c.rules++
}

// iptChainName returns the name of a guard's chain. The suffix has at most 6 bytes.
func iptChainName(g guard, suffix string) string { return "PORTKNOCK-" + g.ID + suffix }

// iptOpenList returns the name of the list of admitted addresses.
func iptOpenList(g guard) string { return "portknock_" + g.ID + "_open" }

// iptTime writes a second since 1970 in UTC, as the time match reads it.
func iptTime(second int64) string { return time.Unix(second, 0).UTC().Format("2006-01-02T15:04:05") }

// iptKnock is a knock of a window. When match and timeMatch see the knock, an address
// moves from list prev to list next. The first knock has prev "" and accepts every
// address. A knock without a timeMatch counts whenever its chain is in force.
type iptKnock struct{ match, timeMatch, prev, next string }

// iptKnocks returns the knocks of a window from the last to the first. In this order,
// a packet that could be two knocks advances an address by one stage only. Windows
// that are in force at the same time, or within KnockTimeout, use different lists.
func iptKnocks(g guard, w window) []iptKnock {
	windowSuffix := ""
	if g.timed() {
		windowSuffix = fmt.Sprintf("w%d", w.number()%iptListCycle(g))
	}
	listName := func(n int) string { return fmt.Sprintf("portknock_%s_%d%s", g.ID, n, windowSuffix) }
	var knocks []iptKnock
	for i := len(w.Steps) - 1; i >= 0; i-- {
		k := iptKnock{match: iptMatch(w.Steps[i].Transport, fmt.Sprint(w.Steps[i].Port)), next: listName(i + 1)}
		if i > 0 {
			k.prev = listName(i)
		}
		if i == len(w.Steps)-1 {
			k.next = iptOpenList(g)
		}
		knocks = append(knocks, k)
	}
	return knocks
}

// iptListCycle returns after how many windows the rules use the lists of the first
// window again. The cycle is two windows. It is longer for windows so short that
// addresses would still be in the lists of the first window.
func iptListCycle(g guard) int64 {
	period := g.Windows[0].End.Sub(g.Windows[0].Start)
	n := int64(2)
	for time.Duration(n-1)*period-2*g.Skew <= g.KnockTimeout {
		n += 2
	}
	return n
}

// chains returns the chains of one guard. A packet enters the first one.
func (r iptRules) chains(g guard) []iptChain {
	if g.tokens() {
		return r.tokenChains(g)
	}
	if g.timed() {
		return r.timedChains(g)
	}
	c := iptChain{name: iptChainName(g, "")}
	c.note(g.Name + `: the right knock brings an address that is in one list into the next,
# a wrong one takes it out of all. Repeats do no harm.`)
	knocks := iptKnocks(g, g.Windows[0])
	r.addRightKnocks(&c, g, knocks)
	iptAddWrongKnocks(&c, g, knocks)
	return []iptChain{c}
}

// addRightKnocks adds the rules for right knocks. A packet that matches several knocks
// counts as all of them: its rules have no verdict, so that the packet reaches every
// one. Rules at the end then give the verdict, if the packet's address is in the list
// of one of these knocks, by this packet or an earlier one.
func (r iptRules) addRightKnocks(c *iptChain, g guard, knocks []iptKnock) {
	verdict := " -j RETURN"
	if r.options.Consume {
		verdict = " -j DROP"
	}
	seconds := g.KnockTimeout / time.Second
	uses := map[string]int{}
	for _, k := range knocks {
		uses[k.match]++
	}
	for _, k := range knocks {
		jump := verdict
		if uses[k.match] > 1 {
			jump = ""
		}
		if k.prev != "" {
			c.add("%s -m recent --name %s --rcheck --seconds %d -m recent --name %s --set%s", k.match+k.timeMatch, k.prev, seconds, k.next, jump)
			continue
		}
		// The limit is 20 first knocks per second, because xt_recent counts only to 20.
		c.add("%s -m recent --name %s --rcheck --seconds 1 --hitcount 20%s", k.match+k.timeMatch, k.next, verdict)
		c.add("%s -m recent --name %s --set%s", k.match+k.timeMatch, k.next, jump)
	}
	for _, k := range knocks {
		if uses[k.match] > 1 {
			c.add("%s -m recent --name %s --rcheck --seconds %d%s", k.match, k.next, seconds, verdict)
		}
	}
}

// iptAddWrongKnocks adds the rules for wrong knocks. A wrong knock removes an address
// from the lists of all knocks except the last.
func iptAddWrongKnocks(c *iptChain, g guard, knocks []iptKnock) {
	for _, m := range iptMatches(g.IgnorePorts) {
		c.add("%s -j RETURN", m)
	}
	var lists []string
	for _, k := range knocks {
		if k.next != iptOpenList(g) && !slices.Contains(lists, k.next) {
			lists = append(lists, k.next)
		}
	}
	for _, list := range slices.Backward(lists) {
		c.add("-m recent --name %s --remove", list)
	}
}

// timedChains returns the chains of a guard whose sequence changes with time. Usually
// one window is in force; around a boundary, two are. A tree of spans without overlaps
// leads a packet to the chain of the current window. Around a boundary, the tree leads
// to the even window, whose chain then leads to the odd one.
//
// All jumps between these chains are one-way (-g), because a right knock in either
// window must return to the guards that follow.
func (r iptRules) timedChains(g guard) []iptChain {
	var leaves [2][]iptChain // chains of even windows, which lead to odd ones; chains of odd windows
	var spans []iptSpan
	var all []iptKnock
	for i, w := range g.Windows {
		c, span := iptWindowChain(g, i)
		knocks := iptKnocks(g, w)
		all = append(all, knocks...)
		odd := w.number() & 1
		var jumps []iptSpan
		for _, n := range []int{i - 1, i + 1} {
			if n < 0 || n == len(g.Windows) {
				continue
			}
			_, other := iptWindowChain(g, n)
			overlap := iptSpan{max(span.first, other.first), min(span.last, other.last), other.chain}
			switch {
			case odd == 1 && n < i:
				span.first = max(span.first, other.last+1)
			case odd == 1:
				span.last = min(span.last, other.first-1)
			case overlap.first <= overlap.last:
				jumps = append(jumps, overlap)
				// While both windows are in force, a packet that is a knock of both counts
				// in both.
				for _, k := range iptKnocks(g, g.Windows[n]) {
					if slices.ContainsFunc(knocks, func(mine iptKnock) bool { return mine.match == k.match }) {
						k.timeMatch = " " + overlap.match()
						knocks = append(knocks, k)
					}
				}
			}
		}
		r.addRightKnocks(&c, g, knocks)
		for _, s := range jumps {
			c.add("%s", s.jump())
		}
		c.add("-g %s", iptChainName(g, "-wrong"))
		leaves[odd] = append(leaves[odd], c)
		if span.first <= span.last {
			spans = append(spans, span)
		}
	}
	root, wrong := iptChain{name: iptChainName(g, "")}, iptChain{name: iptChainName(g, "-wrong")}
	root.note(g.Name + `: a packet goes to the window of the moment, in UTC. Around a
# boundary there are two, and the even one, by its number since 1970, comes first.
# There, the right knock brings an address that is in one list into the next. A
# wrong one takes it out of all. Repeats do no harm.`)
	wrong.note(g.Name + ", wrong knocks")
	iptAddWrongKnocks(&wrong, g, all)
	return slices.Concat(iptTree(g, root, spans, new(int), wrong.name), leaves[0], leaves[1], []iptChain{wrong})
}

// iptWindowChain starts the chain of a window. It also returns the span in which the
// window's knocks are accepted. The span excludes the second in which the window ends.
func iptWindowChain(g guard, i int) (iptChain, iptSpan) {
	w := g.Windows[i]
	c := iptChain{name: iptChainName(g, fmt.Sprint("-", i))}
	c.note("from " + w.Start.UTC().Format(time.RFC3339))
	return c, iptSpan{w.startSecond(g.Skew), w.endSecond(g.Skew) - 1, c.name}
}

// iptSpan is a span of time and the chain for it.
type iptSpan struct {
	first, last int64 // seconds since 1970, both included
	chain       string
}

// match returns a match for the span, and jump a rule that leads to its chain.
func (s iptSpan) match() string {
	return fmt.Sprintf("-m time --datestart %s --datestop %s", iptTime(s.first), iptTime(s.last))
}

func (s iptSpan) jump() string { return s.match() + " -g " + s.chain }

// iptMaxFan is the most spans in one chain of a tree. A packet is compared with one
// span after the other.
const iptMaxFan = 6

// iptTree completes chain c so that c leads a packet to the chain of the current span.
// It returns c and the chains in between, and adds their number to nodes. A packet
// outside all spans goes to the chain otherwise, or returns if otherwise is "".
func iptTree(g guard, c iptChain, spans []iptSpan, nodes *int, otherwise string) []iptChain {
	var below []iptChain
	if len(spans) > iptMaxFan {
		size := iptMaxFan
		for size*iptMaxFan < len(spans) {
			size *= iptMaxFan
		}
		var parts []iptSpan
		for part := range slices.Chunk(spans, size) {
			*nodes++
			node := iptChain{name: iptChainName(g, fmt.Sprint("-t", *nodes))}
			parts = append(parts, iptSpan{part[0].first, part[len(part)-1].last, node.name})
			below = append(below, iptTree(g, node, part, nodes, otherwise)...)
		}
		spans = parts
	}
	for _, s := range spans {
		c.add("%s", s.jump())
	}
	if otherwise != "" {
		c.add("-g %s", otherwise)
	}
	return append([]iptChain{c}, below...)
}

// filterChain returns the chain of the table filter, which closes all other ports.
func (r iptRules) filterChain() iptChain {
	c := iptChain{name: "PORTKNOCK"}
	c.addRoot(iptBasics, iptFixed, "-i lo", "RETURN")
	c.note("FIN, NULL and Xmas scans.")
	c.addRoot(iptBasics, iptFixed, "-p tcp --tcp-flags SYN,RST,ACK NONE", "DROP")
	c.addRoot(iptBasics, iptFixed, "-p tcp --tcp-flags FIN,SYN,RST,ACK FIN,SYN", "DROP")
	for _, match := range []string{
		"-m conntrack --ctstate ESTABLISHED,RELATED",
		"-4 -p udp --sport 67 --dport 68",
		"-6 -s fe80::/10 -p udp --sport 547 --dport 546",
		"-p tcp ! --syn", // sessions that are older than the rules
	} {
		c.addRoot(iptBasics, iptFixed, match, "RETURN")
	}
	c.note("The guard in mangle has judged these ports.")
	for _, g := range r.guards {
		for _, m := range iptMatches(g.OpenPorts) {
			c.addRoot(iptGuarded, g.ID, m, "RETURN")
		}
	}
	for _, g := range r.guards {
		for _, m := range iptMatches(r.options.Allow) {
			c.addRoot(iptAllowed, g.ID, m, "RETURN")
		}
	}
	for _, g := range r.guards {
		for _, m := range r.trusted("") {
			c.addRoot(iptAllowed, g.ID+iptTrusted, m, "RETURN")
		}
	}
	for _, g := range r.guards {
		c.addRoot(iptDropRest, g.ID, "-p tcp", "DROP")
		c.addRoot(iptDropRest, g.ID, "-p udp", "DROP")
	}
	return c
}
