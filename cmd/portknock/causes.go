package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/spa"
)

// cause is a fault that explains the evidence, or one that may explain it.
type cause struct {
	ID      string `json:"id"`      // stable name of the fault
	Certain bool   `json:"certain"` // the evidence proves the fault
	Text    string `json:"cause"`   // what is wrong, in one sentence
	Fix     string `json:"fix"`     // what shows or mends it, a step on each line
}

// causes returns the faults that can explain the evidence, the most likely one first. It returns
// nil if all is well. No cause contradicts the evidence.
//
// From outside, some faults look alike. These are the classes, with the IDs of their causes.
// What the server tells separates the faults of a class, except where the last column has "=".
//
//	seen from outside                          faults                     causes
//	the port is open before the knocks         no guard                   no-guard
//	                                           guard lost at a reboot     guard-lost
//	the same over one family only              IPv6 unguarded             ipv6-unguarded
//	the port is silent, and nothing shows      wrong sequence             wrong-knocks
//	  that knocks are lost on the way          wrong order                wrong-knocks =
//	                                           wrong transport            wrong-knocks =
//	                                           another key                other-key
//	                                           clock behind, or ahead     clock-behind, clock-ahead
//	                                                                      (clock: from outside)
//	                                           rules expired              expired
//	                                           daemon dead                daemon-dead (fwknopd,
//	                                                                      from outside: spa-refused)
//	                                           tokens spent               tokens-spent
//	                                           port filtered upstream     port-filtered
//	the same, and the host answers TCP knocks  UDP dropped upstream       udp-filtered
//	  or closed ports, but no UDP knock
//	the port is refused after the knocks       sshd down                  sshd-down
//	                                           sshd on another port       sshd-elsewhere
//	no packet of any kind is answered          host off                   host-off
//	the same over one family only              IPv6 black hole            ipv6-unreachable
//	no answer to the question for AAAA         AAAA silent                ipv6-lookup-silent
func causes(e *evidence) []cause {
	all := e.localCauses()
	// An answer says more than silence.
	targets := slices.Clone(e.targets)
	slices.SortStableFunc(targets, func(a, b target) int {
		if a.after == b.after {
			return 0
		} else if moreTelling(a.after, b.after) == a.after {
			return -1
		}
		return 1
	})
	for i := range targets {
		all = append(all, e.targetCauses(&targets[i])...)
	}
	slices.SortStableFunc(all, func(a, b cause) int {
		switch {
		case a.Certain == b.Certain:
			return 0
		case a.Certain:
			return -1
		}
		return 1
	})
	var unique []cause
	for _, c := range all {
		if !slices.ContainsFunc(unique, func(u cause) bool { return u.ID == c.ID }) {
			unique = append(unique, c)
		}
	}
	return unique
}

// localCauses returns the faults of this computer's settings and of its name server.
func (e *evidence) localCauses() (all []cause) {
	if s := e.ssh; s != nil && s.port == e.port {
		switch {
		case s.portknock && s.wantsSocket != s.passesSocket:
			all = append(all, cause{"ssh-fdpass", true, "ProxyUseFdpass yes and the flag -F of the ProxyCommand must go together",
				"in ~/.ssh/config, use ProxyUseFdpass yes with ProxyCommand portknock -F %h %p, or neither"})
		case s.portknock && s.noProfile:
			all = append(all, cause{"ssh-profile", true, fmt.Sprintf("ssh passes on the host %s, which has no profile", s.hostName),
				"in ~/.ssh/config, use ProxyCommand portknock --profile %n %h %p\n" +
					"or run portknock ssh-config --install --include"})
		case s.direct && !s.portknock:
			all = append(all, cause{"ssh-without-portknock", true, "ssh does not start portknock for this host",
				"run portknock ssh-config --install --include\n" +
					"or add to ~/.ssh/config the lines that portknock ssh-config prints"})
		}
	}
	if text := openPortsWarning(e.profile, e.port); text != "" {
		all = append(all, cause{"port-not-guarded", true, fmt.Sprintf("port %d is not among the OpenPorts of the profile", e.port), text})
	}
	for _, l := range e.lookups {
		if l.silent && slices.ContainsFunc(e.lookups, func(other lookup) bool { return len(other.addrs) > 0 }) {
			all = append(all, cause{strings.ToLower(l.family) + "-lookup-silent", true,
				fmt.Sprintf("the name server does not answer the question for %s addresses", l.family),
				"repair the name server, or set AddressFamily in the profile to the other family"})
		}
	}
	return all
}

