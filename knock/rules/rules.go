// Package rules writes the server's half of a knock: rules that guard ports, and
// open them for a short time to each address that sent the right knocks.
//
// [Format.Emit] writes the text for a list of guards; see [Guard]. The same guards and
// options always give the same text.
// The package does not read files, ask for the time or run programs: an
// administrator reads the text and then loads it. Each firewall has its own Go file.
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

// Guard is the server's half of one profile.
type Guard struct {
	Name         string            // name of the profile
	Schedule     knock.Schedule    // sequences that open the ports; nil if SPA packets open them
	SPA          *spa.Keys         // keys of fwknop's SPA packets; nil if sequences open the ports
	OpenPorts    []knock.PortRange // guarded ports
	OpenFor      time.Duration     // time in which an admitted address may start connections
	KnockTimeout time.Duration     // longest time that the server allows between two knocks
	Skew         time.Duration     // largest difference between the clocks of client and server
	KnockPorts   []knock.PortRange // ports to which knocks go, right or wrong; all ports if empty
	IgnorePorts  []knock.PortRange // ports to which a packet does not count as a wrong knock; may be empty
	Fingerprint  string            // fingerprint of the key, shown in the header; "" without a key
	Repeat       int               // how often a client sends each knock: 1 or 2; 0 means 1
}

// Options apply to all guards of a file.
type Options struct {
	// File is the path where the text will be stored. The commands in the header
	// name it. If it is "", they name the usual path of the format.
	File string
	// Interface is the network interface on which knockd or fwknopd listens. If it is "",
	// a script uses the interface of the default route, and a plain file leaves the choice
	// to the daemon, which takes eth0.
	Interface string
	// DropPolicy also closes all other ports of the server, except those in Allow.
	DropPolicy bool
	// Allow lists the ports that DropPolicy leaves open to everybody.
	Allow []knock.PortRange
	// Public lists ports that NAT of this server leads to a guarded port (REDIRECT or DNAT),
	// and that stay open to everybody. Without it, the guard also covers these ports.
	Public []knock.PortRange
	// Trust lists the sources that need no knock for the guarded ports. With DropPolicy,
	// all other ports stay open to them too.
	Trust []Trust
	// Consume drops the knocks instead of leaving them to the server's other rules. Set it
	// only if the server drops packets to all closed ports. Otherwise a scan finds the
	// knock ports, because only these do not answer.
	Consume bool
	// Force accepts guards that are otherwise refused as too weak: a sequence that a scan
	// of all ports sends, a sequence that attackers know from documentation, sequences that
	// an attacker could guess, SPA packets without an HMAC, and a Trust of every address.
	Force bool
	// From and Until bound the time in which changing sequences and tokens open the
	// ports. The rules are valid until the end of the first window that ends at Until or
	// later. Sequences that never change need neither From nor Until.
	From, Until time.Time
	// Log logs connections that the guard lets through, at most ten a minute.
	Log bool
	// OpenAtEnd opens the guarded ports to everybody when the last window ends.
	// Without it, the ports are then closed to everybody.
	OpenAtEnd bool
}

// checkAll checks each guard of a file, and the guards together.
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

// checkConsume refuses guards whose knocks an earlier guard would drop. Sequences
// from different keys may share a knock by chance, but only for one window:
// checkConsume does not look for that.
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
	ID        string   // name of the guard in the firewall
	Windows   []window // windows in order; one window without bounds if the sequence never changes
	TokenPort uint16   // UDP port that receives tokens; 0 if knocks or SPA packets open the ports
	copy      string   // text after ID in names, for a second copy of the rules; usually ""
}

// window is a window of time and what opens the ports in it: either the knocks in
// order, or any single one of the tokens. All windows of a guard have knocks, or all
// have tokens.
type window struct {
	knock.Window
	Steps  knock.Sequence
	Tokens [][]byte // tokens of knock.TokenSize bytes, the most that nftables compares at once
}

// tokens reports whether tokens open the ports.
func (g guard) tokens() bool { return g.TokenPort > 0 }

// stages returns the number of knocks in a sequence, or 0 if none open the ports.
func (g guard) stages() int { return len(g.Windows[0].Steps) }

// keyID returns the text in the names of sets that belong to the key of the guard.
func (g guard) keyID() string { return cmp.Or(g.Fingerprint, g.ID) }

// forwards reports whether fwknopd forwards the ports. Then no rule of this package
// closes them.
func (g guard) forwards() bool { return g.SPA != nil && g.SPA.NAT.IsValid() }

// timed reports whether the sequence changes with time.
func (g guard) timed() bool { return g.Windows[0].Window != knock.Window{} }

// end returns when the last window ends, or the zero Time if the sequence never changes.
func (g guard) end() time.Time { return g.Windows[len(g.Windows)-1].End }

// number counts windows of this length since 1970. A window has the same number in
// every file.
func (w window) number() int64 {
	if w.Window == (knock.Window{}) {
		return 0
	}
	return w.Start.Unix() / int64(w.End.Sub(w.Start)/time.Second)
}

