package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/rules"
	"github.com/portknock/portknock/knock/spa"
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

// guards returns the server's half of several profiles for one server, and what
// to warn of: a key that opens another server, too, is lost with either.
func (a *app) guards(ctx context.Context, hosts []string) (guards []rules.Guard, warnings []string, err error) {
	var profiles []*profile.Profile
	here := map[string]bool{}
	for _, host := range hosts {
		p, err := a.lookup(ctx, host)
		if err != nil {
			return nil, nil, err
		}
		g, err := guard(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		guards, profiles = append(guards, g), append(profiles, p)
		here[p.Name] = true
	}
	for _, p := range profiles {
		others := slices.DeleteFunc(a.file.SharesKey(p), func(name string) bool { return here[name] })
		if len(others) > 0 {
			own := "give it one of its own"
			if p.Scheme != "fwknop" {
				own += ", as DeriveHostKey does"
			}
			warnings = append(warnings, fmt.Sprintf("%s: its key opens %s too: %s", p.Name, strings.Join(others, ", "), own))
		}
	}
	return guards, warnings, nil
}

// plainDialer connects without knocking, for a host that has no profile.
func (a *app) plainDialer() *proxy.Dialer {
	d := &proxy.Dialer{Timeout: profile.DefaultConnectTimeout, Trace: a.trace}
	switch {
	case a.shared.v4:
		d.Family = "ip4"
	case a.shared.v6:
		d.Family = "ip6"
	}
	return d
}

// dialer returns the client's half of a profile.
func (a *app) dialer(ctx context.Context, p *profile.Profile) (*proxy.Dialer, error) {
	picker, err := p.Picker(ctx)
	if err != nil {
		return nil, keyFailure(p, err)
	}
	k := &knocker{p, picker, &a.log}
	family := map[string]string{"inet": "ip4", "inet6": "ip6"}[p.AddressFamily]
	if p.Scheme == "fwknop" {
		family = "ip4" // or the other could win the race to a port that stays shut
	}
	return &proxy.Dialer{
		Family:  family,
		Source:  k.source,
		Knock:   k.knock,
		Timeout: p.ConnectTimeout,
		Trace:   a.trace,
	}, nil
}

// knocker sends a profile's knocks.
type knocker struct {
	*profile.Profile
	picker knock.Picker
	log    *logger
}

// source returns the address that knocks and connection leave from.
func (k *knocker) source(to netip.Addr) (netip.Addr, error) {
	switch {
	case k.BindAddress.IsValid():
		if k.BindAddress.Is4() != to.Is4() {
			return netip.Addr{}, fmt.Errorf("BindAddress %v cannot reach %v", k.BindAddress, to)
		}
		return k.BindAddress, nil
	case k.BindInterface != "":
		return interfaceAddr(k.BindInterface, to)
	}
	return knock.Source(to)
}

// interfaceAddr returns an interface's address to reach another from: like ssh,
// the first of the family that is not link-local, unless the other is.
func interfaceAddr(name string, to netip.Addr) (netip.Addr, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("BindInterface %q: %w", name, err)
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("BindInterface %q: %w", name, err)
	}
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		addr := prefix.Addr().Unmap()
		if addr.Is4() != to.Is4() || addr.IsLinkLocalUnicast() != to.IsLinkLocalUnicast() {
			continue
		}
		if addr.IsLinkLocalUnicast() && addr.Is6() {
			addr = addr.WithZone(name)
		}
		return addr, nil
	}
	return netip.Addr{}, fmt.Errorf("BindInterface %q has no address to reach %v from", name, to)
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

