package profile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Lookup returns the profile of a host, a name or an address, with the settings
// of override before those of the file.
//
// The settings are those of all blocks that match the host as given. If they
// hold neither a Sequence nor a Scheme, the host may be what ssh has made of a
// name: then the first block whose HostName is the host says which, and its
// first name (the one that "%h" turns into the host, if there is a "%h") is
// looked up instead. A block of wildcards only has no such name; it is then
// taken as if it matched, and the profile is called as the host. A HostName that
// an earlier block overrules does not count. If that gives neither a Sequence
// nor a Scheme, the error is [ErrNoProfile]. What override sets does not choose.
//
// The error is another one if a Host line names the host and the settings hold a
// KeyFile or a KeyCommand: then the Scheme has been forgotten.
//
// The profile's Name is the host in lower case, except that one server has one
// name, whichever it is asked for by: an address goes by the first name of its
// Host line, as "vps" for both of "Host vps 203.0.113.7", and so does any name if
// what follows sets the HostName, without "%h".
func (f *File) Lookup(host string, override ...Setting) (*Profile, error) {
	if err := CheckHost(host); err != nil {
		return nil, err
	}
	var given settings
	for _, s := range override {
		s, err := s.checkAgain()
		if err != nil {
			return nil, err
		}
		given = given.add(settings{s})
	}
	matched := f.matching(host, nil)
	name, blocks := host, matched
	if !gather(matched).defineKnocks() {
		name, blocks = f.byHostName(host)
	}
	p, err := f.profile(name, blocks, given)
	if p == nil {
		err = cmp.Or(f.forgottenScheme(host, matched), err, fmt.Errorf("%w for %q in %s", ErrNoProfile, host, f.name))
	}
	return p, err
}

// forgottenScheme returns an error if a Host line has this name, and the blocks
// that match it hold a key but neither a Sequence nor a Scheme.
func (f *File) forgottenScheme(name string, blocks []*block) error {
	name = strings.ToLower(name)
	ss := gather(blocks)
	key, ok := ss.get("KeyFile", "KeyCommand")
	if !ok || ss.defineKnocks() || !slices.ContainsFunc(blocks, func(b *block) bool { return slices.Contains(b.literals(), name) }) {
		return nil
	}
	return f.fault(ss, key.Keyword, fmt.Errorf(`profile %s has a key but no Scheme; add "Scheme rotating" or "Scheme token"`, name))
}

// profile makes and checks the profile of a host that the blocks match. It returns
// nil if they do not say how to knock.
func (f *File) profile(host string, blocks []*block, override settings) (p *Profile, err error) {
	ss := gather(blocks)
	if !ss.defineKnocks() {
		return nil, f.forgottenScheme(host, blocks)
	}
	ss = override.add(ss)
	p = ss.newProfile(ss.scheme())
	p.Name = f.profileName(host, blocks)
	if p.HostName != "" {
		p.HostName, _ = expand(p.HostName, host)      // newSetting has tried it
		if err := CheckHost(p.HostName); err != nil { // "%h" can make it too long
			return nil, f.fault(ss, "HostName", err)
		}
	}
	p.setDefaults(ss)
	for _, k := range keywords {
		if k.path == nil || *k.path(p) == "" {
			continue
		}
		path := k.path(p)
		if *path, err = keyPath(*path, f.dir); err != nil {
			return nil, f.fault(ss, k.name, err)
		}
	}
	if keyword, err := p.conflict(ss); err != nil {
		return nil, f.fault(ss, keyword, err)
	}
	if p.DeriveHostKey && isAddress(p.Name) {
		// The same host by its name would have another key.
		return nil, f.fault(ss, "DeriveHostKey", fmt.Errorf("%s is an address; add a name to its Host line", p.Name))
	}
	if err := p.complete(); err != nil {
		return nil, f.fault(ss, "Scheme", err)
	}
	return p, nil
}

// scheme returns the scheme that settings choose, static if they do not say.
func (ss settings) scheme() *scheme {
	s, _ := ss.get("Scheme")
	return schemeNamed(cmp.Or(strings.ToLower(s.Value), staticScheme.name))
}

// fill makes a profile of the settings that apply to a scheme, without defaults;
// of all settings if it is nil. It cannot fail: none got here that newSetting has
// not tried.
func (ss settings) newProfile(chosen *scheme) *Profile {
	p := new(Profile)
	for _, s := range ss {
		if k := keywordNamed(s.Keyword); chosen == nil || slices.Contains(chosen.groups, k.group) {
			_ = k.set(p, s.Value)
		}
	}
	return p
}

