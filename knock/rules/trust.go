package rules

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Trust is a source whose connections need no knock: a network interface of the server, or
// a range of addresses. [ParseTrust] makes the values; the zero Trust is not valid.
type Trust struct {
	iface  string // name of the interface; "" for a range of addresses
	prefix netip.Prefix
}

// ParseTrust reads a list of interfaces, addresses and prefixes, such as
// "wg0,192.168.1.0/24 2001:db8::7". Commas or spaces separate them. An interface need not
// exist yet.
func ParseTrust(list string) ([]Trust, error) {
	words := strings.FieldsFunc(list, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' })
	if len(words) == 0 {
		return nil, errors.New("no source given; expected an interface or a prefix such as 192.168.1.0/24")
	}
	all := make([]Trust, len(words))
	for i, word := range words {
		t, err := parseTrust(word)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", word, err)
		}
		all[i] = t
	}
	return all, nil
}

func parseTrust(word string) (Trust, error) {
	// No name of an interface that parseInterface accepts has these characters.
	if !strings.ContainsAny(word, ":/%") && strings.Trim(word, "0123456789.") != "" {
		return parseInterface(word)
	}
	if address, zone, found := strings.Cut(word, "%"); found {
		zone, _, _ = strings.Cut(zone, "/")
		return Trust{}, fmt.Errorf("an address with a zone; write %s, or trust the interface %s", address, zone)
	}
	p, err := netip.ParsePrefix(word)
	if a, addrErr := netip.ParseAddr(word); addrErr == nil {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		return Trust{}, errors.New("not an interface, an address or a prefix; write a prefix as 192.168.1.0/24")
	case p.Addr().Is4In6() && p.Bits() >= 96:
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked()
		return Trust{}, fmt.Errorf("an IPv4 address in an IPv6 address; write %s", Trust{prefix: p}.String())
	case p != p.Masked():
		return Trust{}, fmt.Errorf("bits are set after the prefix; write %s, or %s for one address", p.Masked().String(), p.Addr().String())
	}
	return Trust{prefix: p}, nil
}

// parseInterface accepts the names that every firewall and shell reads without quotes. A "+"
// or "*" at the end would be a pattern.
func parseInterface(name string) (Trust, error) {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@-"
	switch {
	case len(name) > 15:
		return Trust{}, errors.New("the name of an interface has at most 15 bytes; see ip link")
	case name[0] == '-' || strings.Trim(name, letters) != "":
		return Trust{}, errors.New(`the name of an interface has letters, digits and "._@-", and does not start with "-"`)
	case strings.Contains(name, scriptCopy) || strings.Contains(name, "PORTKNOCK"):
		return Trust{}, errors.New("the rules use this name themselves; rename the interface")
	}
	return Trust{iface: name}, nil
}

// String returns the interface, the address or the prefix, such as "192.168.1.0/24".
func (t Trust) String() string {
	if t.iface != "" || !t.prefix.IsSingleIP() {
		return cmp.Or(t.iface, t.prefix.String())
	}
	return t.prefix.Addr().String()
}

// everyone reports whether a range has all addresses of its family.
func (t Trust) everyone() bool { return t.prefix.IsValid() && t.prefix.Bits() == 0 }

// checkTrust refuses sources that make the guard useless.
func checkTrust(o Options) error {
	for _, t := range o.Trust {
		switch {
		case t == Trust{}:
			return errors.New("an empty Trust; make it with ParseTrust")
		case t.everyone() && !o.Force:
			return refuse("Force", nil, "%s trusts every address, so nobody needs to knock; trust a smaller prefix", t.String())
		}
	}
	return nil
}

// sources holds texts for Trust, in one order.
type sources struct{ interfaces, ipv4, ipv6 []string }

// trusted returns the interfaces by name and the prefixes by address. It leaves out prefixes
// that others contain, because nftables refuses overlaps.
func (o Options) trusted() (s sources) {
	var last Trust
	for _, t := range sorted(o.Trust, Trust.compare) {
		// Only the last prefix can contain t, because two prefixes that overlap are one inside
		// the other.
		if t == last || last.prefix.Overlaps(t.prefix) {
			continue
		}
		last = t
		switch a := t.prefix.Addr(); {
		case t.iface != "":
			s.interfaces = append(s.interfaces, t.iface)
		case a.Is4():
			s.ipv4 = append(s.ipv4, t.String())
		default:
			s.ipv6 = append(s.ipv6, t.String())
		}
	}
	return s
}

// all returns the interfaces and then the prefixes.
func (s sources) all() []string { return slices.Concat(s.interfaces, s.ipv4, s.ipv6) }

// compare orders interfaces before IPv4, and IPv4 before IPv6.
func (t Trust) compare(u Trust) int {
	// An interface has the zero Addr, which Compare puts before all others.
	return cmp.Or(t.prefix.Addr().Compare(u.prefix.Addr()), t.prefix.Bits()-u.prefix.Bits(), strings.Compare(t.iface, u.iface))
}