// startSecond and endSecond return when a server starts and stops accepting the
// window, in seconds since 1970. The time is longer than the window by skew at each end, but
// does not start before 1970, because the firewalls cannot read such a time.
func (w window) startSecond(skew time.Duration) int64 { return max(0, w.Start.Add(-skew).Unix()) }
func (w window) endSecond(skew time.Duration) int64   { return w.End.Add(skew).Unix() }

// check sets the windows of a guard. It refuses guards that the format cannot express,
// and guards that would never open.
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
	case g.Repeat < 0 || g.Repeat > 2:
		return errors.New("set Repeat to 1 or 2")
	case g.Repeat == 2 && g.SPA != nil:
		return refuse("", nil, "the profile uses Repeat 2, but fwknopd accepts each SPA packet only once")
	case g.SPA != nil:
		g.Windows = []window{{}} // one window without bounds or knocks: fwknopd receives the packets
		return g.checkSPA(o, guarded)
	}
	err := g.collectWindows(o, f)
	to := knock.Step{Transport: knock.UDP, Port: g.TokenPort}
	switch {
	case err != nil:
		return err
	case g.Repeat == 2 && !f.repeats:
		return refuse("", format.takesRepeats, "the profile uses Repeat 2, but format %s cannot take repeated knocks", f.name)
	case !g.tokens():
		return g.checkKnocks(o, guarded)
	case contains(guarded, to):
		return fmt.Errorf("tokens go to %v, which is a guarded port", to)
	}
	return nil
}

// checkKnocks refuses a knock to a guarded port, because no format sees such a knock
// and the sequence would never open. It also refuses sequences that a scan sends by
// chance, or that an attacker can guess.
func (g *guard) checkKnocks(o Options, guarded []knock.PortRange) error {
	notCounted := func(s knock.Step) bool {
		return contains(guarded, s) || contains(g.IgnorePorts, s) || len(g.KnockPorts) > 0 && !contains(g.KnockPorts, s)
	}
	for _, c := range guarded {
		for _, k := range g.KnockPorts {
			// Some later window would have a knock at this port, when nobody is there to
			// read the error.
			if g.timed() && overlap(c, k) {
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
			// Some window will have two neighboring ports.
			return refuse("Force", nil, "a scan of all ports in order finds %d knocks in some window; "+
				"set Knocks to 3 or more", len(w.Steps))
		case len(w.Steps) == 1:
			return refuse("Force", nil, "a scan of all ports sends this sequence; use three knocks or more")
		case g.timed() && g.possibleSequences() < minSequences:
			return refuse("Force", nil, "an attacker can guess %d knocks (%.0f sequences); "+
				"raise Knocks or PortRange", len(w.Steps), g.possibleSequences())
		case !g.timed() && isExample(w.Steps):
			return refuse("Force", nil, "attackers know the knocks 7000 8000 9000 from documentation; choose other ports")
		case !w.Steps.SweepFinds(notCounted):
			if !g.timed() && len(w.Steps) < 3 {
				return refuse("Force", nil, "an attacker can guess two knocks in a day; use three knocks or more")
			}
		case g.timed():
			return refuse("Force", nil, "a port scan opens it in the window from %s; raise Knocks or PortRange",
				w.Start.UTC().Format(time.RFC3339))
		default:
			return refuse("Force", nil, "a scan of all ports in order sends this sequence; choose ports that are not neighbors")
		}
	}
	return nil
}

// isExample reports whether a sequence is the one that knockd and others use as an example,
// with any transports and in any order.
func isExample(s knock.Sequence) bool {
	ports := each(s, func(step knock.Step) uint16 { return step.Port })
	slices.Sort(ports)
	return slices.Equal(ports, []uint16{7000, 8000, 9000})
}

// minSequences is the number of packets that an attacker sends in four months, at
// 100,000 packets a second.
const minSequences = 1e12

// possibleSequences returns the number of sequences that have as many knocks as the
// guard's sequences.
func (g guard) possibleSequences() float64 {
	ports := 0
	for _, r := range g.KnockPorts {
		ports += int(r.Last) - int(r.First) + 1
	}
	if ports == 0 {
		ports = 2 * 65535 // all ports of TCP and UDP
	}
	return math.Pow(float64(ports), float64(len(g.Windows[0].Steps)))
}

// collectWindows sets g.Windows. The first window is the one at From minus Skew,
// because the server's clock may be behind. It does not start before 1970: a server without
// a battery for its clock may start there. The last window is the first that ends at
// Until or later. A format without a clock also needs the windows until Skew after
// Until, because a client whose clock is ahead may already knock in them.
func (g *guard) collectWindows(o Options, f format) error {
	entries, until := 0, o.Until
	if !f.clock {
		until = until.Add(g.Skew)
	}
	for moment := time.Unix(max(0, o.From.Add(-g.Skew).Unix()), 0); ; {
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
			return refuse("Until", format.knowsTime, "%s, and format %s has no clock: a file lasts at most %v",
				reason, f.name, time.Duration(f.windows-1)*period-2*g.Skew)
		case !f.clock && o.OpenAtEnd:
			return refuse("", format.knowsTime, "format %s has no clock, so it cannot open the ports at the end", f.name)
		case !o.From.Before(o.Until):
			return refuse("Until", nil, "%s with time, so the rules need an end time", reason)
		case period%time.Second != 0 || g.Skew%time.Second != 0:
			return fmt.Errorf("the Skew (%v) and the Period (%v) must be whole seconds", g.Skew, period)
		case 2*g.Skew >= period:
			return fmt.Errorf("the Period must be more than twice the Skew: Skew is %v, Period is %v", g.Skew, period)
		case len(g.Windows) == f.windows:
			return refuse("Until", nil, "until %s there are over %d windows, the limit of format %s",
				o.Until.UTC().Format(time.RFC3339), f.windows, f.name)
		case f.entries > 0 && entries > f.entries:
			return refuse("Until", nil, "until %s there are over %d %s, the limit of format %s",
				o.Until.UTC().Format(time.RFC3339), f.entries, unit, f.name)
		}
		g.Windows = append(g.Windows, next)
		if moment = next.End; !moment.Before(until) {
			return nil
		}
	}
}