// fault puts the place of a setting before an error.
func (f *File) fault(ss settings, keyword string, err error) error {
	s, _ := ss.get(keyword)
	return fault(cmp.Or(s.source, f.name), s.line, "%s: %w", keyword, err)
}

// gather returns the settings of blocks, the first value of each.
func gather(blocks []*block) settings {
	var ss settings
	for _, b := range blocks {
		ss = ss.add(b.settings)
	}
	return ss
}

// add appends the settings that are not there yet. Of two that say the same in
// two ways, the first obtained prevents the other, as with ssh's ProxyCommand and
// ProxyJump: a KeyFile and a KeyCommand, an AllowIP and an AllowIPCommand, a
// Sequence and a Scheme other than static.
func (ss settings) add(more settings) settings {
	had := ss // both in one block are left for conflict to find
	for _, s := range more {
		if !ss.has(s.Keyword) && !had.prevent(s) {
			ss = append(ss, s)
		}
	}
	return ss
}

// prevent reports whether the settings say in another way what s says.
func (ss settings) prevent(s Setting) bool {
	switch s.Keyword {
	case "KeyFile", "KeyCommand":
		return ss.has("KeyFile", "KeyCommand")
	case "AllowIP", "AllowIPCommand":
		return ss.has("AllowIP", "AllowIPCommand")
	case "Scheme":
		return ss.has("Sequence")
	case "Sequence":
		return ss.scheme().name != staticScheme.name
	}
	return false
}

// matching returns the blocks that match a host, in file order. The block as,
// if any, need only not exclude it.
func (f *File) matching(host string, assumed *block) []*block {
	host = strings.ToLower(host)
	numbers := slices.Concat(f.byName[host], f.wild)
	slices.Sort(numbers)
	var blocks []*block
	for _, n := range numbers {
		if b := f.blocks[n]; b.matches(host) || b == assumed && !b.excludes(host) {
			blocks = append(blocks, b)
		}
	}
	return blocks
}

// byHostName returns the name under which the file knows a host by its
// HostName, and the blocks for it; none if it does not.
func (f *File) byHostName(host string) (name string, blocks []*block) {
	for _, b := range f.blocks {
		s, ok := b.settings.get("HostName")
		if !ok {
			continue
		}
		names, assumed := b.literals(), (*block)(nil)
		if len(names) == 0 && !variesByHost(s.Value) {
			names, assumed = []string{host}, b
		}
		for _, name := range names {
			if expanded, err := expand(s.Value, name); err != nil || !sameHost(expanded, host) {
				continue
			}
			blocks := f.matching(name, assumed)
			if first, _ := gather(blocks).get("HostName"); first == s {
				return name, blocks
			}
		}
	}
	return host, nil
}

// index fills byName and wild.
func (f *File) index() {
	for n, b := range f.blocks {
		if slices.ContainsFunc(b.patterns, func(p pattern) bool { return p.wild && !p.not }) {
			f.wild = append(f.wild, n)
			continue
		}
		for _, name := range b.literals() {
			f.byName[name] = append(f.byName[name], n)
		}
	}
}

// checkBudget bounds the comparisons of check. The product of names and
// wildcards in a file of 4 MiB could take minutes; no file kept by hand comes
// near, and Lookup checks the host it is asked for anyway.
const checkBudget = 1 << 22

// check finds the contradictions within each block, and those that come out
// when the names of a block that says how to knock, or has a key, are looked up.
func (f *File) check() error {
	for _, b := range f.blocks {
		if keyword, err := b.settings.newProfile(nil).conflict(b.settings); err != nil {
			return f.fault(b.settings, keyword, err)
		}
	}
	budget := checkBudget
	checked := make(map[string]bool)
	for _, b := range f.blocks {
		if !b.settings.has("Sequence", "Scheme", "KeyFile", "KeyCommand") {
			continue
		}
		for _, name := range b.literals() {
			if checked[name] {
				continue
			}
			checked[name] = true
			if budget -= 64 + len(f.wild) + len(f.byName[name]); budget < 0 {
				return nil
			}
			if _, err := f.profile(name, f.matching(name, nil), nil); err != nil {
				return err
			}
		}
	}
	return nil
}
