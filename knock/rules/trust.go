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
		return Trust{}, fmt.Errorf("an IPv4 address in an IPv6 address; write %v", Trust{prefix: p})
	case p != p.Masked():
		return Trust{}, fmt.Errorf("bits are set after the prefix; write %v, or %v for one address", p.Masked(), p.Addr())
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
			return refuse("Force", nil, "%v trusts every address, so nobody needs to knock; trust a smaller prefix", t)
		}
	}
	return nil
}

// mergeTrust returns the interfaces by name, and then the prefixes by address. It leaves out
// prefixes that others contain, because nftables refuses overlaps.
func mergeTrust(sources []Trust) []Trust {
	sorted := slices.Clone(sources)
	for i := range sorted { // slices.SortFunc would add 30 kB to the program
		for k := i; k > 0 && sorted[k].before(sorted[k-1]); k-- {
			sorted[k], sorted[k-1] = sorted[k-1], sorted[k]
		}
	}
	var all []Trust
	for _, t := range sorted {
		// The last prefix is the only one that can contain t, because two prefixes that overlap
		// are one inside the other.
		if n := len(all); n == 0 || all[n-1] != t && !all[n-1].prefix.Overlaps(t.prefix) {
			all = append(all, t)
		}
	}
	return all
}

// before reports whether t comes before u: interfaces, then IPv4, then IPv6.
func (t Trust) before(u Trust) bool {
	// An interface has the zero Addr, which Compare puts before all others.
	order := cmp.Or(t.prefix.Addr().Compare(u.prefix.Addr()), t.prefix.Bits()-u.prefix.Bits(), strings.Compare(t.iface, u.iface))
	return order < 0
}

// ofFamily returns the prefixes with addresses of a length in bits. For length 0, it returns
// the interfaces.
func ofFamily(bits int, sources []Trust) []Trust {
	return slices.DeleteFunc(mergeTrust(sources), func(t Trust) bool { return t.prefix.Addr().BitLen() != bits })
}