// targetCauses returns the faults that explain what is known of one target.
func (e *evidence) targetCauses(t *target) []cause {
	other := func(is func(*target) bool) bool {
		return slices.ContainsFunc(e.targets, func(o target) bool { return o.addr != t.addr && is(&o) })
	}
	over := "" // says which family is meant
	if len(e.targets) > 1 {
		over = " over " + t.family()
	}
	switch {
	case t.noRoute && other(func(o *target) bool { return !o.noRoute }):
		return nil // the other family is enough
	case t.noRoute:
		return []cause{{"no-route", true, "this computer has no route to the host", noRouteHint}}
	case t.unsent != nil:
		return append(e.toldCauses(t), cause{"knocks-not-sent", true, "the knocks cannot be sent: " + oneLine(t.unsent.Error()), unsentFix(e.profile)})
	case t.before == portOpen && e.admittedBefore(t):
		return e.openCauses(t)
	case t.before == portOpen && other(func(o *target) bool { return !o.noRoute && o.before != "" && o.before != portOpen }):
		return []cause{{strings.ToLower(t.family()) + "-unguarded", e.expiryAwaited(),
			fmt.Sprintf("port %d is open without a knock%s", e.port, over),
			"load rules for both families; " + e.deployFix()}}
	case t.before == portOpen:
		return e.unguardedCauses()
	case t.after == portOpen:
		return e.openCauses(t)
	case t.after == portRefused:
		return e.refusedCauses(t, over)
	case t.after == portRejected:
		return []cause{{"rejected", false, fmt.Sprintf("a router or a firewall rejects connections to port %d%s", e.port, over),
			"the host may be off or in another network, or a firewall rejects connections" + e.untilKnocks()}}
	case t.after == "":
		return nil
	case other((*target).opened) && t.quiet():
		return []cause{{strings.ToLower(t.family()) + "-unreachable", false, "the host does not answer" + over,
			fmt.Sprintf("repair %s, or remove its address from the host's name\nor set AddressFamily in the profile to the other family", t.family())}}
	case other((*target).opened):
		return []cause{{strings.ToLower(t.family()) + "-not-opened", false,
			fmt.Sprintf("the server does not open port %d%s", e.port, over),
			"load rules for both families, or set AddressFamily in the profile to the other family"}}
	}
	return e.silentCauses(t)
}

// deployFix returns the command that makes the server's rules from the profile again.
func (e *evidence) deployFix() string { return "run: portknock deploy " + e.profile.Name }

// untilKnocks is the end of a sentence about a firewall that rejects connections.
func (e *evidence) untilKnocks() string {
	if e.profile.Scheme == "" {
		return ""
	}
	return " until the knocks are right"
}

// unsentFix returns what to check if the knocks cannot be sent.
func unsentFix(p *profile.Profile) string {
	if p.Facts().SingleUse && p.SPA.Protocol != spa.UDP {
		return fmt.Sprintf("SPAProtocol %v needs a listener at the SPAPort\n"+
			"for tcp it is fwknopd with ENABLE_TCP_SERVER, for http a web server", p.SPA.Protocol)
	}
	return "check the firewall, the routes and the BindAddress of this machine"
}

// expiryAwaited reports whether the openings of earlier logins have expired before the knocks.
func (e *evidence) expiryAwaited() bool { return e.profile.OpenFor < longestOpening }

// admittedBefore reports whether the server has told that an earlier login opened the port.
func (e *evidence) admittedBefore(t *target) bool {
	if e.server == nil || e.server.err != nil || e.server.before == nil {
		return false
	}
	return e.server.before.admits(t.from) && !e.expiryAwaited()
}

