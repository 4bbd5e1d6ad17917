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

// pattern is a word of a Host line.
type pattern struct {
	written string // pattern as the file has it
	text    string // pattern in lower case, without "!"
	not     bool   // whether the pattern is negated: it starts with "!"
	wild    bool   // whether the pattern contains "*" or "?"
}

func parsePattern(word string) (pattern, error) {
	text, not := strings.CutPrefix(word, "!")
	// A pattern that no host can match is a mistake, such as a stray "!", or quotes that
	// ssh would remove.
	if err := CheckHost(strings.NewReplacer("*", "x", "?", "x").Replace(text)); err != nil {
		return pattern{}, fmt.Errorf("%.300q is not a host name or pattern", word)
	}
	return pattern{written: word, text: strings.ToLower(text), not: not, wild: strings.ContainsAny(text, "*?")}, nil
}

// literal reports whether the pattern is the name of one host, without wildcard or "!".
func (p pattern) literal() bool { return !p.not && !p.wild }

// matches reports whether the pattern covers a host, which must be in lower case. The
// result does not depend on whether the pattern is negated.
func (p pattern) matches(host string) bool {
	if !p.wild {
		return p.text == host
	}
	ok, _ := path.Match(globEscaper.Replace(p.text), strings.ReplaceAll(host, "/", "\x00"))
	return ok
}

// globEscaper converts a pattern for [path.Match]. In path.Match, a bracket starts a
// character class, so globEscaper escapes it. A "*" does not match a slash, so a
// character that no host contains replaces each slash.
var globEscaper = strings.NewReplacer("[", `\[`, "/", "\x00")

// matches reports whether the block applies to a host, which must be in lower case. A
// pattern must match the host, and no negated pattern may match it.
func (b *block) matches(host string) bool {
	return !b.excludes(host) && slices.ContainsFunc(b.patterns, func(p pattern) bool { return !p.not && p.matches(host) })
}

// excludes reports whether a negated pattern matches a host, which must be in lower case.
func (b *block) excludes(host string) bool {
	return slices.ContainsFunc(b.patterns, func(p pattern) bool { return p.not && p.matches(host) })
}

// literals returns the literal patterns of the block's Host line, in lower case.
func (b *block) literals() []string {
	var names []string
	for _, p := range b.patterns {
		if p.literal() {
			names = append(names, p.text)
		}
	}
	return names
}

// profileName returns the name of the profile of a host, given the blocks that match the
// host. It is the first name on a Host line that lists the host, in two cases:
//   - The host is an address, and the line also lists a name.
//   - The block below the line sets the HostName of that name and of the host, without
//     "%h".
//
// The first block for which this is true decides. Otherwise the name is the host itself,
// in lower case.
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

// sameHost reports whether a and b are the same host. It compares addresses as
// addresses. When it compares names, case and a dot at the end do not matter.
func sameHost(a, b string) bool {
	x, err := netip.ParseAddr(a)
	if err != nil {
		return strings.EqualFold(strings.TrimSuffix(a, "."), strings.TrimSuffix(b, "."))
	}
	y, err := netip.ParseAddr(b)
	return err == nil && x.Unmap() == y.Unmap()
}

// CheckHost returns an error for a host name that ssh does not accept. It also returns an
// error for a host name that a profile file would take as a pattern or a comment.
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

// variesByHost reports whether a HostName contains "%h", and so differs for each host.
func variesByHost(hostName string) bool {
	return strings.Contains(strings.ReplaceAll(hostName, "%%", ""), "%h")
}

// expand replaces "%h" with the host and "%%" with "%". These are the placeholders that
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
