package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file turns a host into the list of addresses that Connect tries.

// Addresses returns the addresses of host, at least one, in the order in which
// Connect tries them. The error is a [*ResolveError].
func (d *Dialer) Addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	literal, err := netip.ParseAddr(host)
	switch {
	case err == nil:
		addrs = []netip.Addr{literal}
	case d.Resolve != nil:
		addrs, err = d.Resolve(ctx, host)
	default:
		addrs, err = lookUp(ctx, d.Family, host)
	}
	addrs = interleave(addrs, d.Family)
	if err == nil && len(addrs) == 0 {
		name := map[string]string{"ip4": "IPv4 ", "ip6": "IPv6 "}[d.Family]
		err = fmt.Errorf("no %saddress", name)
	}
	if err != nil {
		return nil, &ResolveError{Host: host, Err: err}
	}
	return addrs, nil
}

// interleave returns each address of the family once. IPv4 and IPv6 alternate, and the
// family of the first address comes first (RFC 8305, section 4).
func interleave(addrs []netip.Addr, family string) []netip.Addr {
	var kept []netip.Addr
	rank := make(map[netip.Addr]int) // even for the family of the first address, odd for the other
	next := make(map[bool]int)       // rank of the next IPv4 address (true) and IPv6 address (false)
	for _, a := range addrs {
		a = a.Unmap()
		if _, seen := rank[a]; seen || family == "ip4" && !a.Is4() || family == "ip6" && !a.Is6() {
			continue
		}
		if len(kept) == 0 {
			next[!a.Is4()] = 1
		}
		rank[a] = next[a.Is4()]
		next[a.Is4()] += 2
		kept = append(kept, a)
	}
	slices.SortFunc(kept, func(a, b netip.Addr) int { return rank[a] - rank[b] })
	return kept
}

// The rest of this file looks a name up for both families, even if one family never
// gets an answer. Some routers and VPNs drop every question for an IPv6 address. A
// plain lookup of both families would then wait for the missing answer until the time
// of the connection is up.

const (
	jointSilence = 300 * time.Millisecond // without an answer for this time, each family is asked alone
	familyGrace  = 50 * time.Millisecond  // time to wait for the other family's answer (RFC 8305, section 3)
)

// lookupFunc is [net.Resolver.LookupNetIP], or a replacement in a test.
type lookupFunc func(ctx context.Context, network, host string) ([]netip.Addr, error)

// lookUp returns the addresses of host that net.DefaultResolver knows.
func lookUp(ctx context.Context, family, host string) ([]netip.Addr, error) {
	lookup := lookupFunc(net.DefaultResolver.LookupNetIP)
	if family == "ip4" || family == "ip6" {
		return lookup(ctx, family, host)
	}
	conf, _ := os.ReadFile("/etc/resolv.conf") // without this file the default applies
	return lookup.bothFamilies(ctx, host, strings.Count(host, ".") >= ndots(string(conf)))
}

// bothFamilies begins with the joint lookup, one lookup for both families. If the joint
// lookup has not ended after jointSilence, bothFamilies also looks each family up alone.
// It returns as soon as one of these things happens:
//
//   - The joint lookup returns addresses, or reports that the name does not exist.
//   - One family has addresses, and the lookup of the other family ends, or does not end
//     within familyGrace.
//   - All lookups have ended without addresses. The error is that of the joint lookup.
//
// If search domains complete a name, two lookups may find two machines. A family is
// therefore looked up alone only with the name as it was given, and only if the resolver
// tries that name before any search domain. asGiven reports whether the resolver does so.
// A name with a final dot is never completed.
func (lookup lookupFunc) bothFamilies(ctx context.Context, host string, asGiven bool) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		addrs []netip.Addr
		err   error
	}
	ask := func(network, name string) <-chan answer {
		c := make(chan answer, 1)
		go func() {
			addrs, err := lookup(ctx, network, name)
			c <- answer{addrs, err}
		}()
		return c
	}
	both := ask("ip", host)
	// A nil channel below is never ready: its lookup or timer has not begun, or its lookup
	// has ended.
	var ip4, ip6 <-chan answer
	var silence, grace <-chan time.Time
	if asGiven || strings.HasSuffix(host, ".") {
		silence = time.After(jointSilence)
	}
	var found []netip.Addr
	var failure error
	for both != nil || ip4 != nil || ip6 != nil {
		select {
		case <-silence:
			name := strings.TrimSuffix(host, ".") + "."
			ip4, ip6 = ask("ip4", name), ask("ip6", name)
		case a := <-both:
			if dns, ok := errors.AsType[*net.DNSError](a.err); a.err == nil || ok && dns.IsNotFound {
				return a.addrs, a.err
			}
			both, failure = nil, a.err
		case a := <-ip4:
			ip4, found = nil, append(found, a.addrs...)
		case a := <-ip6:
			ip6, found = nil, append(a.addrs, found...)
		case <-grace:
			return found, nil
		}
		switch {
		case len(found) == 0:
		case ip4 == nil && ip6 == nil:
			return found, nil
		case grace == nil:
			grace = time.After(familyGrace)
		}
	}
	return nil, failure
}

// ndots returns how many dots a name needs so that a resolver tries it, as it was given,
// before any search domain. conf is the text of resolv.conf. ndots reads it as Go and
// glibc do: the last option counts, text that is not a number counts as 0, and the
// maximum is 15.
func ndots(conf string) int {
	n := 1
	option := regexp.MustCompile(`(?m)^[ \t]*options[ \t](?:.*[ \t])?ndots:(\d*)`)
	for _, match := range option.FindAllStringSubmatch(conf, -1) {
		n, _ = strconv.Atoi(match[1])
	}
	return min(n, 15)
}
