package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/rules"
	"github.com/portknock/portknock/proxy"
)

// This file is the only place that knows a profile, a Dialer and a Guard.

// keyFailure is the failure to read what a profile needs.
func keyFailure(p *profile.Profile, err error) error {
	return &failure{code: exitProfile, err: fmt.Errorf("%s: %w", p.Name, err)}
}

// guard returns the server's half of a profile.
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
	}, nil
}

// dialer returns the client's half of a profile. Without a Scheme it connects and
// does not knock.
func dialer(ctx context.Context, p *profile.Profile, log *logger) (*proxy.Dialer, error) {
	d := &proxy.Dialer{Timeout: p.ConnectTimeout, Trace: log.trace}
	switch {
	case p.AddressFamily == "inet", p.Facts().IPv4Only: // IPv6 could win the race to a port that stays shut
		d.Family = "ip4"
	case p.AddressFamily == "inet6":
		d.Family = "ip6"
	}
	if p.Scheme == "" {
		return d, nil
	}
	picker, err := p.Picker(ctx)
	if err != nil {
		return nil, keyFailure(p, err)
	}
	k := &knocker{p, picker, log}
	d.Source, d.Knock = k.source, k.knock
	return d, nil
}

// knocker sends a profile's knocks.
type knocker struct {
	profile *profile.Profile
	picker  knock.Picker
	log     *logger
}

// source returns the address that knocks and connection leave from.
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

// interfaceAddr returns an interface's address to reach another from: like ssh,
// the first of the family that is not link-local, unless the other is.
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
			addr = addr.WithZone(name) // which IPv4 does not have
		}
		return addr, nil
	}
	return netip.Addr{}, fmt.Errorf("BindInterface %q has no address that can reach %v", name, to)
}

// knock sends one round.
func (k *knocker) knock(ctx context.Context, from, to netip.Addr, round int) error {
	r, err := k.picker.Round(now(), from, to, round)
	if err != nil {
		return err
	}
	k.log.say(secrets, "%v: round %d: %v", to, round, r.Send)
	return knock.Sender{From: from}.Send(ctx, to, r.Send, r.Pause)
}