// unguardedCauses returns the faults of a port that is open without a knock.
func (e *evidence) unguardedCauses() []cause {
	open := fmt.Sprintf("port %d is open without a knock", e.port)
	deploy := e.deployFix()
	s := e.server
	told := s != nil && s.err == nil
	switch {
	case told && s.before == nil && !s.guard:
		return []cause{{"no-guard", true, open + ": no rules are loaded or installed", deploy}}
	case told && s.before != nil && s.before.Rules == rulesMissing:
		return []cause{{"guard-lost", true, open + ": the rules are installed, but not loaded",
			"on the server, find out why: systemctl status portknock\nthen load them; " + deploy}}
	case !e.expiryAwaited():
		open = fmt.Sprintf("port %d is open before the knocks, perhaps by an earlier login", e.port)
	}
	if told && s.before != nil {
		return []cause{{"trusted", e.expiryAwaited(), open + textIf(e.expiryAwaited(), ", although the rules are loaded"),
			"see whether the server trusts this computer: sh " + installedScript(e.profile.Name) + " status"}}
	}
	return []cause{{"no-guard", e.expiryAwaited(), open + textIf(told && e.expiryAwaited(), ": the loaded rules do not guard it"),
		"unless the server trusts this computer, load the rules; " + deploy}}
}

// openCauses returns the faults of a port that the knocks have opened.
func (e *evidence) openCauses(t *target) (all []cause) {
	s := e.ssh
	if s == nil || s.port != e.port {
		return nil
	}
	if !strings.HasPrefix(t.banner, sshBanner) {
		all = append(all, cause{"no-ssh", true, fmt.Sprintf("port %d is open, but sshd does not answer there", e.port),
			"check sshd on the server: it may be overloaded, or another program has the port"})
	}
	if s.connectTimeout > 0 && t.took > s.connectTimeout {
		all = append(all, cause{"ssh-timeout", true, fmt.Sprintf("the port opened after %v, but ssh waits only %v", shortSpan(t.took), s.connectTimeout),
			"set a longer ConnectTimeout in ~/.ssh/config"})
	}
	return all
}

// refusedCauses returns the faults of a port that a RST answers, or the ICMP message with the
// same meaning.
func (e *evidence) refusedCauses(t *target, over string) (all []cause) {
	sshd := e.sshPorts
	changed := t.before == portSilent // the guard let the SYN through, so the host itself has answered
	fix := fmt.Sprintf("the server answered: check that sshd listens on port %d\nif sshd listens there, a firewall rejects connections%s",
		e.port, e.untilKnocks())
	if s := e.server; s != nil && s.err == nil && s.listening != nil {
		if slices.Contains(s.listening[t.family()], e.port) {
			return []cause{{"firewall-rejects", true,
				fmt.Sprintf("a firewall of the server rejects connections to port %d%s", e.port, over),
				"look at the other firewalls of the server, such as ufw or firewalld"}}
		}
		changed, sshd = true, s.sshd
		fix = "on the server, start sshd and see its log: systemctl restart ssh; journalctl -u ssh"
	}
	if len(sshd) > 0 {
		all = append(all, cause{"sshd-elsewhere", changed, fmt.Sprintf("sshd listens on port %d, not on port %d", sshd[0], e.port),
			fmt.Sprintf("set Port %d in ~/.ssh/config and in the profile; then %s", sshd[0], e.deployFix())})
	}
	if changed && len(sshd) > 0 {
		return all
	}
	return append(all, cause{"sshd-down", changed, fmt.Sprintf("no program listens on port %d of the server%s", e.port, over), fix})
}

// silentCauses returns the faults of a port that does not answer, although the knocks have left.
func (e *evidence) silentCauses(t *target) []cause {
	if e.profile.Scheme == "" {
		return []cause{{"no-profile", true, "this host has no profile", "portknock has no profile for this host, so it did not knock"}}
	}
	if all := e.toldCauses(t); len(all) > 0 {
		return all
	}
	return e.guessedCauses(t)
}

