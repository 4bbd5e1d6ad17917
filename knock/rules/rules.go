// Package rules writes the server's half of a knock: the rules that guard a
// port and open it for a moment to whoever knocks right.
//
// [Guard]s go in, text comes out, the same text for the same guards. Nothing
// here reads a file, asks the time or runs a program: an administrator reads
// the text, then loads it. Each firewall is one file.
package rules

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/template"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
)

// Guard is one profile's half on the server.
type Guard struct {
	Name         string            // the profile's name
	Schedule     knock.Schedule    // which sequences open
	OpenPorts    []knock.PortRange // what is closed, and opens
	OpenFor      time.Duration     // how long a knocker may start connections
	KnockTimeout time.Duration     // the most between two knocks
	IgnorePorts  []knock.PortRange // ports that do not count as wrong knocks
}

// Options are what applies to all guards of a file.
type Options struct {
	// File is the path the text will be stored at, for the commands in its
	// header; empty for a conventional one.
	File string
	// DropPolicy closes every other port of the server too, but those of Allow.
	DropPolicy bool
	// Allow are the ports that DropPolicy leaves open to everybody.
	Allow []knock.PortRange
	// Consume drops the knocks instead of leaving them to the firewall that
	// is there. On a server that answers at closed ports this betrays them.
	Consume bool
	// Force accepts a sequence that a scan of all ports would send by chance.
	Force bool
}

// A format turns checked guards into text.
type format struct {
	file string // where its rules are usually kept
	emit func(io.Writer, []guard, Options) error
}

var formats = map[string]format{
	"nftables": {"/etc/portknock.nft", emitNftables},
	"iptables": {"/etc/portknock.rules", emitIptables},
	"knockd":   {"/etc/knockd.conf", emitKnockd},
}

// Formats returns the names that [Emit] knows, sorted.
func Formats() []string { return slices.Sorted(maps.Keys(formats)) }

// Emit writes the rules of all guards in one format. It writes nothing when it
// returns an error for a guard: the text is complete or absent.
func Emit(w io.Writer, name string, guards []Guard, o Options) error {
	f, ok := formats[name]
	if !ok {
		return fmt.Errorf("unknown format %q; the formats are %s", name, strings.Join(Formats(), ", "))
	}
	if len(guards) == 0 {
		return errors.New("no profile to guard")
	}
	if len(o.Allow) > 0 && !o.DropPolicy {
		return errors.New("allowed ports go with the drop policy: nothing else closes them")
	}
	if o.File == "" {
		o.File = f.file
	}
	if strings.ContainsFunc(o.File, unicode.IsControl) {
		return fmt.Errorf("%q: control characters in a file's name", o.File)
	}
	checked := make([]guard, len(guards))
	ids := map[string]string{}
	for i, g := range guards {
		var err error
		if checked[i], err = check(g, o); err != nil {
			return fmt.Errorf("%s: %w", g.Name, err)
		}
		if other, taken := ids[checked[i].ID]; taken {
			return fmt.Errorf("%s: named twice, or too like %s", g.Name, other)
		}
		ids[checked[i].ID] = g.Name
	}
	return f.emit(w, checked, o)
}

// guard is a Guard whose sequence is known and checked.
type guard struct {
	Guard
	ID    string         // the name as firewalls accept it
	Steps knock.Sequence // the sequence
}

func check(g Guard, o Options) (guard, error) {
	seqs, window, err := g.Schedule.At(time.Time{})
	if err != nil {
		return guard{}, err
	}
	if window != (knock.Window{}) || len(seqs) != 1 {
		return guard{}, errors.New("the sequence changes with time, which no format carries yet")
	}
	seq := seqs[0]
	switch {
	case strings.ContainsFunc(g.Name, unicode.IsControl):
		return guard{}, errors.New("control characters in the name")
	case len(seq) == 0:
		return guard{}, errors.New("the sequence is empty")
	case len(g.OpenPorts) == 0:
		return guard{}, errors.New("no ports to open")
	case g.OpenFor < time.Second || g.KnockTimeout < time.Second:
		return guard{}, errors.New("OpenFor and KnockTimeout must be at least one second")
	}
	for i, step := range seq {
		if len(step.Payload) > 0 {
			return guard{}, fmt.Errorf("knock %d of %d carries a payload, which no format verifies yet", i+1, len(seq))
		}
		if contains(g.OpenPorts, step) {
			return guard{}, fmt.Errorf("knock %d of %d goes to a guarded port", i+1, len(seq))
		}
	}
	overlooked := func(s knock.Step) bool { return contains(g.OpenPorts, s) || contains(g.IgnorePorts, s) }
	if seq.SweepFinds(overlooked) && !o.Force {
		return guard{}, errors.New("a scan of all ports in order would open it: choose ports that are not neighbours, or insist with --force")
	}
	return guard{Guard: g, ID: ident(g.Name), Steps: seq}, nil
}

func contains(ranges []knock.PortRange, s knock.Step) bool {
	return slices.ContainsFunc(ranges, func(r knock.PortRange) bool { return r.Contains(s) })
}

// ident turns a profile's name into what every firewall takes as part of a
// name. Names are kept short for iptables, which allows a chain 28 bytes; one
// that had to be changed carries a hash, so that two never meet.
func ident(name string) string {
	const most = 12
	id := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
	if id == name && len(id) <= most {
		return id
	}
	return fmt.Sprintf("%.5s_%x", id, sha256.Sum256([]byte(name)))[:most]
}

// ports returns one transport's ranges, merged where they touch and in order:
// nftables refuses overlaps.
func ports(t knock.Transport, lists ...[]knock.PortRange) []knock.PortRange {
	var all []knock.PortRange
	for _, r := range slices.Concat(lists...) {
		if r.Transport == t {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b knock.PortRange) int { return int(a.First) - int(b.First) })
	var merged []knock.PortRange
	for _, r := range all {
		if n := len(merged) - 1; n >= 0 && int(r.First) <= int(merged[n].Last)+1 {
			merged[n].Last = max(merged[n].Last, r.Last)
		} else {
			merged = append(merged, r)
		}
	}
	return merged
}

// guarded returns what all guards together close, one transport's part.
func guarded(t knock.Transport, guards []guard) []knock.PortRange {
	lists := make([][]knock.PortRange, len(guards))
	for i, g := range guards {
		lists[i] = g.OpenPorts
	}
	return ports(t, lists...)
}

var transports = []knock.Transport{knock.TCP, knock.UDP}

// text is a template. It is parsed when it is executed, once in the life of a
// process that writes rules: connecting to a host writes none, and is in a hurry.
type text struct {
	name  string
	funcs template.FuncMap
	body  string
}

// Execute is that of a template.Template.
func (t text) Execute(w io.Writer, data any) error {
	parsed, err := template.New(t.name).Funcs(t.funcs).Parse(t.body)
	if err != nil {
		return err
	}
	return parsed.Execute(w, data)
}
