package profile

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// pattern is one word of a Host line.
type pattern struct {
	written string // as it stands in the file
	text    string // in lower case, without the "!"
	not     bool
	wild    bool // holds "*" or "?"
}

func parsePattern(word string) (pattern, error) {
	text, not := strings.CutPrefix(word, "!")
	// A pattern that no host can match is a mistake: quotes ssh would take off,
	// say, or a stray "!".
	if err := CheckHost(strings.NewReplacer("*", "x", "?", "x").Replace(text)); err != nil {
		return pattern{}, fmt.Errorf("%.300q is not a host name or pattern", word)
	}
	return pattern{written: word, text: strings.ToLower(text), not: not, wild: strings.ContainsAny(text, "*?")}, nil
}

// literal reports whether the pattern is the name of one host.
func (p pattern) literal() bool { return !p.not && !p.wild }

// matches reports whether the pattern covers a host, given in lower case,
// whether or not it is negated.
func (p pattern) matches(host string) bool {
	if !p.wild {
		return p.text == host
	}
	ok, _ := path.Match(globEscaper.Replace(p.text), strings.ReplaceAll(host, "/", "\x00"))
	return ok
}

// globs makes a pattern one of [path.Match]: there brackets are for classes, and no
// "*" reaches across a slash, for which a character stands that no host has.
var globEscaper = strings.NewReplacer("[", `\[`, "/", "\x00")

// matches reports whether the block applies to a host, given in lower case: a
// pattern matches it, and no negated one does.
func (b *block) matches(host string) bool {
	return !b.excludes(host) && slices.ContainsFunc(b.patterns, func(p pattern) bool { return !p.not && p.matches(host) })
}

// excludes reports whether a negated pattern matches a host, given in lower
// case.
func (b *block) excludes(host string) bool {
	return slices.ContainsFunc(b.patterns, func(p pattern) bool { return p.not && p.matches(host) })
}

// literals returns the names in the block's Host line, in lower case.
func (b *block) literals() []string {
	var names []string
	for _, p := range b.patterns {
		if p.literal() {
			names = append(names, p.text)
		}
	}
	return names
}

// profileName returns what to call the profile of a host that the blocks match.
// It is the host, unless the first of the blocks to list both it and a name says
// that they are one: since the host is an address, or by giving both their
// HostName.
func (f *File) profileName(host string, blocks []*block) string {
	host = strings.ToLower(host)
	hostName, _ := gather(blocks).get("HostName")
	for _, b := range blocks {
		names := b.literals()
		if !slices.Contains(names, host) {
			continue
		}
		shared := !variesByHost(hostName.Value) && slices.Contains(b.settings, hostName)
		for _, name := range names {
			switch {
			case isAddress(name):
			case isAddress(host):
				return name
			case shared:
				if other, _ := gather(f.matching(name, nil)).get("HostName"); other == hostName {
					return name
				}
			}
		}
	}
	return host
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// sameHost compares addresses as addresses and names without regard to case and
// to the dot at their end.
func sameHost(a, b string) bool {
	x, err := netip.ParseAddr(a)
	if err != nil {
		return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
	}
	y, err := netip.ParseAddr(b)
	return err == nil && x.Unmap() == y.Unmap()
}

// CheckHost refuses what ssh refuses as a host name, and what would be read as
// a pattern or a comment if it were written into a profile.
func CheckHost(host string) error {
	odd := func(r rune) bool {
		return !unicode.IsPrint(r) || strings.ContainsRune(" '`\"$\\;&<>|(){}*?!#=", r)
	}
	if host == "" || len(host) > 255 || host[0] == '-' || !utf8.ValidString(host) || strings.ContainsFunc(host, odd) {
		return fmt.Errorf("%.300q is not a host name", host)
	}
	if host[0] == '[' {
		return fmt.Errorf("%q is not a host name; write an IPv6 address without brackets", host)
	}
	return nil
}

// namesHost reports whether a HostName is another one for each host.
func variesByHost(hostName string) bool {
	return strings.Contains(strings.ReplaceAll(hostName, "%%", ""), "%h")
}

// expand replaces "%h" by the host and "%%" by "%", the tokens that
// ssh_config(5) has for HostName.
func expand(s, host string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	if strings.Contains(strings.NewReplacer("%%", "", "%h", "").Replace(s), "%") {
		return "", fmt.Errorf("%q: a percent sign is only allowed in %%h and %%%%", s)
	}
	return strings.NewReplacer("%%", "%", "%h", host).Replace(s), nil
}
