package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// This file turns a host into the list of addresses that Connect tries.

// Addresses returns the addresses of host, at least one, in the order in which
// Connect tries them. The error is a [*ResolveError].
func (d *Dialer) Addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, err := d.resolve(ctx, host)
	if err != nil {
		return nil, &ResolveError{Host: host, Err: err}
	}
	return addrs, nil
}

// resolve is Addresses with an error that does not name the host.
func (d *Dialer) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	if literal, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{literal}
	} else if d.Resolve != nil {
		if addrs, err = d.Resolve(ctx, host); err != nil {
			return nil, err
		}
	} else if addrs, err = lookUp(ctx, d.Family, host); err != nil {
		return nil, err
	}
	addrs = interleave(addrs, d.Family)
	if len(addrs) == 0 {
		switch d.Family {
		case "ip4":
			return nil, errors.New("no IPv4 address")
		case "ip6":
			return nil, errors.New("no IPv6 address")
		}
		return nil, errors.New("no address")
	}
	return addrs, nil
}

// interleave returns each address of the family once, IPv4 and IPv6 in turn,
// the family of the first address first (RFC 8305, section 4).
func interleave(addrs []netip.Addr, family string) []netip.Addr {
	var first, second []netip.Addr
	seen := make(map[netip.Addr]bool)
	for _, a := range addrs {
		a = a.Unmap()
		if seen[a] || family == "ip4" && !a.Is4() || family == "ip6" && !a.Is6() {
			continue
		}
		seen[a] = true
		if len(first) == 0 || a.Is4() == first[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	merged := make([]netip.Addr, 0, len(seen))
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			merged = append(merged, first[i])
		}
		if i < len(second) {
			merged = append(merged, second[i])
		}
	}
	return merged
}

// The rest of this file looks a name up for both families, even if one family never
// gets an answer. Some routers and VPNs drop every question for an IPv6 address. The
// lookup of both families then waits for the missing answer until the time of the
// connection is up.

const (
	jointSilence = 300 * time.Millisecond // after this time each family is asked alone
	familyGrace  = 50 * time.Millisecond  // the time for the other family's answer (RFC 8305, section 3)
)

// lookupFunc is [net.Resolver.LookupNetIP], or a test's.
type lookupFunc func(ctx context.Context, network, host string) ([]netip.Addr, error)

// answer is what a lookup returns.
type answer struct {
	addrs []netip.Addr
	err   error
}

// lookUp returns the addresses of host that net.DefaultResolver knows.
func lookUp(ctx context.Context, family, host string) ([]netip.Addr, error) {
	lookup := lookupFunc(net.DefaultResolver.LookupNetIP)
	if family == "ip4" || family == "ip6" {
		return lookup(ctx, family, host)
	}
	conf, _ := os.ReadFile("/etc/resolv.conf") // a system without this file has the default
	return lookup.bothFamilies(ctx, host, strings.Count(host, ".") >= ndots(string(conf)))
}

// bothFamilies asks for both families at once. If that gets no answer for a while,
// it asks for each family alone too, and the answer for one family is enough. An
// answer to the first question still counts more.
//
// Two lookups of a name that search domains complete may find two machines. So
// each family is asked only for the name as it was given, and only if the resolver
// tries that name before any search domain: asGiven says whether it does.
func (lookup lookupFunc) bothFamilies(ctx context.Context, host string, asGiven bool) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	both := lookup.start(ctx, "ip", host)
	if asGiven || strings.HasSuffix(host, ".") {
		select {
		case a := <-both:
			return a.addrs, a.err
		case <-time.After(jointSilence):
			return lookup.eachFamily(ctx, strings.TrimSuffix(host, ".")+".", both)
		}
	}
	a := <-both
	return a.addrs, a.err
}

// eachFamily asks for each family of an absolute name alone, while a lookup of
// both is under way.
func (lookup lookupFunc) eachFamily(ctx context.Context, name string, both <-chan answer) ([]netip.Addr, error) {
	ip4, ip6 := lookup.start(ctx, "ip4", name), lookup.start(ctx, "ip6", name)
	var found []netip.Addr
	var grace <-chan time.Time
	var failure error
	for both != nil || ip4 != nil || ip6 != nil {
		select {
		case a := <-both:
			if a.err == nil || isNotFound(a.err) {
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

// start begins a lookup and returns a channel for its answer.
func (lookup lookupFunc) start(ctx context.Context, network, host string) <-chan answer {
	c := make(chan answer, 1)
	go func() {
		addrs, err := lookup(ctx, network, host)
		c <- answer{addrs, err}
	}()
	return c
}

// isNotFound reports whether a lookup has found out that the name does not exist.
func isNotFound(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}

// ndots returns the number of dots from which on a resolver tries a name as it was
// given before any search domain. conf is the text of resolv.conf, read as Go and
// glibc do.
func ndots(conf string) int {
	n := 1
	for line := range strings.Lines(conf) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "options" {
			continue
		}
		for _, option := range fields[1:] {
			if value, ok := strings.CutPrefix(option, "ndots:"); ok {
				n = 0
				_, _ = fmt.Sscanf(value, "%d", &n) // text that is not a number counts as 0
				n = min(max(n, 0), 15)
			}
		}
	}
	return n
}
