package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/rules"
	"github.com/portknock/portknock/proxy"
)

// This file turns a profile into a Guard or a Dialer. No other file imports both
// knock/profile and knock/rules, or both knock/rules and proxy.

// keyFailure returns the failure for a profile whose keys portknock cannot read or use.
func keyFailure(p *profile.Profile, err error) error {
	return &failure{code: exitProfile, err: fmt.Errorf("%s: %w", p.Name, err)}
}

// guard returns the Guard that a profile describes: the half for the server.
func guard(ctx context.Context, p *profile.Profile) (rules.Guard, error) {
	s, err := p.Server(ctx)
	if err != nil {
		return rules.Guard{}, keyFailure(p, err)
	}
	return rules.Guard{
		Name:         p.Name,
		Schedule:     s.Schedule,
		SPA:          s.SPA,
		OpenPorts:    p.OpenPorts,
		OpenFor:      p.OpenFor,
		KnockTimeout: p.KnockTimeout,
		Skew:         p.Skew,
		KnockPorts:   s.KnockPorts,
		IgnorePorts:  p.IgnorePorts,
		Fingerprint:  s.Fingerprint,
		Repeat:       p.Repeat,
	}, nil
}

// installedScript returns the path at which deploy installs the script of a profile on the server.
func installedScript(name string) string { return rules.InstalledScript(name) }

// hostDialer is a Dialer for one host. It notes how long the path to the host is.
type hostDialer struct {
	proxy.Dialer
	host      string                   // name of the profile
	roundTrip time.Duration            // round trip of the connection; 0 until there is one, or if it is unknown
	answers   map[netip.Addr]portState // last answer of the port at each address that was dialed
	knocker   *knocker                 // sends the knocks; it has sent none if the profile has no Scheme
}

// dialer returns the Dialer that a profile describes: the half for the client. If the
// profile has no Scheme, the Dialer connects without knocking.
//
// If deployed is not nil, the server may have the guard of that profile or of p. The Dialer
// then sends the knocks of both in turn. Everything else is as p describes it.
func dialer(ctx context.Context, p, deployed *profile.Profile, log *logger) (*hostDialer, error) {
	k := &knocker{profile: p, log: log, sent: map[netip.Addr]int{}}
	d := &hostDialer{host: p.Name, answers: map[netip.Addr]portState{}, knocker: k}
	d.Timeout, d.Hedge = p.ConnectTimeout, rememberedHedge(p.Name)
	d.Trace = func(e proxy.Event) {
		d.note(e)
		switch e.Kind {
		case proxy.Resolved:
			k.addTargets(e.Addrs, e.More)
		case proxy.Connected: // the events of dials that have lost may follow
			d.roundTrip = e.RoundTrip
		}
	}
	switch {
	// With IPv4Only, the port stays closed for IPv6, but IPv6 could win the race.
	case p.AddressFamily == "inet", p.Facts().IPv4Only:
		d.Family = "ip4"
	case p.AddressFamily == "inet6":
		d.Family = "ip6"
	case deployed != nil && deployed.Facts().IPv4Only:
		d.Family = "ip4"
	}
	if p.Scheme == "" {
		return d, nil
	}
	picker, err := p.Picker(ctx)
	if err != nil {
		return nil, keyFailure(p, err)
	}
	k.picker = picker
	if deployed != nil {
		first, err := deployed.Picker(ctx)
		if err != nil {
			return nil, keyFailure(deployed, err)
		}
		k.picker, k.failed = alternating{first, picker}, map[netip.Addr]int{}
	}
	d.Source, d.Knock = k.source, k.knock
	return d, nil
}

// repeatIfDeployed makes a client repeat its knocks if the profile does not say how often, and
// if deploy has given the server rules of a format that takes repeated knocks.
func repeatIfDeployed(p *profile.Profile, format string) {
	if p.Repeat == 0 && rules.Format(format).TakesRepeats() {
		p.Repeat = 2
	}
}

// alternating is the Picker of a client that does not know which of two guards a server
// has. Each of the two Pickers counts only its own rounds.
type alternating struct {
	even knock.Picker // makes the rounds 0, 2, 4 and so on
	odd  knock.Picker // makes the rounds 1, 3, 5 and so on
}

// Round implements [knock.Picker].
func (a alternating) Round(now time.Time, from, to netip.Addr, n int) (knock.Round, error) {
	if n%2 == 0 {
		return a.even.Round(now, from, to, n/2)
	}
	return a.odd.Round(now, from, to, n/2)
}

