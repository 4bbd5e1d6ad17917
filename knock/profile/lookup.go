package profile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Lookup returns the profile of a host, which is a name or an address. The settings in
// override come before those of the file.
//
// Lookup uses the settings of all blocks that match the host. If they have neither a
// Sequence nor a Scheme, the host may be the HostName of another block, because ssh
// passes on the HostName instead of the name that the user typed. So Lookup searches for
// the first block whose HostName is the host, and looks up the first name on its Host
// line instead. These rules apply to the search:
//   - If the HostName contains "%h", Lookup looks up the name that, in place of "%h",
//     gives the host. For example, the lines "Host vps" and "HostName %h.example.com" make
//     Lookup look up "vps" for "vps.example.com".
//   - A block may have only wildcards, and thus no name to look up. If its HostName has no
//     "%h", Lookup treats the block as if it matched the host, and the profile's Name is
//     the host.
//   - The HostName of a block does not count for a name if an earlier block that matches
//     this name also sets the HostName.
//   - The settings in override do not decide whether Lookup searches, or what it finds.
//
// If the search finds neither a Sequence nor a Scheme, the error matches [ErrNoProfile].
// The exception: a Host line names the host, and there is a KeyFile or a
// KeyCommand. Then another error says that the Scheme is missing.
//
// The profile's Name is the host, or the name that the search found, in lower case. There
// are two exceptions, so that a server has one Name for all its names and addresses:
//   - If the host is an address, and its Host line also has names, the Name is the first
//     of these. For "Host vps 203.0.113.7", both "vps" and "203.0.113.7" have the Name
//     "vps".
//   - A block may set the HostName, without "%h", of several names on its Host line. All
//     these names have the first of them as their Name.
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

// forgottenScheme returns an error if a Host line contains the name, and the blocks that
// match the name have a key but no Scheme. A Sequence counts as a Scheme.
func (f *File) forgottenScheme(name string, blocks []*block) error {
	name = strings.ToLower(name)
	ss := gather(blocks)
	key, ok := ss.get("KeyFile", "KeyCommand")
	if !ok || ss.defineKnocks() || !slices.ContainsFunc(blocks, func(b *block) bool { return slices.Contains(b.literals(), name) }) {
		return nil
	}
	return f.fault(ss, key.Keyword, fmt.Errorf(`profile %s has a key but no Scheme; add "Scheme rotating" or "Scheme token"`, name))
}

// profile returns the checked profile of a host, given the blocks that match the host. It
// returns nil if the blocks contain neither a Sequence nor a Scheme.
func (f *File) profile(host string, blocks []*block, override settings) (p *Profile, err error) {
	ss := gather(blocks)
	if !ss.defineKnocks() {
		return nil, f.forgottenScheme(host, blocks)
	}
	ss = override.add(ss)
	p = ss.newProfile(ss.scheme())
	p.Name = f.profileName(host, blocks)
	if p.HostName != "" {
		p.HostName, _ = expand(p.HostName, host)      // no error: newSetting has checked it
		if err := CheckHost(p.HostName); err != nil { // "%h" can make the HostName too long
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
		// The key would depend on whether the user looks up the address or a name of the host.
		return nil, f.fault(ss, "DeriveHostKey", fmt.Errorf("%s is an address; add a name to its Host line", p.Name))
	}
	if err := p.complete(); err != nil {
		return nil, f.fault(ss, "Scheme", err)
	}
	return p, nil
}

// scheme returns the scheme that the settings choose. Without a Scheme, it is static.
func (ss settings) scheme() *scheme {
	s, _ := ss.get("Scheme")
	return schemeNamed(cmp.Or(strings.ToLower(s.Value), staticScheme.name))
}

// newProfile returns a profile with the settings that apply to the chosen scheme, without
// defaults. If chosen is nil, all settings apply. newProfile cannot fail, because
// newSetting has checked every setting.
func (ss settings) newProfile(chosen *scheme) *Profile {
	p := new(Profile)
	for _, s := range ss {
		if k := keywordNamed(s.Keyword); chosen == nil || slices.Contains(chosen.groups, k.group) {
			_ = k.set(p, s.Value)
		}
	}
	return p
}

// fault returns an error with the place of a setting and its keyword before it.
func (f *File) fault(ss settings, keyword string, err error) error {
	s, _ := ss.get(keyword)
	return fault(cmp.Or(s.source, f.name), s.line, "%s: %w", keyword, err)
}

// gather returns the settings of the blocks. The first value of each keyword counts.
func gather(blocks []*block) settings {
	var ss settings
	for _, b := range blocks {
		ss = ss.add(b.settings)
	}
	return ss
}

// add appends the settings in more, except those whose keyword ss already contains.
// Some settings are alternatives: a KeyFile and a KeyCommand, an AllowIP and an
// AllowIPCommand, a Sequence and a Scheme other than static. The first alternative
// obtained prevents the other, as with ssh's ProxyCommand and ProxyJump.
func (ss settings) add(more settings) settings {
	had := ss // without more: both alternatives in one block are an error, which conflict finds
	for _, s := range more {
		if !ss.has(s.Keyword) && !had.prevent(s) {
			ss = append(ss, s)
		}
	}
	return ss
}

// prevent reports whether the settings contain an alternative to s.
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

// matching returns the blocks that match a host, in file order. The block assumed counts
// as a match unless it excludes the host. Assumed may be nil.
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

// byHostName finds the name in the file whose HostName is the host. It returns the name
// and the blocks that match the name. Without such a name, it returns the host and nil.
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

// checkBudget limits the comparisons that check makes. In a file of 4 MiB, comparing all
// names with all wildcards could take minutes. No file written by hand comes near the
// limit. Lookup checks the requested host in any case.
const checkBudget = 1 << 22

// uselessEnd returns an error if a block has a ValidUntil and a scheme whose rules do not
// expire. The two may be in different blocks, because a ValidUntil under "Host *" may be for
// other hosts. It then does not apply.
func (ss settings) uselessEnd() (keyword string, err error) {
	s := ss.scheme()
	if !ss.defineKnocks() || !ss.has("ValidUntil") || slices.Contains(s.groups, clockSettings) {
		return "", nil
	}
	return "ValidUntil", fmt.Errorf("cannot be used with Scheme %s, whose rules do not expire", s.name)
}

// check returns the first contradiction within a block. Then it looks up the names of
// each block that has a Sequence, a Scheme or a key, and returns the first error.
func (f *File) check() error {
	for _, b := range f.blocks {
		keyword, err := b.settings.newProfile(nil).conflict(b.settings)
		if err == nil {
			keyword, err = b.settings.uselessEnd()
		}
		if err != nil {
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
