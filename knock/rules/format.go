package rules

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/typo"
)

// Format is the name of a firewall or daemon that this package writes rules for. A
// daemon (knockd, fwknopd) opens ports through a firewall. [Formats] lists all formats.
type Format string

// format is a row of the table of formats: its limits and the function that writes
// its text. A new format needs a row and a Go file.
type format struct {
	name    Format
	file    string // usual path of the rules
	emit    func([]guard, Options) (document, error)
	windows int      // most windows in a file
	entries int      // most knocks and tokens in all windows together; 0 if windows is the only limit
	clock   bool     // a window opens only in its time; without a clock, all open until another load
	tokens  bool     // the format can verify tokens
	repeats bool     // a repeated knock is harmless; else it ends the client's attempt
	spa     bool     // the format verifies SPA packets, and supports neither knocks nor tokens
	shell   []string // files of the folder sh that a script of this format needs
}

// formats is the table of formats, sorted by name.
func formats() []format {
	return []format{
		{name: "fwknop", file: "/etc/fwknop/access.conf", emit: emitFwknop, spa: true, shell: []string{"nftables.sh", "daemon.sh"}},
		// 30 days of hourly windows, and the two windows at the ends that the 30 days
		// cover in part. More windows would load slowly and slow down each packet.
		{name: "iptables", file: "/etc/portknock.rules", emit: emitIptables,
			windows: 722, entries: 10_000, clock: true, tokens: true, repeats: true,
			shell: []string{"iptables.sh"}},
		{name: "knockd", file: "/etc/knockd.conf", emit: emitKnockd, windows: 4,
			shell: []string{"nftables.sh", "daemon.sh"}},
		// 300,000 entries load in two seconds, or in eight seconds if most of them are
		// windows. nft needs 500 MB of memory for them.
		{name: "nftables", file: "/etc/portknock.nft", emit: emitNftables,
			windows: 150_000, entries: 300_000, clock: true, tokens: true, repeats: true,
			shell: []string{"nftables.sh", "nodaemon.sh"}},
	}
}

// Formats returns all formats, sorted by name.
func Formats() []Format { return formatsThat(func(format) bool { return true }) }

// formatsThat returns the formats for which can returns true.
func formatsThat(can func(format) bool) []Format {
	var names []Format
	for _, f := range formats() {
		if can(f) {
			names = append(names, f.name)
		}
	}
	return names
}

// row returns the format's row of the table.
func (f Format) row() (format, error) {
	all := formats()
	if i := slices.IndexFunc(all, func(row format) bool { return row.name == f }); i >= 0 {
		return all[i], nil
	}
	var known []string
	for _, row := range all {
		known = append(known, string(row.name))
	}
	hint := cmp.Or(typo.Hint(string(f), known...), "; the formats are "+strings.Join(known, ", "))
	return format{}, fmt.Errorf("unknown format %q%s", string(f), hint)
}

// document is the text that a format makes from guards, with the commands that its
// header names. Each command is a single line of shell.
type document struct {
	test, load, unload string

	notes  []string // paragraphs of the header; "" paragraphs are left out
	shared string   // rules before the parts
	parts  []string // rules of each guard
	body   string   // what a plain file holds after its header

	daemons    []string // file of each guard's daemon in a script; nil if the format has no daemon
	plainNotes []string // paragraphs of the header of a plain file; a script's header leaves them out
}

// rules returns the rules of all guards.
func (d document) rules() string { return "\n" + d.shared + strings.Join(d.parts, "") }

// Emit writes the rules of all guards. If it returns an error for the guards or the
// options, it has not written anything. If w fails, Emit returns the error of w, and w may
// have a part of the text.
func (f Format) Emit(w io.Writer, guards []Guard, o Options) error {
	row, err := f.row()
	if err != nil {
		return err
	}
	if o.File == "" {
		o.File = row.file
	}
	checked, err := row.check(guards, o)
	if err != nil {
		return err
	}
	d, err := row.emit(checked, o)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, row.header(checked, d, o)+d.body)
	return err
}

// check returns the guards with their windows, or an error if the format cannot
// express them.
func (f format) check(guards []Guard, o Options) ([]guard, error) {
	switch {
	case len(guards) == 0:
		return nil, errors.New("no profile given")
	case len(o.Allow) > 0 && !o.DropPolicy:
		return nil, errors.New("allowed ports need the drop policy, because nothing else closes them")
	case o.Interface != "" && f.clock:
		return nil, errors.New("only knockd and fwknopd listen on an interface")
	case len(o.Interface) > 15 || strings.ContainsFunc(o.Interface, notInInterface):
		return nil, fmt.Errorf("%q is not the name of an interface", o.Interface)
	case strings.ContainsFunc(o.File, unicode.IsControl):
		return nil, fmt.Errorf("%q: the file name contains control characters", o.File)
	}
	if err := checkTrust(o); err != nil {
		return nil, err
	}
	checked, err := checkAll(guards, o, f)
	if err == nil {
		err = checkPublic(o.Public, guardedPorts(checked))
	}
	return checked, err
}

// checkPublic refuses a public port that is guarded: the guard judges a packet to it before
// NAT, and closes the port.
func checkPublic(public, guarded []knock.PortRange) error {
	for _, p := range public {
		for _, g := range guarded {
			if overlap(p, g) {
				return fmt.Errorf("%v is guarded, so it cannot be public", g)
			}
		}
	}
	return nil
}

// notInInterface is true for characters that the name of an interface cannot contain, or
// that the daemons do not read.
func notInInterface(r rune) bool {
	return r <= ' ' || r >= 127 || strings.ContainsRune(`/;'"\#`, r)
}

// TakesRepeats reports whether the rules also open the ports to a client that sends each knock
// twice.
func (f Format) TakesRepeats() bool {
	row, err := f.row()
	return err == nil && row.repeats
}

// End returns when the rules that [Format.Emit] writes for the guard expire, in UTC.
// Emit must accept the guard. End returns the zero Time if the rules do not expire,
// because what opens the ports never changes or because the format has no clock. In both
// cases the rules open the ports until other rules are loaded.
func (f Format) End(g Guard, o Options) time.Time {
	row, err := f.row()
	if err != nil || g.SPA != nil || !row.clock {
		return time.Time{}
	}
	_, w, err := g.Schedule.At(o.Until.Add(-1))
	if err != nil {
		return time.Time{}
	}
	return w.End
}