// withTargets returns the Picker for a server with these addresses.
func withTargets(p knock.Picker, targets []netip.Addr) knock.Picker {
	switch p := p.(type) {
	case knock.Client:
		p.Targets = targets
		return p
	case alternating:
		return alternating{withTargets(p.even, targets), withTargets(p.odd, targets)}
	}
	return p
}

// knocker sends a profile's knocks.
type knocker struct {
	profile *profile.Profile
	log     *logger

	mu      sync.Mutex // guards the fields below
	picker  knock.Picker
	sent    map[netip.Addr]int // knocks that have left to each address
	targets []netip.Addr       // addresses of the server that this machine has a route to

	// failed has the last round to each destination whose knocks could not be sent. It is
	// nil if the Picker is not alternating.
	failed map[netip.Addr]int
}

// addTargets adds addresses of the server. It leaves out those without a route, because a
// target without a route would have a share of the tokens, and would never use it. If more
// is true, addresses of the other family may follow, and must then find their tokens unused.
func (k *knocker) addTargets(addrs []netip.Addr, more bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, to := range addrs {
		if _, err := k.source(to); err == nil && !slices.Contains(k.targets, to) {
			k.targets = append(k.targets, to)
		}
	}
	targets := slices.Clone(k.targets)
	switch { // any address of the other family will do
	case more && addrs[0].Is4():
		targets = append(targets, netip.IPv6Unspecified())
	case more:
		targets = append(targets, netip.IPv4Unspecified())
	}
	k.picker = withTargets(k.picker, targets)
}

// source returns the address from which the knocks and the connection to an address leave.
func (k *knocker) source(to netip.Addr) (netip.Addr, error) {
	bind := k.profile.BindAddress
	switch {
	case bind.IsValid() && bind.Is4() != to.Is4():
		return netip.Addr{}, fmt.Errorf("BindAddress %v cannot reach %v: one is IPv4, the other IPv6", bind, to)
	case bind.IsValid():
		return bind, nil
	case k.profile.BindInterface != "":
		return interfaceAddr(k.profile.BindInterface, to)
	}
	return knock.Source(to)
}

// interfaceAddr returns the address of an interface from which to reach the address to.
// Like ssh, it returns the first address of the same family that is not link-local. If to
// is link-local, it returns the first link-local address instead.
func interfaceAddr(name string, to netip.Addr) (netip.Addr, error) {
	ifi, err := net.InterfaceByName(name)
	var addrs []net.Addr
	if err == nil {
		addrs, err = ifi.Addrs()
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("BindInterface %q: %w", name, err)
	}
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		addr := prefix.Addr().Unmap()
		if err != nil || addr.Is4() != to.Is4() || addr.IsLinkLocalUnicast() != to.IsLinkLocalUnicast() {
			continue
		}
		if addr.IsLinkLocalUnicast() {
			addr = addr.WithZone(name) // IPv4 addresses do not have a zone and stay as they are
		}
		return addr, nil
	}
	return netip.Addr{}, fmt.Errorf("BindInterface %q has no address that can reach %v", name, to)
}

// knock sends the knocks of one round.
func (k *knocker) knock(ctx context.Context, from, to netip.Addr, round int) (sent proxy.Sent, err error) {
	k.mu.Lock()
	picker := k.picker
	k.mu.Unlock()
	r, err := picker.Round(now(), from, to, round)
	switch {
	case err != nil:
		return sent, err
	case len(r.Send) == 0:
		return proxy.Sent{None: true}, nil
	}
	times, number := "", len(r.Send)
	send := func(ctx context.Context) error {
		err := knock.Sender{From: from, Repeat: r.Repeat}.Send(ctx, to, r.Send, r.Pause)
		if err == nil {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.sent[to] += number
		}
		return err
	}
	if r.Repeat {
		times, number = ", each twice", 2*number
		sent.Again = func(ctx context.Context) error {
			k.log.say(secrets, "%v: the knocks of round %d once more", to, round)
			return send(ctx)
		}
	}
	k.log.say(secrets, "%v: round %d: %v%s", to, round, r.Send, times)
	err = send(ctx)
	if err != nil && k.tolerates(to, round, err) {
		k.log.say(verbose, "round %d: cannot send the knocks to %v: %v; trying the others", round, to, err)
		return proxy.Sent{}, nil
	}
	return sent, err
}

// tolerates reports whether the knocks of the next round may be sent although those of this
// round could not. Of two guards, only one may have a listener for the knocks, such as
// fwknopd. Two errors in a row, and a missing route, are about this machine.
func (k *knocker) tolerates(to netip.Addr, round int, err error) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed == nil || proxy.IsNoRoute(err) {
		return false
	}
	last, before := k.failed[to]
	k.failed[to] = round
	return !before || last != round-1
}
