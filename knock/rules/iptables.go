package rules

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// iptJump sends the packets for this host to our chain.
const iptJump = "PREROUTING -m addrtype --dst-type LOCAL -j PORTKNOCK"

// emitIptables writes one text for iptables-restore and ip6tables-restore: it
// names no address.
func emitIptables(w io.Writer, guards []guard, o Options) error {
	for _, g := range guards {
		if g.OpenFor%time.Second != 0 || g.KnockTimeout%time.Second != 0 {
			return fmt.Errorf("%s: iptables counts whole seconds: set OpenFor and KnockTimeout so, or use nftables", g.Name)
		}
	}
	r := iptRules{guards, o}
	err := header{
		Guards: guards,
		Check:  iptBoth("$t-restore -w --test --noflush " + quote(o.File)),
		Load:   iptBoth(r.load()),
		Watch:  "cat /proc/net/xt_recent/portknock_*_open; iptables -t mangle -vnL PORTKNOCK",
		Undo:   iptBoth(r.undo()),
		Notes: []string{
			`Loading adds a second jump to our chain and then takes one away, so that the
port is guarded all the while. To keep the rules over a reboot, save them
as you save your others (netfilter-persistent save).`,
			`xt_recent remembers 100 addresses a list: who sends first knocks from forged
addresses faster than that keeps others from knocking. Raise it with the
module's parameter ip_list_tot, or use nftables.`,
		},
	}.write(w, o)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, r.text())
	return err
}

// iptBoth runs a command for both families; it calls the program $t.
func iptBoth(command string) string {
	return "for t in iptables ip6tables; do " + command + "; done"
}

type iptRules struct {
	guards  []guard
	options Options
}

// load restores, then removes the jumps of earlier loads. Undoing first would
// open the port for a moment and forget who is in.
func (r iptRules) load() string {
	line := "$t-restore -w --noflush " + quote(r.options.File)
	for i, t := range r.tables() {
		line += [...]string{" && ", "; "}[min(i, 1)]
		line += fmt.Sprintf("while [ $($t -w -t %[1]s -S %[2]s | grep -c PORTKNOCK) -gt 1 ] && $t -w -t %[1]s -D %[3]s; do :; done",
			t.name, strings.Fields(t.jump)[0], t.jump)
	}
	return line
}

func (r iptRules) undo() string {
	line := ""
	for _, t := range r.tables() {
		line += fmt.Sprintf("while $t -w -t %s -D %s 2>/dev/null; do :; done; ", t.name, t.jump)
	}
	line += `printf "%s\n"`
	for _, t := range r.tables() {
		line += ` "*` + t.name + `"`
		for _, c := range t.chains {
			line += ` ":` + c + ` -"` // restoring a chain empties it
		}
		for _, c := range t.chains {
			line += ` "-X ` + c + `"`
		}
		line += " COMMIT"
	}
	return line + " | $t-restore -w --noflush"
}

// tables returns the tables that the rules are in, with the jump to our first
// chain in each.
func (r iptRules) tables() []iptTable {
	mangle := iptTable{"mangle", iptJump, []string{"PORTKNOCK"}}
	for _, g := range r.guards {
		mangle.chains = append(mangle.chains, "PORTKNOCK-"+g.ID)
	}
	if !r.options.DropPolicy {
		return []iptTable{mangle}
	}
	return []iptTable{mangle, {"filter", "INPUT -j PORTKNOCK", []string{"PORTKNOCK"}}}
}

type iptTable struct {
	name, jump string
	chains     []string
}

// iptKnocks returns the knocks from the last to the first: a packet that could
// be two of them counts as the later one.
func iptKnocks(g guard) []iptKnock {
	var all []iptKnock
	for i := len(g.Windows[0].Steps) - 1; i >= 0; i-- {
		k := iptKnock{
			match: iptMatch(g.Windows[0].Steps[i].Transport, fmt.Sprint(g.Windows[0].Steps[i].Port)),
			list:  fmt.Sprintf("portknock_%s_%d", g.ID, i+1),
		}
		if i > 0 {
			k.before = fmt.Sprintf("portknock_%s_%d", g.ID, i)
		}
		if i == len(g.Windows[0].Steps)-1 {
			k.list = fmt.Sprintf("portknock_%s_open", g.ID)
		}
		all = append(all, k)
	}
	return all
}

