package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/proxy"
)

// connectFailure turns a Dialer's error into a failure with the profile's name, an exit
// code and a hint. It returns nil if err is nil.
func connectFailure(d *hostDialer, p *profile.Profile, err error) error {
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
	case notSent:
		f.code, f.hint = exitKnock, unsentFix(p)
	case notOpened:
		f.code = exitClosed
		f.hint = closedHint(d, p, closed)
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

// closedHint returns what to check when a port stays closed. A login knows less than the command
// check, so the hint names that command, unless an answer of the network tells enough.
func closedHint(d *hostDialer, p *profile.Profile, closed *proxy.ClosedError) string {
	e := &evidence{at: now(), profile: p, port: closed.Port}
	for addr, after := range d.answers {
		e.targets = append(e.targets, target{addr: addr, after: after})
	}
	if len(e.targets) == 0 || proxy.IsNoRoute(closed) {
		e.targets = []target{{after: portSilent, noRoute: proxy.IsNoRoute(closed)}}
	}
	check := "run: portknock check " + p.Name
	all := causes(e)
	if len(all) == 0 {
		return check
	}
	first := all[0]
	answered := slices.ContainsFunc(e.targets, func(t target) bool { return t.after != portSilent })
	if first.Certain || answered || strings.Count(first.Fix, "\n") >= maxHints-1 {
		return first.Fix
	}
	return first.Fix + "\n" + check
}

// maxHints is the largest number of lines in a hint.
const maxHints = 5

// note keeps the last answer to a dial for each address of the host.
func (d *hostDialer) note(e proxy.Event) {
	switch addr := e.To.Addr(); {
	case e.Kind == proxy.Knocked: // an error would be about the knocks
	case proxy.IsRejected(e.Err):
		d.answers[addr] = portRejected
	case proxy.IsRefused(e.Err):
		d.answers[addr] = portRefused
	case e.Kind == proxy.Dialing && d.answers[addr] == "":
		d.answers[addr] = portSilent
	}
}
