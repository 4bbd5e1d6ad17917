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
	}, nil
}

// dialer returns the Dialer that a profile describes: the half for the client. If the
// profile has no Scheme, the Dialer connects without knocking.
func dialer(ctx context.Context, p *profile.Profile, log *logger) (*proxy.Dialer, error) {
	d := &proxy.Dialer{Timeout: p.ConnectTimeout, Trace: log.trace}
	switch {
	// With IPv4Only, the port stays closed for IPv6, but IPv6 could win the race.
	case p.AddressFamily == "inet", p.Facts().IPv4Only:
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
func (k *knocker) knock(ctx context.Context, from, to netip.Addr, round int) error {
	r, err := k.picker.Round(now(), from, to, round)
	if err != nil {
		return err
	}
	k.log.say(secrets, "%v: round %d: %v", to, round, r.Send)
	return knock.Sender{From: from}.Send(ctx, to, r.Send, r.Pause)
}
