// Package rules writes the server's half of a knock: the rules that guard a
// port and open it for a moment to whoever knocks right.
//
// [Guard]s go in, text comes out, the same text for the same guards. Nothing
// here reads a file, asks the time or runs a program: an administrator reads
// the text, then loads it. Each firewall is one file.
package rules

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
)

// Guard is one profile's half on the server.
type Guard struct {
	Name         string            // the profile's name
	Schedule     knock.Schedule    // which sequences open; nil if packets of fwknop do
	SPA          *spa.Keys         // of fwknop's packets; nil if sequences open
	OpenPorts    []knock.PortRange // what is closed, and opens
	OpenFor      time.Duration     // how long a knocker may start connections
	KnockTimeout time.Duration     // the most between two knocks
	Skew         time.Duration     // by how much a client's clock may differ
	KnockPorts   []knock.PortRange // where wrong knocks count; everywhere if there are none
	IgnorePorts  []knock.PortRange // where they do not
	Fingerprint  string            // of the key, for the reader; "" if there is none
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
	// From and Until are the time in which sequences that change open: until the
	// end of the window that Until falls into. For others they are not needed.
	From, Until time.Time
	// OpenAtEnd opens the guarded ports to everybody when the last sequence ends,
	// instead of to nobody.
	OpenAtEnd bool
}

// checkAll checks the guards of a file, each and together.
func checkAll(guards []Guard, o Options, f format) ([]guard, error) {
	checked := make([]guard, len(guards))
	for i, g := range guards {
		checked[i] = guard{Guard: g, ID: firewallName(g.Name)}
		other := slices.IndexFunc(checked[:i], func(before guard) bool { return before.ID == checked[i].ID })
		switch {
		case other < 0:
		case checked[other].Name == g.Name:
			return nil, fmt.Errorf("profile %q is given twice", g.Name)
		default:
			return nil, fmt.Errorf("profiles %q and %q map to the same firewall name; rename one", checked[other].Name, g.Name)
		}
	}
	for i := range checked {
		if err := checked[i].check(o, f, guardedPorts(checked)); err != nil {
			return nil, fmt.Errorf("%s: %w", guards[i].Name, err)
		}
	}
	if o.Consume {
		return checked, checkConsume(checked)
	}
	return checked, nil
}

// checkConsume refuses guards that knocks would never reach, since a guard before
// drops them. What two sequences have in common that are drawn by different keys
// is for one window, and not looked for.
func checkConsume(guards []guard) error {
	droppedBy := map[string]string{}
	for _, g := range guards {
		w := g.Windows[len(g.Windows)-1]
		packets := strings.Fields(w.Steps.String())
		if g.timed() {
			packets = []string{fmt.Sprint(w, g.TokenPort)}
		}
		for _, packet := range packets {
			if other := droppedBy[packet]; other != "" && other != g.Name {
				return refuse("Consume", nil,
					"%s: profile %s shares a knock with it and would drop that knock first; use other knocks", g.Name, other)
			}
			droppedBy[packet] = g.Name
		}
	}
	return nil
}

// guard is a Guard whose sequences are known and checked.
type guard struct {
	Guard
	ID        string   // the name as firewalls accept it
	Windows   []window // in order; just one, for ever, if the sequence never changes
	TokenPort uint16   // where tokens go, by udp; 0 if there are none
}

// window is a window of time and what opens in it: the knocks, in order, or any
// one of the tokens. All windows of a guard have the same of the two.
type window struct {
	knock.Window
	Steps  knock.Sequence
	Tokens [][]byte // of [knock.TokenSize], which is as much as nftables compares at once
}

// tokens reports whether it is tokens that open.
func (g guard) tokens() bool { return g.TokenPort > 0 }

// forwards reports whether fwknopd forwards the ports, and nothing of ours closes them.
func (g guard) forwards() bool { return g.SPA != nil && g.SPA.NAT.IsValid() }

// timed reports whether the sequence changes with time.
func (g guard) timed() bool { return g.Windows[0].Window != knock.Window{} }

// until returns when the last sequence ends; never, the zero Time.
func (g guard) end() time.Time { return g.Windows[len(g.Windows)-1].End }

// number counts a window from 1970, in its own length: it is the same in every
// file that has the window.
func (w window) number() int64 {
	if w.Window == (knock.Window{}) {
		return 0
	}
	return w.Start.Unix() / int64(w.End.Sub(w.Start)/time.Second)
}

// from and until are the edges within which a window's sequence is accepted,
// in seconds since 1970.
func (w window) startSecond(skew time.Duration) int64 { return w.Start.Add(-skew).Unix() }
func (w window) endSecond(skew time.Duration) int64   { return w.End.Add(skew).Unix() }

