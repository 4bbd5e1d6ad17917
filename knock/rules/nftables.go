package rules

import (
	"fmt"
	"io"
	"strings"
	"text/template"
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
		Notes:  append(nftNotes(o), floodNote(guards)),
	}.write(w, o)
	if err != nil {
		return err
	}
	return nftTemplate.Execute(w, nftRules{guards, o, true})
}

const nftUndo = "nft delete table inet portknock"

func nftNotes(o Options) []string {
	return []string{
		`"flush ruleset" removes the guard and leaves the port open. Debian's
/etc/nftables.conf begins with it, and stopping its service does it: end that
file with the line  include "` + o.File + `"`,
		`Keep this file rather than the output of "nft list ruleset", which would
freeze who is in at that moment.`,
	}
}

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
	Guards    []guard
	Options   Options
	Automaton bool
}

// Families are the address families, each with a set of its own per guard:
// a set holds addresses of one length.
func (nftRules) Families() []nftFamily { return nftFamilies }

type nftFamily struct{ N, Addr, Proto string }

var nftFamilies = []nftFamily{{"4", "ip saddr", "ipv4"}, {"6", "ip6 saddr", "ipv6"}}

// Guarded returns the ports that all guards together close, by transport.
func (r nftRules) Guarded() []nftPorts {
	return nftByTransport(func(t knock.Transport) []knock.PortRange { return guarded(t, r.Guards) })
}

// Allowed returns the ports that stay open to everybody, by transport.
func (r nftRules) Allowed() []nftPorts {
	return nftByTransport(func(t knock.Transport) []knock.PortRange { return ports(t, r.Options.Allow) })
}

// Verdict is what becomes of a repeated knock.
func (r nftRules) Verdict() string {
	if r.Options.Consume {
		return "drop"
	}
	return "return"
}

func (nftRules) Size() int { return setSize }

// nftPorts matches packets to some ports of one transport. Only a packet that
// begins something is matched: New for a connection or a flow.
type nftPorts struct {
	Transport knock.Transport
	Ports     []knock.PortRange
}

// Match returns the expression for the ports: "tcp dport { 22, 80-81 }".
func (p nftPorts) Match() string {
	words := make([]string, len(p.Ports))
	for i, r := range p.Ports {
		words[i], _, _ = strings.Cut(r.String(), "/")
	}
	return fmt.Sprintf("%s dport { %s }", p.Transport, strings.Join(words, ", "))
}

// New narrows Match to what opens a connection. A TCP packet without a SYN
// belongs to a session, perhaps to one older than the rules. UDP has no such
// mark: the rule on established flows has gone before.
func (p nftPorts) New() string {
	if p.Transport == knock.TCP {
		return p.Match() + " tcp flags & (fin|syn|rst|ack) == syn"
	}
	return p.Match()
}

func nftByTransport(of func(knock.Transport) []knock.PortRange) []nftPorts {
	var all []nftPorts
	for _, t := range transports {
		if p := of(t); len(p) > 0 {
			all = append(all, nftPorts{t, p})
		}
	}
	return all
}

// Opens returns the guard's ports by transport.
func (g guard) Opens() []nftPorts {
	return nftByTransport(func(t knock.Transport) []knock.PortRange { return ports(t, g.OpenPorts) })
}

// Ignored returns the elements of the set of ports that do not reset.
func (g guard) Ignored() string {
	var words []string
	for _, t := range transports {
		for _, r := range ports(t, g.IgnorePorts) {
			p, _, _ := strings.Cut(r.String(), "/")
			words = append(words, fmt.Sprintf("%s . %s", t, p))
		}
	}
	return strings.Join(words, ", ")
}

// Next returns the elements of the map from stage and knock to the next stage,
// for every knock but the last.
func (g guard) Next() string {
	words := make([]string, len(g.Steps)-1)
	for i := range words {
		words[i] = fmt.Sprintf("%s : %s", nftKnock(i, g.Steps[i]), nftStage(i+1))
	}
	return strings.Join(words, ", ")
}

