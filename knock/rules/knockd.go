package rules

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// emitKnockd writes a knockd.conf. knockd only opens; what it opens is an
// nftables guard like ours, but without the knocks, which stands in the file
// as comments so that there is one file to keep and to load.
func emitKnockd(w io.Writer, guards []guard, o Options) error {
	if o.Consume {
		return errors.New("knockd only listens, so it cannot consume the knocks: nftables and iptables can")
	}
	file := quote(o.File)
	var guard strings.Builder
	if err := nftTemplate.Execute(&guard, nftRules{guards, o, false}); err != nil {
		return err
	}
	nft := `sed -n "s/^#: //p" ` + file + ` | nft `
	err := header{
		Guards: guards,
		Check:  nft + "-c -f -",
		Load:   nft + "-f - && { pkill -HUP -x knockd || knockd -d -c " + file + "; }",
		Watch:  "nft list table inet portknock",
		Undo:   "pkill -x knockd; " + nftUndo,
		Notes: []string{
			`"flush ruleset", with which Debian's /etc/nftables.conf begins, removes the
guard and leaves the port open: load again after it, and when the server starts.`,
			`knockd watches one interface, eth0 unless you name another:
Interface = NAME  under [options], or the option -i.`,
			`knockd sees only the ports named in here, so that an ascending scan would open
a door: each has a second one of neighbouring ports beside it, a trap. It
counts whole seconds from the first knock on, takes a doubled knock for a wrong
one, and after a lost last knock needs two more attempts.`,
		},
	}.write(w, o)
	if err != nil {
		return err
	}
	doors := make([]knockdDoor, len(guards))
	for i, g := range guards {
		doors[i] = knockdDoor{g}
	}
	return knockdTemplate.Execute(w, struct {
		Guard []string
		Doors []knockdDoor
	}{strings.Split(strings.TrimSpace(guard.String()), "\n"), doors})
}

type knockdDoor struct{ guard }

// Sequence returns the knocks as knockd writes them.
func (d knockdDoor) Sequence() string { return knockdSequence(d.Steps) }

// Trap returns the ports before and behind every knock, as a sequence that
// nobody sends: knockd then sees the ports, and takes them for wrong knocks.
func (d knockdDoor) Trap() string {
	var trap knock.Sequence
	seen := map[string]bool{}
	for _, s := range d.Steps {
		seen[s.String()] = true
	}
	for _, s := range d.Steps {
		for _, port := range []int{int(s.Port) + 1, int(s.Port) - 1} {
			t := knock.Step{Transport: s.Transport, Port: uint16(port)}
			if port < 1 || port > 65535 || seen[t.String()] || contains(d.OpenPorts, t) || contains(d.IgnorePorts, t) {
				continue
			}
			seen[t.String()] = true
			trap = append(trap, t)
		}
	}
	return knockdSequence(trap[:min(len(trap), knock.MaxSteps)])
}

func knockdSequence(s knock.Sequence) string {
	words := make([]string, len(s))
	for i, step := range s {
		words[i] = fmt.Sprintf("%d:%s", step.Port, step.Transport)
	}
	return strings.Join(words, ",")
}

// Timeout returns what knockd allows from the first knock to the last, in
// seconds.
func (d knockdDoor) Timeout() int {
	all := d.KnockTimeout * time.Duration(max(len(d.Steps)-1, 1))
	return int((all + time.Second - 1) / time.Second)
}

// Open returns the command that lets an address in. An element keeps its
// first timeout when it is added again, so it is made anew.
func (d knockdDoor) Open(family string) string {
	set := fmt.Sprintf("element inet portknock open%s_%s", family, d.ID)
	return fmt.Sprintf(`nft "add %[1]s { %%IP%% }; delete %[1]s { %%IP%% }; add %[1]s { %%IP%% timeout %[2]s }"`, set, nftTime(d.OpenFor))
}

var knockdTemplate = text{"knockd", nil, `
{{- range .Guard}}
#: {{.}}
{{- end}}

[options]
	UseSyslog
{{- range .Doors}}

[{{.ID}}]
	sequence = {{.Sequence}}
	seq_timeout = {{.Timeout}}
	tcpflags = syn
	start_command = {{.Open "4"}}
	start_command_6 = {{.Open "6"}}
{{- if .Trap}}

[{{.ID}}_trap]
	sequence = {{.Trap}}
	seq_timeout = {{.Timeout}}
	tcpflags = syn
{{- end}}
{{- end}}
`}