// check fills in the windows of a guard and refuses what the format cannot carry,
// or what would never open.
func (g *guard) check(o Options, f format, guarded []knock.PortRange) error {
	switch {
	case strings.ContainsFunc(g.Name, unicode.IsControl):
		return errors.New("the name contains control characters")
	case len(g.OpenPorts) == 0:
		return errors.New("no ports to open")
	case g.OpenFor < time.Second || g.KnockTimeout < time.Second:
		return errors.New("OpenFor and KnockTimeout must be at least one second")
	case g.SPA != nil && !f.spa:
		return refuse("", func(f format) bool { return f.spa }, "format %s cannot verify the packets of Scheme fwknop", f.name)
	case g.SPA == nil && f.spa:
		return refuse("", func(f format) bool { return !f.spa }, "format %s is for Scheme fwknop only", f.name)
	case g.SPA != nil:
		g.Windows = []window{{}} // one, for ever, with nothing of ours to hear in it
		return g.checkSPA(o, guarded)
	}
	err := g.collectWindows(o, f)
	to := knock.Step{Transport: knock.UDP, Port: g.TokenPort}
	switch {
	case err != nil:
		return err
	case !g.tokens():
		return g.checkKnocks(o, guarded)
	case contains(guarded, to):
		return fmt.Errorf("tokens go to %v, which is a guarded port", to)
	}
	return nil
}

// checkKnocks refuses knocks that would never open, since no firewall of ours sees
// one to a port that is closed, and those that anybody may send by chance.
func (g *guard) checkKnocks(o Options, guarded []knock.PortRange) error {
	notCounted := func(s knock.Step) bool {
		return contains(guarded, s) || contains(g.IgnorePorts, s) || len(g.KnockPorts) > 0 && !contains(g.KnockPorts, s)
	}
	for _, c := range guarded {
		for _, k := range g.KnockPorts {
			// Sooner or later a draw would hit it, when nobody is there to read the error.
			if g.timed() && c.Transport == k.Transport && c.First <= k.Last && k.First <= c.Last {
				return fmt.Errorf("PortRange and Protocol include %v; a guarded port cannot be a knock", c)
			}
		}
	}
	for _, w := range g.Windows {
		if len(w.Steps) == 0 {
			return errors.New("the sequence is empty")
		}
		for i, step := range w.Steps {
			switch {
			case len(step.Payload) > 0:
				return fmt.Errorf("knock %d of %d has a payload, which no format can verify", i+1, len(w.Steps))
			case contains(guarded, step):
				return fmt.Errorf("knock %d of %d goes to a guarded port", i+1, len(w.Steps))
			}
		}
		switch {
		case o.Force:
		case g.timed() && len(w.Steps) < 3:
			// Sooner or later a window has two neighbours.
			return refuse("Force", nil, "a scan of all ports in order finds %d knocks in some window; "+
				"set Knocks to 3 or more", len(w.Steps))
		case len(w.Steps) == 1:
			return refuse("Force", nil, "a scan of all ports sends this sequence; use three knocks or more")
		case g.timed() && g.possibleSequences() < minSequences:
			return refuse("Force", nil, "an attacker can guess %d knocks (%.0f sequences); "+
				"raise Knocks or PortRange", len(w.Steps), g.possibleSequences())
		case !w.Steps.SweepFinds(notCounted):
		case g.timed():
			return refuse("Force", nil, "a scan in order opens the window from %s; raise Knocks or PortRange",
				w.Start.UTC().Format(time.RFC3339))
		default:
			return refuse("Force", nil, "a scan of all ports in order sends this sequence; choose ports that are not neighbors")
		}
	}
	return nil
}

// fewGuesses is what a stranger who sends 100,000 packets a second sends in four
// months.
const minSequences = 1e12

// guesses returns how many sequences there are of as many knocks as open.
func (g guard) possibleSequences() float64 {
	ports := 0
	for _, r := range g.KnockPorts {
		ports += int(r.Last) - int(r.First) + 1
	}
	if ports == 0 {
		ports = 2 * 65535 // of TCP and of UDP
	}
	return math.Pow(float64(ports), float64(len(g.Windows[0].Steps)))
}