// iptKnock puts an address that is in the list before, if there is such, in list.
type iptKnock struct{ match, before, list string }

// iptMatches returns matches for what begins a connection or a flow to ports.
func iptMatches(lists ...[]knock.PortRange) []string {
	var all []string
	for _, t := range transports {
		for _, r := range ports(t, lists...) {
			all = append(all, iptMatch(t, numbers(r, ":")))
		}
	}
	return all
}

func iptMatch(t knock.Transport, ports string) string {
	if t == knock.TCP {
		return "-p tcp --syn --dport " + ports
	}
	return "-p udp --dport " + ports
}

// text returns the rules as iptables-restore reads them.
func (r iptRules) text() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("\n# In mangle, before NAT, so that published ports are guarded too.\n*mangle\n:PORTKNOCK - [0:0]")
	for _, g := range r.guards {
		p(":PORTKNOCK-%s - [0:0]", g.ID)
	}
	p("-I %s", iptJump)
	p("-A PORTKNOCK -i lo -j RETURN")
	p("# The state also makes the kernel put fragments together first.")
	p("-A PORTKNOCK -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN")
	for _, g := range r.guards {
		for _, m := range iptMatches(g.OpenPorts) {
			p("-A PORTKNOCK %s -m recent --name portknock_%s_open --rcheck --seconds %d -j RETURN", m, g.ID, g.OpenFor/time.Second)
		}
	}
	closed := iptMatches(guarded(r.guards)...)
	for _, m := range closed {
		p("-A PORTKNOCK %s -j DROP", m)
	}
	p("-A PORTKNOCK -p tcp ! --syn -j RETURN")
	for _, g := range r.guards {
		p("-A PORTKNOCK -p tcp -j PORTKNOCK-%[1]s\n-A PORTKNOCK -p udp -j PORTKNOCK-%[1]s", g.ID)
	}
	for _, g := range r.guards {
		r.automaton(p, g)
	}
	p("COMMIT")
	if r.options.DropPolicy {
		r.filter(p, closed)
	}
	return b.String()
}

// automaton writes the chain of one guard.
func (r iptRules) automaton(p func(string, ...any), g guard) {
	verdict := "RETURN"
	if r.options.Consume {
		verdict = "DROP"
	}
	p("# %s: the right knock brings an address that is in one list into the next,", g.Name)
	p("# a wrong one takes it out of all. Repeats do no harm.")
	rule := func(format string, args ...any) { p("-A PORTKNOCK-"+g.ID+" "+format, args...) }
	knocks := iptKnocks(g)
	for _, k := range knocks {
		if k.before != "" {
			rule("%s -m recent --name %s --rcheck --seconds %d -m recent --name %s --set -j %s", k.match, k.before, g.KnockTimeout/time.Second, k.list, verdict)
			continue
		}
		// At most 20 first knocks a second, which is as far as recent counts.
		rule("%s -m recent --name %s --rcheck --seconds 1 --hitcount 20 -j %s", k.match, k.list, verdict)
		rule("%s -m recent --name %s --set -j %s", k.match, k.list, verdict)
	}
	for _, m := range iptMatches(g.IgnorePorts) {
		rule("%s -j RETURN", m)
	}
	for i := len(knocks) - 1; i > 0; i-- {
		rule("-m recent --name %s --remove", knocks[i].list)
	}
}

// filter writes the table that closes everything else.
func (r iptRules) filter(p func(string, ...any), closed []string) {
	p(`*filter
:PORTKNOCK - [0:0]
-I INPUT -j PORTKNOCK
-A PORTKNOCK -i lo -j RETURN
-A PORTKNOCK -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
-4 -A PORTKNOCK -p icmp -j RETURN
-6 -A PORTKNOCK -p ipv6-icmp -j RETURN
-4 -A PORTKNOCK -p udp --sport 67 --dport 68 -j RETURN
-6 -A PORTKNOCK -p udp --dport 546 -j RETURN
# The guard in mangle has judged these.`)
	for _, m := range closed {
		p("-A PORTKNOCK %s -j RETURN", strings.Replace(m, " --syn", "", 1))
	}
	for _, m := range iptMatches(r.options.Allow) {
		p("-A PORTKNOCK %s -j RETURN", m)
	}
	p("-A PORTKNOCK -j DROP\nCOMMIT")
}