// toldCauses returns the faults that the server tells.
func (e *evidence) toldCauses(t *target) (all []cause) {
	s := e.server
	if s == nil || s.err != nil || s.before == nil {
		return nil
	}
	deploy := e.deployFix()
	tell := func(id, text, fix string) { all = append(all, cause{id, true, text, fix}) }
	if s.before.Failing != "" {
		tell("rules-failing", "the server cannot load the installed rules: "+oneLine(s.before.Failing), deploy)
	}
	if s.before.Rules == rulesMissing && s.before.Failing == "" {
		tell("rules-missing", "the rules are not loaded, and another firewall closes the port", deploy)
	}
	if s.daemonDead {
		tell("daemon-dead", "the daemon that judges the knocks does not run on the server",
			"on the server, load the rules again, which starts it; the system log says why it ended\n"+deploy)
	}
	if end := s.before.ValidUntil; end != nil && !e.at.Add(s.offset).Before(time.Unix(*end, 0)) {
		tell("expired", fmt.Sprintf("the server's rules have expired at %s", utc(time.Unix(*end, 0))), deploy)
	}
	if e.keysDiffer() {
		tell("other-key", fmt.Sprintf("the server has the key %s, and the profile has %s", s.before.Key, e.key), deploy)
	}
	if id, text := e.clockFault(); id != "" {
		tell(id, text, e.clockFix())
	}
	if s.counted("tokens_refused") > 0 {
		tell("tokens-spent", "other addresses have used the tokens of this window", "raise TokensPerWindow in the profile; "+deploy)
	}
	stage, counts := s.stage()
	switch admitted := s.admitted(e); {
	case admitted && s.counted("let_through") == 0:
		// The guard may have dropped connections of others.
		all = append(all, cause{"port-filtered", s.counted("dropped") == 0,
			fmt.Sprintf("the server admits this computer, but no connection to port %d arrives", e.port), e.filteredFix()})
	case admitted:
		tell("firewall-drops", fmt.Sprintf("the guard lets connections to port %d through, but nothing answers", e.port),
			"look at the other firewalls of the server, such as ufw or firewalld")
	case !admitted && counts && stage < len(t.knocks) && t.knocks[stage].arrived() && len(all) == 0:
		tell("wrong-knocks", fmt.Sprintf("knock %d of %d arrives, but the server expects another one", stage+1, len(t.knocks)), deploy)
	}
	return all
}

// guessedCauses returns the faults that may explain the silence of a port.
func (e *evidence) guessedCauses(t *target) (all []cause) {
	p := e.profile
	guess := func(id, text, fix string) { all = append(all, cause{id, false, text, fix}) }
	// told is true if the server has told what these guesses are about.
	told := e.server != nil && e.server.err == nil && e.server.before != nil
	udpLost := slices.ContainsFunc(t.knocks, isSilentUDP) &&
		!slices.ContainsFunc(t.knocks, func(k knockAnswer) bool { return k.transport == knock.UDP && k.arrived() })
	guessUDP := func() {
		guess("udp-filtered", "something on the way drops the UDP knocks", "allow the UDP knocks in the firewall of the network or of the hosting provider")
	}
	if udpLost && t.has(portRefused) {
		guessUDP()
	}
	if t.quiet() && !told {
		guess("host-off", "nothing at the host answers: it is off, unreachable, or drops everything",
			"check that the host runs and that its address is right: "+t.addr.String())
	}
	if e.changed && !told {
		all = append(all, cause{"not-deployed", e.oldOpens, "the server still has the rules from before the profile changed",
			e.deployFix()})
	}
	if !p.ValidUntil.IsZero() && !e.at.Before(p.ValidUntil) && !told {
		all = append(all, cause{"expired", true, "the server's rules have expired at " + utc(p.ValidUntil),
			"the server's rules have expired, and the port is closed to everyone\nload new rules from an open session or the server's console"})
	}
	clock := func() {
		if (p.Period > 0 || p.Facts().SingleUse) && !e.clocksCompared() {
			guess("clock", "the clocks of this computer and of the server may differ", e.clockFix())
		}
	}
	compare := fmt.Sprintf("compare portknock sequence %s with the rules", p.Name)
	if p.Facts().SingleUse {
		e.guessSPA(guess)
	} else {
		if e.clock != clockRight {
			clock() // causes removes the second one
		}
		if e.key != "" && !told {
			guess("other-key", "the server's rules may have another key", fmt.Sprintf("find key %s in the first lines of the server's rules", e.key))
		}
		clock()
		text := "the server may expect other knocks"
		if told {
			if n, counts := e.server.stage(); counts {
				text = fmt.Sprintf("the server recognizes %d of %d knocks, and may expect others", n, len(t.knocks))
			}
		}
		guess("wrong-knocks", text, "check that the server's rules were made from this profile\n"+compare)
	}
	if p.TokensPerWindow > 0 && !told {
		guess("tokens-spent", "other addresses may have used the tokens of this window", e.spentFix())
	}
	if slices.ContainsFunc(t.knocks, knockAnswer.arrived) && (!told || e.server.admitted(e)) {
		guess("port-filtered", fmt.Sprintf("something on the way may drop connections to port %d", e.port), e.filteredFix())
	}
	if i := slices.IndexFunc(t.knocks, func(k knockAnswer) bool { return k.state == portRejected }); i >= 0 && !told {
		guess("knocks-rejected", fmt.Sprintf("a firewall on the way may reject knock %d of %d", i+1, len(t.knocks)),
			"allow the knocks in the firewall of the network or of the hosting provider")
	}
	if p.Period == 0 && !p.Facts().SingleUse && !told {
		guess("daemon-dead", "if the server uses knockd, it may not run", "on the server: systemctl status knockd")
	}
	if udpLost {
		guessUDP()
	}
	return all
}