// walk fills in the windows from the one that is just over, for a server whose
// clock is behind, to the one that Until falls into. A format that knows no time
// also needs the one that may be knocked by then, by a client whose clock is
// ahead.
func (g *guard) collectWindows(o Options, f format) error {
	entries, until := 0, o.Until
	if !f.clock {
		until = until.Add(g.Skew)
	}
	for moment := o.From.Add(-g.Skew); ; {
		next, err := g.windowAt(moment)
		if err != nil {
			return err
		}
		if next.Window == (knock.Window{}) {
			g.Windows = []window{next}
			return nil
		}
		reason, unit := "the sequence changes", "knocks"
		if next.Tokens != nil {
			reason, unit = "tokens change", "tokens"
		}
		period := next.End.Sub(next.Start)
		entries += len(next.Steps) + len(next.Tokens)
		switch {
		case next.Tokens != nil && !f.tokens:
			return refuse("", format.verifiesTokens, "format %s cannot verify tokens", f.name)
		case !f.clock && (!o.From.Before(o.Until) || len(g.Windows) == f.windows):
			return refuse("Until", format.knowsTime, "%s with time, and format %s has no clock: a file lasts at most %v",
				reason, f.name, time.Duration(f.windows-1)*period-2*g.Skew)
		case !f.clock && o.OpenAtEnd:
			return refuse("", format.knowsTime, "format %s has no clock, so it cannot open the ports at the end", f.name)
		case !o.From.Before(o.Until):
			return refuse("Until", nil, "%s with time, so the rules need an end time", reason)
		case period%time.Second != 0 || g.Skew%time.Second != 0:
			return fmt.Errorf("Skew (%v) and Period (%v) must be whole seconds", g.Skew, period)
		case 2*g.Skew >= period:
			return fmt.Errorf("Period must be more than twice Skew: Skew is %v, Period is %v", g.Skew, period)
		case len(g.Windows) == f.windows:
			return refuse("Until", nil, "until %s there are more than %d windows, the limit of format %s",
				o.Until.UTC().Format(time.RFC3339), f.windows, f.name)
		case f.entries > 0 && entries > f.entries:
			return refuse("Until", nil, "until %s there are more than %d %s, the limit of format %s",
				o.Until.UTC().Format(time.RFC3339), f.entries, unit, f.name)
		}
		g.Windows = append(g.Windows, next)
		if moment = next.End; !moment.Before(until) {
			return nil
		}
	}
}

// window returns the window around a moment, and notes where tokens go.
func (g *guard) windowAt(moment time.Time) (window, error) {
	seqs, bounds, err := g.Schedule.At(moment)
	if err != nil {
		return window{}, err
	}
	tokens, port := asTokens(seqs)
	switch {
	case tokens != nil && bounds != knock.Window{}:
		g.TokenPort = port
		return window{Window: bounds, Tokens: tokens}, nil
	case len(seqs) != 1:
		return window{}, errors.New("the schedule has several sequences at once, which no format supports")
	}
	return window{Window: bounds, Steps: seqs[0]}, nil
}

// asTokens returns what single datagrams to one port carry, and the port, if that
// is what the sequences are: each its own, all of the length of a token.
func asTokens(seqs []knock.Sequence) (tokens [][]byte, port uint16) {
	for _, seq := range seqs {
		if len(seq) != 1 || seq[0].Transport != knock.UDP || len(seq[0].Payload) != knock.TokenSize || seq[0].Port != seqs[0][0].Port {
			return nil, 0
		}
		tokens, port = append(tokens, seq[0].Payload), seq[0].Port
	}
	return tokens, port
}

func contains(ranges []knock.PortRange, s knock.Step) bool {
	return slices.ContainsFunc(ranges, func(r knock.PortRange) bool { return r.Contains(s) })
}

// ident turns a profile's name into what every firewall takes as part of a
// name. Names are kept short for iptables, which allows a chain 28 bytes; one
// that had to be changed carries a hash, so that two never meet.
func firewallName(name string) string {
	const maxBytes = 12
	id := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
	if id == name && len(id) <= maxBytes {
		return id
	}
	return fmt.Sprintf("%.5s_%x", id, sha256.Sum256([]byte(name)))[:maxBytes]
}

// merged returns ranges in order, those of TCP first. Those that touch become one:
// nftables refuses overlaps.
func mergePorts(ranges []knock.PortRange) []knock.PortRange {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b knock.PortRange) int {
		return cmp.Or(cmp.Compare(a.Transport, b.Transport), cmp.Compare(a.First, b.First))
	})
	var all []knock.PortRange
	for _, r := range sorted {
		if n := len(all) - 1; n >= 0 && all[n].Transport == r.Transport && int(r.First) <= int(all[n].Last)+1 {
			all[n].Last = max(all[n].Last, r.Last)
		} else {
			all = append(all, r)
		}
	}
	return all
}

// of returns the ranges of one transport.
func ofTransport(t knock.Transport, ranges []knock.PortRange) []knock.PortRange {
	return slices.DeleteFunc(slices.Clone(ranges), func(r knock.PortRange) bool { return r.Transport != t })
}

// guarded returns what all guards together close.
func guardedPorts(guards []guard) []knock.PortRange {
	var all []knock.PortRange
	for _, g := range guards {
		all = append(all, g.OpenPorts...)
	}
	return all
}

// numbers returns a range without its transport: "22", or "60000-61000" with
// that separator.
func portNumbers(r knock.PortRange, separator string) string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d%s%d", r.First, separator, r.Last)
}

// lines is a text that grows line by line.
type lines struct{ strings.Builder }

func (l *lines) add(format string, args ...any) { fmt.Fprintf(l, format+"\n", args...) }

// join returns the words for the elements of a list, with a separator between two.
func join[T any](list []T, separator string, word func(T) string) string {
	words := make([]string, len(list))
	for i, e := range list {
		words[i] = word(e)
	}
	return strings.Join(words, separator)
}

// when returns a note that holds under a condition.
func textIf(condition bool, note string) string {
	if condition {
		return note
	}
	return ""
}
