package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file turns a host into the list of addresses that Connect tries.

// Addresses returns the addresses of host, at least one, in the order in which
// Connect tries them. The error is a [*ResolveError].
func (d *Dialer) Addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the lookup of a late answer
	addrs, _, err := d.resolve(ctx, host)
	return addrs, err
}

// resolve is Addresses. If one family has not answered yet, its answer comes from late.
// Otherwise late is nil.
func (d *Dialer) resolve(ctx context.Context, host string) (addrs []netip.Addr, late <-chan answer, err error) {
	literal, err := netip.ParseAddr(host)
	switch {
	case err == nil:
		addrs = []netip.Addr{literal}
	case d.Resolve != nil:
		addrs, err = d.Resolve(ctx, host)
	default:
		addrs, late, err = d.lookUp(ctx, host)
	}
	addrs = interleave(addrs, d.Family)
	if err == nil && len(addrs) == 0 {
		name := map[string]string{"ip4": "IPv4 ", "ip6": "IPv6 "}[d.Family]
		err = fmt.Errorf("no %saddress", name)
	}
	if err != nil {
		return nil, nil, &ResolveError{Host: host, Err: err, NoServer: lacksServer(err)}
	}
	return addrs, late, nil
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

// answer is the result of a lookup.
type answer struct {
	addrs []netip.Addr
	err   error
}

// lookUp returns the addresses of host that net.DefaultResolver knows. If it does not know
// the name, lookUp asks getent. The lookup whose answer comes from late ends with ctx.
func (d *Dialer) lookUp(ctx context.Context, host string) (addrs []netip.Addr, late <-chan answer, err error) {
	lookup := d.lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupNetIP
	}
	if d.Family == "ip4" || d.Family == "ip6" {
		addrs, err = lookup(ctx, d.Family, host)
	} else {
		addrs, late, err = lookup.bothFamilies(ctx, host, strings.Count(host, ".") >= ndots(resolvConf()))
	}
	if isNotFound(err) {
		if known := askGetent(ctx, host); len(known) > 0 {
			return known, nil, nil
		}
	}
	return addrs, late, err
}

// isNotFound reports whether a resolver has answered that a name does not exist, or has no
// address.
func isNotFound(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}

// bothFamilies begins with the joint lookup, one lookup for both families. If the joint
// lookup has not ended after jointSilence, bothFamilies also looks each family up alone.
// It returns as soon as one of these things happens:
//
//   - The joint lookup returns addresses, or reports that the name does not exist.
//   - One family has addresses, and the lookup of the other family ends, or does not end
//     within familyGrace. In the second case, the other family's answer comes from late.
//   - All lookups have ended without addresses. The error is that of the joint lookup.
//
// If search domains complete a name, two lookups may find two machines. A family is
// therefore looked up alone only with the name as it was given, and only if the resolver
// tries that name before any search domain. asGiven reports whether the resolver does so.
// A name with a final dot is never completed. For the same reason, late is never the joint
// lookup, which goes on to the search domains when it has got no answer.
//
// Lookups that bothFamilies does not wait for end with ctx.
func (lookup lookupFunc) bothFamilies(ctx context.Context, host string, asGiven bool) (found []netip.Addr, late <-chan answer, err error) {
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
	for both != nil || ip4 != nil || ip6 != nil {
		select {
		case <-silence:
			name := strings.TrimSuffix(host, ".") + "."
			ip4, ip6 = ask("ip4", name), ask("ip6", name)
		case a := <-both:
			if a.err == nil || isNotFound(a.err) {
				return a.addrs, nil, a.err
			}
			both, err = nil, a.err
		case a := <-ip4:
			ip4, found = nil, append(found, a.addrs...)
		case a := <-ip6:
			ip6, found = nil, append(a.addrs, found...)
		case <-grace:
			if late = ip4; late == nil {
				late = ip6
			}
			return found, late, nil
		}
		switch {
		case len(found) == 0:
		case ip4 == nil && ip6 == nil:
			return found, nil, nil
		case grace == nil:
			grace = time.After(familyGrace)
		}
	}
	return nil, nil, err
}

// askGetent returns the addresses of host that the system's C library knows, or nil. A
// static binary cannot ask the library itself. The library also knows names that are not in
// DNS: those of mDNS, NIS, LDAP and other sources in nsswitch.conf.
func askGetent(ctx context.Context, host string) (addrs []netip.Addr) {
	if runtime.GOOS == "windows" { // any user may put a program there
		return nil
	}
	c := exec.CommandContext(ctx, "/usr/bin/getent", "ahosts", "--", host)
	c.WaitDelay = 100 * time.Millisecond
	out, err := c.Output()
	if err != nil { // the name is unknown, or the system has no getent
		return nil
	}
	for line := range strings.Lines(string(out)) {
		text, _, _ := strings.Cut(line, " ")
		if addr, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// resolvConf returns the text of resolv.conf, or "" if the file is missing. Its defaults then apply.
func resolvConf() string {
	text, _ := os.ReadFile("/etc/resolv.conf")
	return string(text)
}

// lacksServer reports whether a lookup has failed because resolv.conf names no name server.
// Go's resolver then asks this machine, where usually no name server runs.
func lacksServer(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && !dns.IsNotFound && dns.Server != "" && !nameServer.MatchString(resolvConf())
}

var nameServer = regexp.MustCompile(`(?m)^[ \t]*nameserver[ \t]+\S`)

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
