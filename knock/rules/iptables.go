package rules

import (
	"fmt"
	"io"
	"strings"
	"text/template"
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
	return iptTemplate.Execute(w, r)
}

// iptBoth runs a command for both families; it calls the program $t.
func iptBoth(command string) string {
	return "for t in iptables ip6tables; do " + command + "; done"
}

type iptRules struct {
	Guards  []guard
	Options Options
}

func (iptRules) Jump() string { return iptJump }

// Verdict is what becomes of a knock.
func (r iptRules) Verdict() string {
	if r.Options.Consume {
		return "DROP"
	}
	return "RETURN"
}

// load restores, then removes the jumps of earlier loads. Undoing first would
// open the port for a moment and forget who is in.
func (r iptRules) load() string {
	line := "$t-restore -w --noflush " + quote(r.Options.File)
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
	for _, g := range r.Guards {
		mangle.chains = append(mangle.chains, "PORTKNOCK-"+g.ID)
	}
	if !r.Options.DropPolicy {
		return []iptTable{mangle}
	}
	return []iptTable{mangle, {"filter", "INPUT -j PORTKNOCK", []string{"PORTKNOCK"}}}
}

type iptTable struct {
	name, jump string
	chains     []string
}

// Guarded returns matches for the ports that all guards together close.
func (r iptRules) Guarded() []string {
	return iptMatches(func(t knock.Transport) []knock.PortRange { return guarded(t, r.Guards) })
}

// GuardedAny is like Guarded, but matches all packets of a session.
func (r iptRules) GuardedAny() []string {
	var all []string
	for _, m := range r.Guarded() {
		all = append(all, strings.Replace(m, " --syn", "", 1))
	}
	return all
}

func (r iptRules) Allowed() []string {
	return iptMatches(func(t knock.Transport) []knock.PortRange { return ports(t, r.Options.Allow) })
}

// IptOpens returns matches for what the guard opens.
func (g guard) IptOpens() []string {
	return iptMatches(func(t knock.Transport) []knock.PortRange { return ports(t, g.OpenPorts) })
}

// IptIgnored returns matches for the ports that do not count as wrong.
func (g guard) IptIgnored() []string {
	return iptMatches(func(t knock.Transport) []knock.PortRange { return ports(t, g.IgnorePorts) })
}

// IptKnocks returns the knocks from the last to the first: a packet that could
// be two of them counts as the later one.
func (g guard) IptKnocks() []iptKnock {
	var all []iptKnock
	for i := len(g.Steps) - 1; i >= 0; i-- {
		k := iptKnock{
			Match: iptMatch(g.Steps[i].Transport, fmt.Sprint(g.Steps[i].Port)),
			List:  fmt.Sprintf("portknock_%s_%d", g.ID, i+1),
		}
		if i > 0 {
			k.Before = fmt.Sprintf("portknock_%s_%d", g.ID, i)
		}
		if i == len(g.Steps)-1 {
			k.List = fmt.Sprintf("portknock_%s_open", g.ID)
		}
		all = append(all, k)
	}
	return all
}

// iptKnock moves an address that is in Before, if that is not empty, to List.
type iptKnock struct{ Match, Before, List string }

// Stages returns the lists an address passes through.
func (g guard) Stages() []string {
	var all []string
	for i := 1; i < len(g.Steps); i++ {
		all = append(all, fmt.Sprintf("portknock_%s_%d", g.ID, i))
	}
	return all
}

func iptMatches(of func(knock.Transport) []knock.PortRange) []string {
	var all []string
	for _, t := range transports {
		for _, r := range of(t) {
			p, _, _ := strings.Cut(r.String(), "/")
			all = append(all, iptMatch(t, strings.Replace(p, "-", ":", 1)))
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

var iptTemplate = text{"iptables", template.FuncMap{
	"seconds": func(d time.Duration) int { return int(d / time.Second) },
}, `
# In mangle, before NAT, so that published ports are guarded too.
*mangle
:PORTKNOCK - [0:0]
{{- range .Guards}}
:PORTKNOCK-{{.ID}} - [0:0]
{{- end}}
-I {{.Jump}}
-A PORTKNOCK -i lo -j RETURN
# The state also makes the kernel put fragments together first.
-A PORTKNOCK -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
{{- range $g := .Guards}}
{{- range .IptOpens}}
-A PORTKNOCK {{.}} -m recent --name portknock_{{$g.ID}}_open --rcheck --seconds {{seconds $g.OpenFor}} -j RETURN
{{- end}}
{{- end}}
{{- range .Guarded}}
-A PORTKNOCK {{.}} -j DROP
{{- end}}
-A PORTKNOCK -p tcp ! --syn -j RETURN
{{- range .Guards}}
-A PORTKNOCK -p tcp -j PORTKNOCK-{{.ID}}
-A PORTKNOCK -p udp -j PORTKNOCK-{{.ID}}
{{- end}}
{{- range $g := .Guards}}
# {{.Name}}: the right knock brings an address that is in one list into the next,
# a wrong one takes it out of all. Repeats do no harm.
{{- range .IptKnocks}}
{{- if .Before}}
-A PORTKNOCK-{{$g.ID}} {{.Match}} -m recent --name {{.Before}} --rcheck --seconds {{seconds $g.KnockTimeout}} -m recent --name {{.List}} --set -j {{$.Verdict}}
{{- else}}
-A PORTKNOCK-{{$g.ID}} {{.Match}} -m recent --name {{.List}} --rcheck --seconds 1 --hitcount 20 -j {{$.Verdict}}
-A PORTKNOCK-{{$g.ID}} {{.Match}} -m recent --name {{.List}} --set -j {{$.Verdict}}
{{- end}}
{{- end}}
{{- range .IptIgnored}}
-A PORTKNOCK-{{$g.ID}} {{.}} -j RETURN
{{- end}}
{{- range .Stages}}
-A PORTKNOCK-{{$g.ID}} -m recent --name {{.}} --remove
{{- end}}
{{- end}}
COMMIT
{{- if .Options.DropPolicy}}
*filter
:PORTKNOCK - [0:0]
-I INPUT -j PORTKNOCK
-A PORTKNOCK -i lo -j RETURN
-A PORTKNOCK -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
-4 -A PORTKNOCK -p icmp -j RETURN
-6 -A PORTKNOCK -p ipv6-icmp -j RETURN
-4 -A PORTKNOCK -p udp --sport 67 --dport 68 -j RETURN
-6 -A PORTKNOCK -p udp --dport 546 -j RETURN
# The guard in mangle has judged these.
{{- range .GuardedAny}}
-A PORTKNOCK {{.}} -j RETURN
{{- end}}
{{- range .Allowed}}
-A PORTKNOCK {{.}} -j RETURN
{{- end}}
-A PORTKNOCK -j DROP
COMMIT
{{- end}}
`}
