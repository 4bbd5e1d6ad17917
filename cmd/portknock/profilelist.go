package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

// printFlags has the flags of profile list and profile show.
type printFlags struct {
	config
	json bool
}

func (c *printFlags) flags(a *app, f *pflag.FlagSet) {
	c.config.flags(a, f)
	f.BoolVar(&c.json, "json", false, "print JSON")
}

// profileList is the command that prints the profiles of the file, without their secrets.
type profileList struct{ printFlags }

// listed is a profile, or the patterns of a Host line.
type listed struct {
	Patterns []string `json:"patterns"` // all names of the profile, or the patterns
	Line     int      `json:"line"`     // line number of the first Host line that has them
	HostName string   `json:"hostName,omitempty"`
	Port     uint16   `json:"port,omitempty"`
	Scheme   string   `json:"scheme,omitempty"` // "" if the file has no Sequence or Scheme for them
	Knocks   int      `json:"knocks,omitempty"` // 0 if the scheme has no sequence
	Note     note     `json:"note,omitempty"`
}

// note is what is special about a profile.
type note string

const (
	onlyPattern   note = "pattern"               // matches hosts that the file does not name
	onlySettings  note = "settings only"         // the same, but gives hosts no Sequence or Scheme
	withoutScheme note = "no Sequence or Scheme" // the file names the host, but the host has no profile
	notByHostName note = "not found by %h"       // the HostName leads to another profile, or to none
	onlyByName    note = "%h must be its name"   // the profile has no HostName
)

// noteHelp explains the notes about %h.
const noteHelp = `
ssh passes its HostName as %h. If that does not find the profile, set the HostName in the
profile, or use the lines that portknock ssh-config prints.
`

// isName reports whether a pattern of a Host line is the name of one host.
func isName(pattern string) bool { return !strings.ContainsAny(pattern, "*?!") }

func (c *profileList) run(ctx context.Context, a *app, args []string) error {
	file, err := c.file(ctx, a)
	if err != nil {
		return err
	}
	all := c.all(file)
	if c.json {
		return a.printJSON(all)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "HOST\tHOSTNAME\tPORT\tSCHEME\tKNOCKS\tNOTE\n")
	explain := false
	for _, l := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", strings.Join(l.Patterns, " "), cmp.Or(l.HostName, "-"), orDash(l.Port),
			cmp.Or(l.Scheme, "-"), orDash(l.Knocks), cmp.Or(l.Note, "-"))
		explain = explain || l.Note == notByHostName || l.Note == onlyByName
	}
	if err := w.Flush(); err != nil || !explain {
		return err
	}
	return a.print("%s", noteHelp)
}

// orDash returns a number as text, and "-" for 0.
func orDash[T int | uint16](n T) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// all returns the profiles of the file, and the patterns of its Host lines, in the order of the
// file.
func (c *profileList) all(file *profile.File) []*listed {
	all, byName := []*listed{}, map[string]*listed{}
	for _, e := range file.Entries() {
		patterns := &listed{Line: e.Line}
		for _, pattern := range e.Patterns {
			if !isName(pattern) {
				patterns.Patterns = append(patterns.Patterns, pattern)
				continue
			}
			l := &listed{Line: e.Line}
			name := l.apply(file, pattern, c.settings)
			if byName[name] == nil {
				byName[name] = l
				all = append(all, l)
			}
			if known := byName[name]; !slices.Contains(known.Patterns, pattern) {
				known.Patterns = append(known.Patterns, pattern)
			}
		}
		if i := slices.IndexFunc(patterns.Patterns, func(p string) bool { return p[0] != '!' }); i >= 0 {
			// What applies to a host that the pattern matches, and no name.
			patterns.apply(file, strings.NewReplacer("*", "x", "?", "x").Replace(patterns.Patterns[i]), c.settings)
			patterns.HostName = e.HostName // %h differs from host to host
			patterns.Note = onlyPattern
			if patterns.Scheme == "" {
				patterns.Note = onlySettings
			}
			all = append(all, patterns)
		}
	}
	return all
}

// apply sets what applies to a host, and returns the name of its profile. Without a profile, it
// returns the host.
func (l *listed) apply(file *profile.File, host string, settings []profile.Setting) (name string) {
	p, err := file.Lookup(host, settings...)
	if err != nil {
		l.Note = withoutScheme
		return strings.ToLower(host)
	}
	l.HostName, l.Port, l.Scheme, l.Knocks = p.HostName, cmp.Or(p.Port, 22), p.Scheme, max(len(p.Sequence), p.Knocks)
	found, err := file.Lookup(cmp.Or(p.HostName, p.Name))
	switch _, isNoAddr := netip.ParseAddr(p.Name); {
	case err != nil || found.Name != p.Name:
		l.Note = notByHostName
	case p.HostName == "" && isNoAddr != nil && !strings.Contains(p.Name, "."):
		// ssh has a HostName for such a name, unless the name is in /etc/hosts or the like.
		l.Note = onlyByName
	}
	return p.Name
}
