package rules

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Format names a firewall, or a daemon with a firewall behind it, whose rules this
// package writes. [Formats] lists them.
type Format string

// format is a row of the table of formats: what it can carry, and the function
// that writes it. A new format is a row and a file.
type format struct {
	name    Format
	file    string // where its rules are usually kept
	emit    func([]guard, Options) (document, error)
	windows int  // how many windows of time it can carry
	entries int  // how many knocks and tokens in all of these; 0 if windows is the only limit
	clock   bool // it knows the time; without that, all windows in it open until it is given others
	tokens  bool // it can verify tokens
	spa     bool // it carries packets of fwknop, and nothing else
	modules bool // its load may have to load modules of the kernel
}

// formats is the table of formats, sorted by name.
func formats() []format {
	return []format{
		{name: "fwknop", file: "/etc/fwknop/access.conf", emit: emitFwknop, spa: true},
		// 30 days of hours, and the two that these cut. More would load slowly and cost
		// each packet more.
		{name: "iptables", file: "/etc/portknock.rules", emit: emitIptables,
			windows: 722, entries: 10_000, clock: true, tokens: true, modules: true},
		{name: "knockd", file: "/etc/knockd.conf", emit: emitKnockd, windows: 4},
		// So many entries load in two seconds, or eight if most are windows, and take
		// nft 500 MB.
		{name: "nftables", file: "/etc/portknock.nft", emit: emitNftables,
			windows: 150_000, entries: 300_000, clock: true, tokens: true},
	}
}

// Formats returns all formats, sorted.
func Formats() []Format { return formatsThat(func(format) bool { return true }) }

// formatsThat returns the formats that can do something.
func formatsThat(can func(format) bool) []Format {
	var names []Format
	for _, f := range formats() {
		if can(f) {
			names = append(names, f.name)
		}
	}
	return names
}

// row returns the row of a format in the table.
func (f Format) row() (format, error) {
	all := formats()
	if i := slices.IndexFunc(all, func(row format) bool { return row.name == f }); i >= 0 {
		return all[i], nil
	}
	known := join(Formats(), ", ", func(f Format) string { return string(f) })
	return format{}, fmt.Errorf("unknown format %q; the formats are %s", string(f), known)
}

// document is what a format makes of guards. The commands are lines of shell.
type document struct {
	check, load, watch, undo string

	parts   string // loads in parts, where load is too much at once for a container; "" if it never is
	refuse  string // fails if load would open a port that is guarded now; "" if load replaces no guard
	reload  string // load for a service: it prints no sequence and no token
	changed string // for a service, when the rules differ from those before; "" if there is nothing to do

	notes []string // paragraphs for the header; an empty one is left out
	body  string   // the text of the file; [format.document] puts the header before it
}

// Emit writes the rules of all guards. It writes nothing when it returns an error
// for a guard: the text is complete or absent.
func (f Format) Emit(w io.Writer, guards []Guard, o Options) error {
	row, err := f.row()
	if err != nil {
		return err
	}
	d, err := row.document(guards, o)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, d.body)
	return err
}

// document checks the guards and makes the document of them.
func (f format) document(guards []Guard, o Options) (document, error) {
	if o.File == "" {
		o.File = f.file
	}
	switch {
	case len(guards) == 0:
		return document{}, errors.New("no profile given")
	case len(o.Allow) > 0 && !o.DropPolicy:
		return document{}, errors.New("allowed ports need the drop policy, because nothing else closes them")
	case strings.ContainsFunc(o.File, unicode.IsControl):
		return document{}, fmt.Errorf("%q: the file name contains control characters", o.File)
	}
	checked, err := checkAll(guards, o, f)
	if err != nil {
		return document{}, err
	}
	d, err := f.emit(checked, o)
	if err == nil {
		d.body = f.header(checked, d, o) + d.body
	}
	return d, err
}

// End returns when the rules of a guard end that [Format.Emit] writes, in UTC. It
// is the zero Time if they never do, or if the format does not know when.
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