func isSilentUDP(k knockAnswer) bool { return k.transport == knock.UDP && k.state == portSilent }

// guessSPA adds the fault of an SPA packet that opens nothing.
func (e *evidence) guessSPA(guess func(id, text, fix string)) {
	p, forward := e.profile, ""
	if to := p.SPA.NATAccess; to.IsValid() {
		forward = fmt.Sprintf("\nfwknopd must also allow forwarding\nif fwknopd opened the port, check that %v answers through the server", to)
	}
	guess("spa-refused", "fwknopd does not run, or does not accept the packet",
		fmt.Sprintf("read fwknopd's log on the server, which says why\nfwknopd's clock must be within 120 s of %s (TimeOffset included)\n"+
			"the key, HMAC key and HMACDigest must match, and fwknopd must allow this port%s", utc(e.at.Add(p.SPA.TimeOffset)), forward))
}

// keysDiffer reports whether the server has told that its key is not that of the profile.
func (e *evidence) keysDiffer() bool {
	return e.key != "" && e.server.before.Key != "" && e.server.before.Key != e.key
}

// clocksCompared reports whether the difference of the clocks is known.
func (e *evidence) clocksCompared() bool {
	return e.server != nil && e.server.err == nil && e.server.within > 0
}

// clockFault returns the fault of clocks that differ by more than the rules allow, or "".
func (e *evidence) clockFault() (id, text string) {
	limit := e.profile.Skew
	switch {
	case !e.clocksCompared():
		return "", ""
	case e.profile.Facts().SingleUse:
		limit = spaSkew
	case e.profile.Period == 0:
		return "", ""
	}
	switch s := e.server; {
	case s.offset > limit+s.within:
		return "clock-behind", "this computer's clock is behind the server's clock by " + shortSpan(s.offset)
	case -s.offset > limit+s.within:
		return "clock-ahead", "this computer's clock is ahead of the server's clock by " + shortSpan(-s.offset)
	}
	return "", ""
}

// clockFix returns how to compare the clocks.
func (e *evidence) clockFix() string {
	p := e.profile
	fix := fmt.Sprintf("compare the clocks: run date -u on both machines (this one: %s)", utc(e.at))
	if p.Period > 0 {
		w := knock.WindowAt(e.at, p.Period)
		fix += fmt.Sprintf("\nthis machine is in the window from %s until %s", utc(w.Start), utc(w.End))
	}
	if e.clock == clockFree {
		fix += "\nthis machine's clock is not synchronized by a time server"
	}
	if e.server != nil && e.server.before != nil && e.server.before.clock == clockFree {
		fix += "\nthe server's clock is not synchronized by a time server"
	}
	if !e.clocksCompared() {
		if p.TokensPerWindow > 0 {
			fix += "\n" + e.spentFix()
		}
		fix += fmt.Sprintf("\ncompare portknock sequence %s with the server's rules", p.Name)
	}
	return fix
}

func (e *evidence) spentFix() string {
	return fmt.Sprintf("the tokens of a window serve at most %d addresses; for more, raise TokensPerWindow", e.profile.TokensPerWindow)
}

func (e *evidence) filteredFix() string {
	return fmt.Sprintf("allow port %d in the firewall of the network or of the hosting provider", e.port)
}

// knocks returns the knocks of a target that has knocked, or nil.
func (e *evidence) knocks() []knockAnswer {
	for _, t := range e.targets {
		if t.knocks != nil {
			return t.knocks
		}
	}
	return nil
}
