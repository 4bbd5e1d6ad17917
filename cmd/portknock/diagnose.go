package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/spa"
	"github.com/portknock/portknock/proxy"
)

// connectFailure turns a Dialer's error into a failure with the profile's name, an exit
// code and a hint. It returns nil if err is nil.
func connectFailure(p *profile.Profile, err error) error {
	if err == nil {
		return nil
	}
	f := &failure{code: exitFailed, err: fmt.Errorf("%s: %w", p.Name, err)}
	_, notSent := errors.AsType[*proxy.KnockError](err)
	closed, notOpened := errors.AsType[*proxy.ClosedError](err)
	unresolved, notFound := errors.AsType[*proxy.ResolveError](err)
	switch {
	case notFound && unresolved.NoServer:
		f.hint = "/etc/resolv.conf names no name server, as on Android: set HostName to an address"
	case notFound && p.Facts().IPv4Only:
		f.hint = "fwknopd opens ports for IPv4 only"
	case notSent && p.Facts().SingleUse && p.SPA.Protocol != spa.UDP:
		f.code = exitKnock
		f.hint = fmt.Sprintf("SPAProtocol %v needs a listener at the SPAPort\n"+
			"for tcp it is fwknopd with ENABLE_TCP_SERVER, for http a web server", p.SPA.Protocol)
	case notSent:
		f.code = exitKnock
		f.hint = "check the firewall, the routes and the BindAddress of this machine"
	case notOpened:
		f.code = exitClosed
		f.hint = closedHint(p, closed, now())
	case proxy.IsNoRoute(err):
		f.hint = noRouteHint
	}
	return f
}

const noRouteHint = "this machine has no route to the server: check the network or the VPN"

// openPortsWarning returns a warning if the profile does not open the port that ssh asks for.
// It returns "" if the profile opens the port, or if the profile has no OpenPorts.
func openPortsWarning(p *profile.Profile, port uint16) string {
	if len(p.OpenPorts) == 0 || containsPort(p.OpenPorts, port) {
		return ""
	}
	return fmt.Sprintf("the server does not guard or open %d/tcp (OpenPorts: %s); set Port or OpenPorts and load new rules",
		port, portList(p.OpenPorts))
}

// utc formats a time as profiles and flags accept it.
func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// closedHint returns what to check when a port stays closed. The last answer of the network
// decides. If no answer came and the sequence depends on the time, the hint names the
// clocks first.
func closedHint(p *profile.Profile, closed *proxy.ClosedError, now time.Time) string {
	untilKnocks := ""
	if p.Scheme != "" {
		untilKnocks = " until the knocks are right"
	}
	unguarded := openPortsWarning(p, closed.Port)
	switch {
	case proxy.IsNoRoute(closed):
		return noRouteHint
	case closed.Rejected:
		return "the host may be off or in another network, or a firewall rejects connections" + untilKnocks
	case unguarded != "":
		return unguarded
	case closed.Refused:
		return fmt.Sprintf("the server answered: check that sshd listens on port %d\nif sshd listens there, a firewall rejects connections%s",
			closed.Port, untilKnocks)
	case p.Scheme == "":
		return "portknock has no profile for this host, so it did not knock"
	case p.Facts().SingleUse:
		forward := ""
		if to := p.SPA.NATAccess; to.IsValid() {
			forward = fmt.Sprintf("\nfwknopd must also allow forwarding\nif fwknopd opened the port, check that %v answers through the server", to)
		}
		return fmt.Sprintf("read fwknopd's log on the server, which says why\nfwknopd's clock must be within 120 s of %s (TimeOffset included)\n"+
			"the key, HMAC key and HMACDigest must match, and fwknopd must allow this port%s", utc(now.Add(p.SPA.TimeOffset)), forward)
	case !p.ValidUntil.IsZero() && !now.Before(p.ValidUntil):
		return "the server's rules have expired, and the port is closed to everyone\nload new rules from an open session or the server's console"
	case p.Period == 0:
		return fmt.Sprintf("check that the server's rules were made from this profile\n"+
			"compare portknock sequence %s with the rules; -v shows details", p.Name)
	}
	w := knock.WindowAt(now, p.Period)
	spent := ""
	if p.TokensPerWindow > 0 {
		spent = fmt.Sprintf("\nthe tokens of a window serve at most %d addresses; for more, raise TokensPerWindow", p.TokensPerWindow)
	}
	return fmt.Sprintf("compare the clocks: run date -u on both machines (this one: %s)\nthis machine is in the window from %s until %s%s\n"+
		"compare portknock sequence %s with the server's rules", utc(now), utc(w.Start), utc(w.End), spent, p.Name)
}