// trace says what the dialer does.
func (a *app) trace(e proxy.Event) {
	if op, ok := errors.AsType[*net.OpError](e.Err); ok {
		e.Err = op.Err // the rest stands in the line already
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
	switch {
	case e.Kind == proxy.Resolved:
		a.log.say(verbose, "%s: resolved: %s", ms(e.At), strings.Trim(fmt.Sprint(e.Addrs), "[]"))
	case e.Err != nil:
		a.log.say(verbose, "%s: round %d: %v %v: %v", ms(e.At), e.Round, e.Kind, e.To, e.Err)
	case e.From.IsValid():
		a.log.say(verbose, "%s: round %d: %v %v from %v", ms(e.At), e.Round, e.Kind, e.To, e.From)
	default:
		a.log.say(verbose, "%s: round %d: %v %v", ms(e.At), e.Round, e.Kind, e.To)
	}
}

// connectFailure says what a Dialer's error means: for whom, with which exit
// code, and what to do about it. p is nil where nothing was to be knocked.
func connectFailure(host string, p *profile.Profile, err error) error {
	f := &failure{code: exitFailed}
	name := host
	if p != nil {
		name = p.Name
	}
	f.err = fmt.Errorf("%s: %w", name, err)
	_, notSent := errors.AsType[*proxy.KnockError](err)
	closed, notOpened := errors.AsType[*proxy.ClosedError](err)
	_, notFound := errors.AsType[*proxy.ResolveError](err)
	fwknop := p != nil && p.Scheme == "fwknop"
	switch {
	case notFound && fwknop:
		f.hint = "fwknopd opens ports for IPv4 only"
	case notSent && fwknop && p.SPA.Protocol != spa.UDP:
		f.code = exitKnock
		f.hint = fmt.Sprintf("with SPAProtocol %v something must listen at the SPAPort: fwknopd itself, with ENABLE_TCP_SERVER, or a web server", p.SPA.Protocol)
	case notSent:
		f.code = exitKnock
		f.hint = "a firewall, a route or a BindAddress of this machine is in the way"
	case notOpened:
		f.code = exitClosed
		f.hint = closedHint(p, closed, now())
	case proxy.IsNoRoute(err):
		f.hint = noRouteHint
	}
	return f
}

const noRouteHint = "this machine has no route to the server: check the network or the VPN"

// notInOpenPorts returns the warning for a port that ssh asks for and the profile
// does not open; "" for any other port.
func notInOpenPorts(p *profile.Profile, port uint16) string {
	step := knock.Step{Transport: knock.TCP, Port: port}
	var open []string
	for _, r := range p.OpenPorts {
		if r.Contains(step) {
			return ""
		}
		open = append(open, r.String())
	}
	return fmt.Sprintf("%v is not among OpenPorts (%s), so the server neither guards nor opens it: set Port or OpenPorts and load new rules",
		step, strings.Join(open, " "))
}

// closedHint says where to look when a port stays closed. The last answer decides.
// If no answer came and the sequence follows the clock, the clock is the first
// suspect. p is nil if the host has no profile.
func closedHint(p *profile.Profile, closed *proxy.ClosedError, now time.Time) string {
	until, elsewhere := "", ""
	if p != nil {
		until, elsewhere = " until the knocks are right", notInOpenPorts(p, closed.Port)
	}
	switch {
	case proxy.IsNoRoute(closed):
		return noRouteHint
	case closed.Rejected():
		return "the host may be off or in another network, or a firewall rejects connections" + until
	case elsewhere != "":
		return elsewhere
	case closed.Refused():
		return fmt.Sprintf("something answered: check that sshd runs and listens on port %d; if it does, a firewall rejects connections%s", closed.Port, until)
	case p == nil:
		return "portknock has no profile for this host, so it did not knock"
	case p.Scheme == "fwknop":
		forward := ""
		if to := p.SPA.NATAccess; to.IsValid() {
			forward = fmt.Sprintf(" or forward; if it has made the rules, see that %v answers by way of the server", to)
		}
		return fmt.Sprintf("fwknopd's log says why: a clock that is not within 120 s of this one, at %s with the TimeOffset; another key, HMAC key or HMACDigest; or a port it may not open%s",
			now.Add(p.SPA.TimeOffset).UTC().Format(time.RFC3339), forward)
	case !p.ValidUntil.IsZero() && !now.Before(p.ValidUntil):
		return "without another way in, new rules need the server's console: the old ones open to nobody any more"
	case p.Period == 0:
		return fmt.Sprintf("is the profile the server's? Compare with portknock sequence %s and the server's rules; -v tells more", p.Name)
	}
	w := knock.WindowAt(now, p.Period)
	utc := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	spent := ""
	if p.TokensPerWindow > 0 {
		spent = fmt.Sprintf(" (which serves %d addresses, no more)", p.TokensPerWindow)
	}
	return fmt.Sprintf("hold date -u on both sides together: here it is %s, in the window from %s until %s%s; then compare portknock sequence %s with the server's rules",
		utc(now), utc(w.Start), utc(w.End), spent, p.Name)
}