// windowAt returns the window around a moment. For tokens, it also sets g.TokenPort.
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

// asTokens returns the tokens and their UDP port if each sequence is a single
// datagram to that port, with a payload of knock.TokenSize bytes. Otherwise it
// returns nil and 0.
func asTokens(seqs []knock.Sequence) (tokens [][]byte, port uint16) {
	for _, seq := range seqs {
		if len(seq) != 1 || seq[0].Transport != knock.UDP || len(seq[0].Payload) != knock.TokenSize || seq[0].Port != seqs[0][0].Port {
			return nil, 0
		}
		tokens, port = append(tokens, seq[0].Payload), seq[0].Port
	}
	return tokens, port
}

// contains reports whether one of the ranges contains the destination of a step.
func contains(ranges []knock.PortRange, s knock.Step) bool {
	return slices.ContainsFunc(ranges, func(r knock.PortRange) bool { return r.Contains(s) })
}

// firewallName turns a profile's name into text that every firewall accepts as part
// of a name. It is short because iptables allows 28 bytes in the name of a chain. A
// name that had to be changed gets a hash, so that it differs from other names.
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

// overlap reports whether two ranges share a port.
func overlap(a, b knock.PortRange) bool {
	return a.Transport == b.Transport && a.First <= b.Last && b.First <= a.Last
}

// mergePorts returns the ranges in order, TCP before UDP. It joins ranges that
// overlap or touch, because nftables refuses overlaps.
func mergePorts(ranges []knock.PortRange) []knock.PortRange {
	byStart := func(a, b knock.PortRange) int {
		return cmp.Or(cmp.Compare(a.Transport, b.Transport), cmp.Compare(a.First, b.First))
	}
	var all []knock.PortRange
	for _, r := range sorted(ranges, byStart) {
		if n := len(all) - 1; n >= 0 && all[n].Transport == r.Transport && int(r.First) <= int(all[n].Last)+1 {
			all[n].Last = max(all[n].Last, r.Last)
		} else {
			all = append(all, r)
		}
	}
	return all
}

// ofTransport returns the ranges of one transport.
func ofTransport(t knock.Transport, ranges []knock.PortRange) []knock.PortRange {
	return slices.DeleteFunc(slices.Clone(ranges), func(r knock.PortRange) bool { return r.Transport != t })
}

// guardedPorts returns the guarded ports of all guards.
func guardedPorts(guards []guard) []knock.PortRange {
	var all []knock.PortRange
	for _, g := range guards {
		all = append(all, g.OpenPorts...)
	}
	return all
}

// portNumbers returns a range without its transport: "22", or "60000-61000" with
// separator "-".
func portNumbers(r knock.PortRange, separator string) string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d%s%d", r.First, separator, r.Last)
}

// lines is a text that grows line by line.
type lines struct{ strings.Builder }

// add appends a line.
func (l *lines) add(format string, args ...any) { fmt.Fprintf(l, format+"\n", args...) }

// join calls word for each element of a list, and joins the results with a separator.
func join[T any](list []T, separator string, word func(T) string) string {
	return strings.Join(each(list, word), separator)
}

// sorted returns a sorted copy of a short list. For each type of elements, slices.SortFunc
// would add more than 10 kB to the program.
func sorted[T any](list []T, compare func(a, b T) int) []T {
	list = slices.Clone(list)
	for i := range list {
		for k := i; k > 0 && compare(list[k], list[k-1]) < 0; k-- {
			list[k], list[k-1] = list[k-1], list[k]
		}
	}
	return list
}

// each calls text for each element of a list, and returns the results.
func each[T, U any](list []T, text func(T) U) []U {
	texts := make([]U, len(list))
	for i, e := range list {
		texts[i] = text(e)
	}
	return texts
}

// textIf returns the text if the condition is true, else "".
func textIf(condition bool, note string) string {
	if condition {
		return note
	}
	return ""
}
