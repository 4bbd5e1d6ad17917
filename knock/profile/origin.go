package profile

import (
	"slices"
	"strings"
)

// Origin says where the profile of a host comes from.
type Origin struct {
	Line       int    // line number of the Host line; 0 for settings above the first Host line
	Patterns   string // patterns of the Host line, as written
	ByHostName bool   // the host is the HostName of the profile, and does not match the Host line
}

// Origin describes the block from which [File.Lookup] takes the Sequence or the Scheme of a
// host. It returns false if the file has no profile for the host.
func (f *File) Origin(host string) (o Origin, ok bool) {
	blocks := f.matching(host, nil)
	if o.ByHostName = !gather(blocks).defineKnocks(); o.ByHostName {
		_, blocks = f.byHostName(host)
	}
	s, ok := gather(blocks).get("Sequence", "Scheme")
	if !ok {
		return Origin{}, false
	}
	b := blocks[slices.IndexFunc(blocks, func(b *block) bool { return slices.Contains(b.settings, s) })]
	var patterns []string
	for _, p := range b.patterns {
		patterns = append(patterns, p.written)
	}
	o.Line, o.Patterns = b.line, strings.Join(patterns, " ")
	return o, true
}
