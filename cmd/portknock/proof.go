package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// This file proves from outside that a guard works: the guarded port is silent without a knock,
// and a new login through the new rules succeeds.

// The verdicts of a proof.
const (
	proved      = "proved"
	notProvable = "not provable from here"
)

// portState is what a computer sees of a port.
type portState string

const (
	portOpen     portState = "open"
	portRefused  portState = "refused"
	portSilent   portState = "silent"
	portRejected portState = "rejected"
)

// probePort sends one SYN.
func probePort(ctx context.Context, to netip.AddrPort) portState {
	t := target{addr: to.Addr()}
	return t.state(ctx, to.Port())
}

// probePorts probes a guarded TCP port once for each address family. The result is nil if this
// computer cannot reach the server directly.
func (s *server) probePorts(ctx context.Context) (states map[netip.AddrPort]portState) {
	port, ok := s.guardedPort()
	if !ok || !s.direct() {
		return nil
	}
	resolve, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, _ := net.DefaultResolver.LookupNetIP(resolve, "ip", s.address())
	states = map[netip.AddrPort]portState{}
	families := map[bool]bool{}
	for _, addr := range addrs {
		addr = addr.Unmap()
		if families[addr.Is4()] {
			continue
		}
		if _, err := knock.Source(addr); err != nil {
			continue // this computer has no route for this family
		}
		families[addr.Is4()] = true
		to := netip.AddrPortFrom(addr, port)
		states[to] = probePort(ctx, to)
	}
	return states
}

// guardedPort returns the port to prove: that of ssh if it is guarded, or else the first
// guarded TCP port.
func (s *server) guardedPort() (port uint16, ok bool) {
	if s.sshIsGuarded() {
		return s.ssh.port, true
	}
	i := slices.IndexFunc(s.profile.OpenPorts, func(r knock.PortRange) bool { return r.Transport == knock.TCP })
	if i < 0 {
		return 0, false
	}
	return s.profile.OpenPorts[i].First, true
}

// sshIsGuarded reports whether the profile guards the port to which ssh connects.
func (s *server) sshIsGuarded() bool { return containsPort(s.profile.OpenPorts, s.ssh.port) }

// prove checks the rules on trial. The map before has the states of the port before the
// trial.
func (s *server) prove(ctx context.Context, before map[netip.AddrPort]portState) error {
	if err := s.proveSilence(ctx, before); err != nil {
		return err
	}
	return s.proveLogin(ctx)
}

// proveSilence checks that the port does not answer without a knock. It must come before the
// login, which admits this computer.
func (s *server) proveSilence(ctx context.Context, before map[netip.AddrPort]portState) error {
	s.result.Silence = notProvable
	during := s.probePorts(ctx)
	for to, state := range during {
		switch {
		case state == portSilent && (before[to] != portSilent || s.present):
			s.result.Silence = proved
		case state == portOpen && s.admitsOthers: // such as the connection of this deploy
		case state != portSilent:
			s.result.Silence = ""
			return fmt.Errorf("without a knock, %v is %s during the trial", to, state)
		}
	}
	if s.result.Silence == proved {
		s.say("proved    the port does not answer without a knock")
	} else {
		s.say("note      whether the port answers without a knock is %s", notProvable)
	}
	return nil
}

// proveLogin checks that a new connection comes through the new rules.
func (s *server) proveLogin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loginLimit)
	defer cancel()
	if !s.sshIsGuarded() {
		return s.proveConnection(ctx)
	}
	argv := s.sshCommand("", "echo "+s.channel.nonce)
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.WaitDelay = time.Second
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if !strings.Contains(string(out), s.channel.nonce) {
		if err == nil {
			err = errors.New("the login shell does not run echo")
		}
		return s.loginFailure(stderr.String(), err)
	}
	s.result.Login = proved
	s.say("proved    a new login works with the new knocks")
	return nil
}

// loginFailure returns why a login through the new rules has failed. The text printed is what ssh
// and its ProxyCommand have written to stderr.
func (s *server) loginFailure(printed string, err error) error {
	why, hint, isOwn := "", "", false
	for line := range strings.Lines(printed) {
		line = strings.TrimSpace(line)
		own, ok := strings.CutPrefix(line, "portknock: ")
		step, isHint := strings.CutPrefix(own, "hint: ")
		switch {
		case line == "" || strings.Contains(line, deployAdvice): // a warning about the rules before the trial
		case ok && isHint:
			hint = strings.TrimPrefix(hint+"\n"+step, "\n")
		case ok:
			why, isOwn = strings.TrimPrefix(own, s.profile.Name+": "), true
		case !isOwn: // the last line of ssh names its error
			why = line
		}
	}
	if !isOwn {
		why = strings.TrimSpace(why + " (" + err.Error() + ")")
	}
	return s.notProved("a new login through the new rules fails: "+oneLine(why), hint)
}

// notProved returns the failure of a proof. If the port stays silent, the hint is about other
// firewalls, because the rules were made from the profile a moment ago.
func (s *server) notProved(why, hint string) error {
	if strings.HasSuffix(why, ": no answer") {
		ports := "portknock " + s.configFlag() + "sequence " + localWord(s.profile.Name)
		if len(s.knockPorts) > 0 { // the ports of a sequence change
			ports = portList(s.knockPorts)
		}
		hint = "if a firewall is in front of the server, it must let these ports through: " + ports
	}
	return &failure{exitNotDeployed, errors.New(why), hint}
}

// proveConnection checks that a guarded port opens after the knocks. It is for profiles that do
// not guard the port of ssh.
func (s *server) proveConnection(ctx context.Context) error {
	port, ok := s.guardedPort()
	if !ok || !s.direct() {
		s.result.Login = notProvable
		return errors.New("no login or connection from here goes through the new rules")
	}
	d, err := dialer(ctx, s.profile, nil, &s.app.log)
	if err != nil {
		return err
	}
	conn, err := d.Connect(ctx, s.address(), port)
	if err != nil {
		return s.notProved(fmt.Sprintf("port %d does not open after the knocks: %v", port, err), "")
	}
	_ = conn.Close()
	s.result.Login = proved
	s.say("proved    port %d opens after the knocks", port)
	return nil
}