// Last returns the element of the set of last knocks.
func (g guard) Last() string {
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

var nftTemplate = text{"nftables", template.FuncMap{
	"time": nftTime,
}, `
# Rules are replaced in one step; the sets of who knocks and who is in stay.
table inet portknock
flush table inet portknock
table inet portknock {
	# Before NAT, so that published ports are guarded too.
	chain guard {
		type filter hook prerouting priority -150; policy accept;
		iif lo accept
		ct state established,related accept comment "also makes the kernel put fragments together first"
		fib daddr type != local accept
{{- range $g := .Guards}}
{{- range .Opens}}
		{{.New}} jump door_{{$g.ID}}
{{- end}}
{{- end}}
{{- range .Guarded}}
		{{.New}} counter drop
{{- end}}
{{- if .Automaton}}
		tcp flags & (fin|syn|rst|ack) != syn accept
{{- range $g := .Guards}}
{{- range $.Families}}
		meta nfproto {{.Proto}} meta l4proto { tcp, udp } jump knock{{.N}}_{{$g.ID}}
{{- end}}
{{- end}}
		meta priority set 0:0
{{- end}}
	}
{{- range $g := .Guards}}

	# {{.Name}}
	chain door_{{.ID}} {
{{- range $.Families}}
		{{.Addr}} @open{{.N}}_{{$g.ID}} accept
{{- end}}
	}
{{- range $.Families}}
	set open{{.N}}_{{$g.ID}} { typeof {{.Addr}}; flags dynamic,timeout; size {{$.Size}}; }
{{- end}}
{{- if $.Automaton}}
	# The stage of a knocker and its knock lead to the next stage.
	map next_{{.ID}} { typeof meta priority . meta l4proto . th dport : meta priority; }
	set last_{{.ID}} { typeof meta priority . meta l4proto . th dport; }
	set ignore_{{.ID}} { typeof meta l4proto . th dport; flags interval; }
{{- range $.Families}}
	map at{{.N}}_{{$g.ID}} { typeof {{.Addr}} : meta priority; flags dynamic,timeout; size {{$.Size}}; }
	set made{{.N}}_{{$g.ID}} { typeof {{.Addr}} . meta l4proto . th dport; flags dynamic,timeout; size {{$.Size}}; }
	set pace{{.N}}_{{$g.ID}} { typeof {{.Addr}}; flags dynamic,timeout; size {{$.Size}}; }
	chain knock{{.N}}_{{$g.ID}} {
		meta priority set {{.Addr}} map @at{{.N}}_{{$g.ID}} goto mid{{.N}}_{{$g.ID}}
		goto start{{.N}}_{{$g.ID}}
	}
	chain mid{{.N}}_{{$g.ID}} {
		meta priority set meta priority . meta l4proto . th dport map @next_{{$g.ID}} goto advance{{.N}}_{{$g.ID}}
		meta priority . meta l4proto . th dport @last_{{$g.ID}} goto admit{{.N}}_{{$g.ID}}
		{{.Addr}} . meta l4proto . th dport @made{{.N}}_{{$g.ID}} {{$.Verdict}} comment "a repeat"
		meta l4proto . th dport @ignore_{{$g.ID}} return
		delete @at{{.N}}_{{$g.ID}} { {{.Addr}} : meta priority } comment "a wrong knock"
		goto start{{.N}}_{{$g.ID}}
	}
	chain start{{.N}}_{{$g.ID}} {
		meta priority set 0:0
{{- if eq (len $g.Steps) 1}}
		meta priority . meta l4proto . th dport @last_{{$g.ID}} goto admit{{.N}}_{{$g.ID}}
{{- end}}
		meta priority set meta priority . meta l4proto . th dport map @next_{{$g.ID}} goto begin{{.N}}_{{$g.ID}}
	}
	chain begin{{.N}}_{{$g.ID}} {
		update @pace{{.N}}_{{$g.ID}} { {{.Addr}} timeout 10s limit rate over 20/second burst 60 packets } {{$.Verdict}}
		goto advance{{.N}}_{{$g.ID}}
	}
	chain advance{{.N}}_{{$g.ID}} {
		delete @at{{.N}}_{{$g.ID}} { {{.Addr}} : meta priority }
		add @at{{.N}}_{{$g.ID}} { {{.Addr}} timeout {{time $g.KnockTimeout}} : meta priority }
		update @made{{.N}}_{{$g.ID}} { {{.Addr}} . meta l4proto . th dport timeout {{time $g.KnockTimeout}} }
{{- if $.Options.Consume}}
		drop
{{- end}}
	}
	chain admit{{.N}}_{{$g.ID}} {
		delete @at{{.N}}_{{$g.ID}} { {{.Addr}} : meta priority }
		update @open{{.N}}_{{$g.ID}} { {{.Addr}} timeout {{time $g.OpenFor}} } counter
{{- if $.Options.Consume}}
		drop
{{- end}}
	}
{{- end}}
{{- end}}
{{- end}}

	chain input {
{{- if .Options.DropPolicy}}
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		meta l4proto { icmp, ipv6-icmp } accept
		udp sport 67 udp dport 68 accept comment "DHCP"
		udp dport 546 accept comment "DHCPv6"
{{- range .Guarded}}
		{{.Match}} accept comment "judged by the guard"
{{- end}}
{{- range .Allowed}}
		{{.Match}} accept
{{- end}}
{{- end}}
	}
}
{{- if not .Options.DropPolicy}}
delete chain inet portknock input
{{- end}}
{{- if .Automaton}}
{{- range .Guards}}
flush map inet portknock next_{{.ID}}
flush set inet portknock last_{{.ID}}
flush set inet portknock ignore_{{.ID}}
{{- if .Next}}
add element inet portknock next_{{.ID}} { {{.Next}} }
{{- end}}
add element inet portknock last_{{.ID}} { {{.Last}} }
{{- if .Ignored}}
add element inet portknock ignore_{{.ID}} { {{.Ignored}} }
{{- end}}
{{- end}}
{{- end}}
`}
