package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/proxy"
)

// parsedProfile returns the profile vps with these settings.
func parsedProfile(t *testing.T, settings ...string) *profile.Profile {
	t.Helper()
	f, err := profile.Parse("config", []byte("Host vps\n"+strings.Join(settings, "\n")+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var ipv4, ipv6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")

// answersTo returns the answers to three knocks, udp, tcp and udp.
func answersTo(states ...portState) []knockAnswer {
	return []knockAnswer{{knock.UDP, states[0]}, {knock.TCP, states[1]}, {knock.UDP, states[2]}}
}

// admitting returns the status of a server whose rules are loaded, and which has admitted an address.
func admitting(addr netip.Addr) *serverStatus {
	s := &serverStatus{Rules: rulesLoaded}
	s.Admitted = append(s.Admitted, admitted{addr, 100})
	return s
}

// TestCausesFollowFromEvidence: the order of the causes follows from the evidence.
func TestCausesFollowFromEvidence(t *testing.T) {
	static := parsedProfile(t, "Sequence 7001/udp 8003/tcp 9005/udp")
	hours := parsedProfile(t, "Sequence 7001/udp 8003/tcp 9005/udp", "OpenFor 2h")
	rotating := parsedProfile(t, "Scheme rotating", "KeyCommand echo key")
	arrived := answersTo(portRefused, portRefused, portRefused)
	noSign := answersTo(portSilent, portSilent, portSilent)
	silent := target{addr: ipv4, before: portSilent, after: portSilent, knocks: arrived}
	off := target{addr: ipv6, before: portSilent, after: portSilent, knocks: noSign, others: map[uint16]portState{80: portSilent}}
	opened := target{addr: ipv4, before: portSilent, after: portOpen, knocks: arrived, banner: "SSH-2.0-x"}
	with := func(t target, change func(*target)) target { change(&t); return t }
	login := &sshEvidence{port: 22, direct: true, portknock: true}
	for name, tt := range map[string]struct {
		e    evidence
		want string
	}{
		"all is well": {evidence{profile: static, targets: []target{opened}, ssh: login}, ""},
		"a service on another port than ssh": {evidence{profile: static, ssh: &sshEvidence{port: 222},
			targets: []target{with(opened, func(t *target) { t.banner = "" })}}, ""},
		"no banner": {evidence{profile: static, ssh: login, targets: []target{with(opened, func(t *target) { t.banner = "HTTP/1.1" })}}, "no-ssh"},
		"ssh gives up too early": {evidence{profile: static, ssh: &sshEvidence{port: 22, direct: true, portknock: true, connectTimeout: time.Second},
			targets: []target{with(opened, func(t *target) { t.took = 2 * time.Second })}}, "ssh-timeout"},
		"ssh without portknock":    {evidence{profile: static, ssh: &sshEvidence{port: 22, direct: true}, targets: []target{opened}}, "ssh-without-portknock"},
		"ssh over a jump host":     {evidence{profile: static, ssh: &sshEvidence{port: 22}, targets: []target{opened}}, ""},
		"ProxyUseFdpass alone":     {evidence{profile: static, ssh: &sshEvidence{port: 22, direct: true, portknock: true, wantsSocket: true}, targets: []target{opened}}, "ssh-fdpass"},
		"a name without a profile": {evidence{profile: static, ssh: &sshEvidence{port: 22, direct: true, portknock: true, noProfile: true}, targets: []target{opened}}, "ssh-profile"},
		"no route to one family":   {evidence{profile: static, targets: []target{opened, {addr: ipv6, noRoute: true}}}, ""},
		"no route":                 {evidence{profile: static, targets: []target{{addr: ipv4, noRoute: true}}}, "no-route"},
		"one family off":           {evidence{profile: static, targets: []target{opened, off}}, "ipv6-unreachable"},
		"one family not opened": {evidence{profile: static, targets: []target{opened, with(silent, func(t *target) { t.addr = ipv6 })}},
			"ipv6-not-opened"},
		"open, and nobody was asked":             {evidence{profile: static, targets: []target{with(opened, func(t *target) { t.before = portOpen })}}, "no-guard"},
		"open, and this may be an earlier login": {evidence{profile: hours, targets: []target{with(opened, func(t *target) { t.before = portOpen })}}, "no-guard"},
		"open, and this is an earlier login": {evidence{profile: hours, targets: []target{with(opened, func(t *target) { t.before, t.from = portOpen, ipv6 })},
			server: &serverEvidence{before: admitting(ipv6)}}, ""},
		"open, although the opening of a login has expired": {evidence{profile: static, targets: []target{with(opened, func(t *target) { t.before, t.from = portOpen, ipv6 })},
			server: &serverEvidence{before: admitting(ipv6)}}, "trusted"},
		"the rules expire later": {evidence{profile: parsedProfile(t, "Scheme rotating", "KeyCommand echo key", "ValidUntil 2001-09-10"), targets: []target{silent}},
			"clock wrong-knocks port-filtered"},
		"the rules have expired": {evidence{profile: parsedProfile(t, "Scheme rotating", "KeyCommand echo key", "ValidUntil 2001-09-09"), targets: []target{silent}},
			"expired clock wrong-knocks port-filtered"},
		"open in one family": {evidence{profile: static, targets: []target{opened, with(opened, func(t *target) { t.addr, t.before = ipv6, portOpen })}},
			"ipv6-unguarded"},
		"knocks arrive, static":   {evidence{profile: static, targets: []target{silent}}, "wrong-knocks port-filtered daemon-dead"},
		"knocks arrive, rotating": {evidence{profile: rotating, key: "a", targets: []target{silent}}, "clock other-key wrong-knocks port-filtered"},
		"knocks arrive, and this clock is right": {evidence{profile: rotating, key: "a", clock: clockRight, targets: []target{silent}},
			"other-key clock wrong-knocks port-filtered"},
		"UDP without a sign": {evidence{profile: static, targets: []target{with(silent, func(t *target) { t.knocks = answersTo(portSilent, portRefused, portSilent) })}},
			"udp-filtered wrong-knocks port-filtered daemon-dead"},
		"one UDP knock without a sign": {evidence{profile: static, targets: []target{with(silent, func(t *target) { t.knocks = answersTo(portRefused, portRefused, portSilent) })}},
			"wrong-knocks port-filtered daemon-dead"},
		"nothing answers":        {evidence{profile: static, targets: []target{off}}, "host-off wrong-knocks daemon-dead udp-filtered"},
		"a RST after the knocks": {evidence{profile: static, targets: []target{with(silent, func(t *target) { t.after = portRefused })}}, "sshd-down"},
		"a RST after the knocks, and sshd elsewhere": {evidence{profile: static, sshPorts: []uint16{2222},
			targets: []target{with(silent, func(t *target) { t.after = portRefused })}}, "sshd-elsewhere"},
		"rejected": {evidence{profile: static, targets: []target{with(silent, func(t *target) { t.after = portRejected })}}, "rejected"},
		"a RST over one family, silence over the other": {evidence{profile: static, targets: []target{
			with(off, func(t *target) { t.others = nil }), with(silent, func(t *target) { t.before, t.after = "", portRefused })}},
			"sshd-down wrong-knocks daemon-dead udp-filtered"},
		"the profile has changed": {evidence{profile: static, changed: true, oldOpens: true, targets: []target{silent}},
			"not-deployed wrong-knocks port-filtered daemon-dead"},
		"a status without a second one": {evidence{profile: rotating, key: "a", targets: []target{silent},
			server: &serverEvidence{installed: true, before: &serverStatus{Rules: rulesLoaded, Key: "b"}}}, "other-key"},
		"the server cannot be asked": {evidence{profile: static, targets: []target{silent}, server: &serverEvidence{err: errReaderGone}}, "wrong-knocks port-filtered daemon-dead"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.e.at, tt.e.port = time.Unix(1e9, 0), 22
			var got []string
			for _, c := range causes(&tt.e) {
				got = append(got, c.ID)
			}
			if text := strings.Join(got, " "); text != tt.want {
				t.Errorf("the causes are %q, want %q", text, tt.want)
			}
		})
	}
}

// TestNoCauseContradictsEvidence: whatever the evidence is, no cause contradicts it, causes that
// are certain come first, and no text is too wide.
func TestNoCauseContradictsEvidence(t *testing.T) {
	profiles := []*profile.Profile{
		parsedProfile(t, "Sequence 7001/udp 8003/tcp 9005/udp"),
		parsedProfile(t, "Sequence 7001/udp 8003/tcp 9005/udp", "OpenPorts 2222"),
		parsedProfile(t, "Sequence 7001/udp 8003/tcp 9005/udp", "OpenFor 2h"),
		parsedProfile(t, "Scheme rotating", "KeyCommand echo key"),
		parsedProfile(t, "Scheme token", "KeyCommand echo key", "ValidUntil 2001-01-01"),
		parsedProfile(t, "Scheme fwknop", "KeyCommand echo key"),
	}
	r := rand.New(rand.NewPCG(1, 2))
	chance := func(n int) bool { return r.IntN(n) == 0 }
	state := func() portState { return []portState{portOpen, portRefused, portRejected, portSilent}[r.IntN(4)] }
	reached := map[string]bool{}
	for range 50_000 {
		e := &evidence{at: time.Unix(1e9, 0), port: 22, profile: profiles[r.IntN(len(profiles))], changed: chance(4), clock: []clockState{"", clockFree, clockRight}[r.IntN(3)]}
		e.oldOpens = e.changed && chance(2)
		if e.profile.Period > 0 {
			e.key = "140e3937e081b014"
		}
		for _, addr := range []netip.Addr{ipv4, ipv6} {
			tg := target{addr: addr, from: addr, noRoute: chance(10), after: state(), before: state()}
			if chance(2) {
				tg.others = map[uint16]portState{80: state(), 443: state()}
			}
			if chance(3) {
				tg.others = map[uint16]portState{80: portSilent}
				tg.before, tg.after = portSilent, portSilent
			}
			tg.knocks = answersTo(state(), state(), state())
			if chance(2) {
				tg.knocks = answersTo(portSilent, portSilent, portSilent)
			}
			if chance(3) {
				continue
			}
			e.targets = append(e.targets, tg)
		}
		if chance(5) {
			e.sshPorts = []uint16{2222}
		}
		if chance(2) {
			e.server = randomServer(r, chance)
		}
		all := causes(e)
		uncertain := false
		for i, c := range all {
			reached[c.ID] = true
			if why := contradiction(e, c); why != "" {
				t.Fatalf("%s: %s\n%+v\n%+v", c.ID, why, e, e.server)
			}
			if c.Certain && uncertain || slices.ContainsFunc(all[:i], func(o cause) bool { return o.ID == c.ID }) {
				t.Fatalf("%s is twice in the list, or after less certain causes: %+v", c.ID, all)
			}
			uncertain = uncertain || !c.Certain
			if c.ID != "port-not-guarded" && c.ID != "rejected" { // the hints of logins, which have another form
				for line := range strings.Lines(strings.ReplaceAll(causeText(i, c), "port 22", "port 65535")) {
					if len(line) > 101 { // with the newline
						t.Fatalf("%s: this line has %d columns: %s", c.ID, len(line), line)
					}
				}
			}
		}
	}
	for _, id := range strings.Fields("no-guard guard-lost ipv6-unguarded wrong-knocks other-key clock clock-behind clock-ahead expired daemon-dead " +
		"spa-refused tokens-spent port-filtered udp-filtered sshd-down sshd-elsewhere host-off ipv6-unreachable trusted firewall-rejects " +
		"firewall-drops rules-failing rules-missing rejected no-route port-not-guarded not-deployed ipv4-not-opened knocks-rejected") {
		if !reached[id] {
			t.Errorf("no evidence has the cause %s", id)
		}
	}
}

// randomServer returns what a server may tell.
func randomServer(r *rand.Rand, chance func(int) bool) *serverEvidence {
	s := &serverEvidence{guard: true}
	if chance(4) {
		s.err = fmt.Errorf("no connection")
		return s
	}
	if s.installed = !chance(5); !s.installed {
		return s
	}
	status := func(n int) *serverStatus {
		counters := map[string]int{"dropped": n * r.IntN(2), "let_through": n * r.IntN(2), "tokens_refused": n * r.IntN(2), "tokens_spent": n * r.IntN(2)}
		for i := range 4 {
			counters[fmt.Sprintf("stage%d", i)] = n * r.IntN(2)
		}
		return &serverStatus{Counters: counters}
	}
	s.before = status(0)
	s.before.Rules = []string{rulesLoaded, rulesMissing, "changed", "other"}[r.IntN(4)]
	s.before.Key = []string{"", "140e3937e081b014", "3435151bd68dab7b"}[r.IntN(3)]
	if chance(3) {
		end := 1e9 + int64(r.IntN(3)-1)*3600
		s.before.ValidUntil = &end
	}
	if chance(6) {
		s.before.Failing = "no nft"
	}
	if chance(3) {
		s.before.Admitted = append(s.before.Admitted, admitted{ipv4, 9})
	}
	s.daemonDead = chance(8)
	if chance(2) {
		s.after = status(1)
		s.within = 10 * time.Millisecond
		s.offset = time.Duration(r.IntN(3)-1) * time.Hour
		s.listening = map[string][]uint16{"IPv4": {[]uint16{22, 80}[r.IntN(2)]}, "IPv6": {[]uint16{22, 80}[r.IntN(2)]}}
		if chance(2) {
			s.sshd = []uint16{2200}
		}
	}
	return s
}

// contradiction says why a cause contradicts the evidence. It returns "" if it does not.
func contradiction(e *evidence, c cause) string {
	any := func(is func(*target) bool) bool {
		return slices.ContainsFunc(e.targets, func(t target) bool { return is(&t) })
	}
	if c.ID == "port-not-guarded" || c.ID == "no-route" {
		return ""
	}
	s, told := e.server, e.server != nil && e.server.err == nil && e.server.before != nil
	isSilent := func(t *target) bool { return t.after == portSilent && t.before != portOpen }
	require := func(condition bool, text string) string {
		if condition {
			return ""
		}
		return text
	}
	switch c.ID {
	case "no-guard", "guard-lost", "trusted":
		return require(any(func(t *target) bool { return t.before == portOpen && !e.admittedBefore(t) }), "no port is open without a knock") +
			require(!c.Certain || e.profile.OpenFor < time.Minute || s != nil && s.err == nil && (s.before == nil || s.before.Rules == rulesMissing),
				"an earlier login may have opened the port")
	case "ipv4-unguarded", "ipv6-unguarded":
		return require(any(func(t *target) bool {
			return t.before == portOpen && strings.EqualFold(t.family()+"-unguarded", c.ID)
		}), "this family is not open")
	case "ipv4-unreachable", "ipv6-unreachable":
		return require(any(func(t *target) bool {
			return !t.has(portOpen, portRefused, portRejected) && strings.EqualFold(t.family()+"-unreachable", c.ID)
		}), "this family answers")
	case "ipv4-not-opened", "ipv6-not-opened":
		return require(any(isSilent) && any((*target).opened), "both families do the same")
	case "sshd-down", "sshd-elsewhere", "firewall-rejects":
		known := s != nil && s.err == nil && s.listening != nil
		return require(any(func(t *target) bool {
			return t.after == portRefused && (!known || slices.Contains(s.listening[t.family()], 22) == (c.ID == "firewall-rejects"))
		}), "the port is not refused, or the server has told otherwise")
	case "rejected":
		return require(any(func(t *target) bool { return t.after == portRejected }), "the port is not rejected")
	}
	if !any(isSilent) {
		return "the port is not silent"
	}
	switch c.ID {
	case "host-off":
		return require(any(func(t *target) bool { return !t.has(portOpen, portRefused, portRejected) }) && !told, "the host answers")
	case "udp-filtered":
		return require(any(func(t *target) bool { return !t.knocks[0].arrived() && !t.knocks[2].arrived() }), "a UDP knock has arrived")
	case "other-key":
		return require(e.key != "" && (!told || s.before.Key != "" && s.before.Key != e.key), "the keys are the same")
	case "clock":
		return require(!e.clocksCompared(), "the clocks were compared")
	case "clock-behind", "clock-ahead":
		return require(e.clocksCompared() && (s.offset > 0) == (c.ID == "clock-behind"), "the clocks say otherwise")
	case "expired":
		if told {
			return require(s.before.ValidUntil != nil && *s.before.ValidUntil <= e.at.Add(s.offset).Unix(), "the server's rules are valid")
		}
		return require(!e.profile.ValidUntil.IsZero(), "the rules are valid")
	case "daemon-dead":
		return require(!told || s.daemonDead, "the daemon runs, or the rules need none")
	case "tokens-spent":
		return require(e.profile.TokensPerWindow > 0 && !told || told && s.counted("tokens_refused") > 0, "no token was refused")
	case "port-filtered":
		return require(told && s.admitted(e) && s.counted("let_through") == 0 || !told && any(func(t *target) bool {
			return slices.ContainsFunc(t.knocks, knockAnswer.arrived)
		}), "connections arrive, or no knock does")
	case "wrong-knocks", "firewall-drops":
		return require(!told || s.admitted(e) == (c.ID == "firewall-drops"), "the server has told whether it admits this computer")
	}
	return ""
}

// TestHintKeepsEveryAnswer: an answer over one family decides the hint, although the last dial of
// the login, over the other family, got none.
func TestHintKeepsEveryAnswer(t *testing.T) {
	p := parsedProfile(t, "Sequence 7001/udp 8003/tcp 9005/udp")
	d := &hostDialer{answers: map[netip.Addr]portState{ipv4: portRefused, ipv6: portSilent}}
	closed := &proxy.ClosedError{Port: 22}
	if got := closedHint(d, p, closed); !strings.HasPrefix(got, "the server answered: check that sshd listens on port 22\n") {
		t.Errorf("after a RST over IPv4, the hint is %q", got)
	}
	d.answers[ipv4] = portSilent
	if got := closedHint(d, p, closed); !strings.HasSuffix(got, "\nrun: portknock check vps") {
		t.Errorf("without an answer, the hint is %q", got)
	}
}

// TestStatusNamesTheProfile: a status is that of the profile with the same name, or else of the
// profile with the same key.
func TestStatusNamesTheProfile(t *testing.T) {
	const text = `{"format":"nftables","clock_synchronized":"yes","profiles":[
		{"name":"web","rules":"as loaded","key":"1","valid_until":null,"counters":{"let_through":3},"admitted":[]},
		{"name":"vps","rules":"changed","key":"2","valid_until":1000000000,"counters":{},"admitted":[{"address":"192.0.2.1","seconds_left":7}]}]}`
	for _, tt := range []struct{ name, key, rules string }{
		{"VPS", "", "changed"}, {"vps", "1", "changed"}, {"other", "1", "as loaded"},
	} {
		if s, err := parseStatus([]byte(text), tt.name, tt.key); err != nil || s.Rules != tt.rules || s.clock != clockRight {
			t.Errorf("%v: %+v, %v", tt, s, err)
		}
	}
	s, _ := parseStatus([]byte(text), "vps", "")
	if !s.admits(ipv4) || s.admits(ipv6) {
		t.Errorf("the admitted addresses are %v", s.Admitted)
	}
	for _, bad := range []string{"", "null", "{}", `{"profiles":[null]}`, `{"profiles":[{"name":"x","admitted":[{"address":"?"}]}]}`} {
		if s, err := parseStatus([]byte(bad), "vps", ""); err == nil {
			t.Errorf("%s: %+v, want an error", bad, s)
		}
	}
}

// FuzzParseStatus: no text of a server makes the command crash.
func FuzzParseStatus(f *testing.F) {
	f.Add([]byte(`{"profiles":[{"name":"vps","counters":{"stage1":1},"admitted":[{"address":"::1","seconds_left":1}]}]}`))
	p := &profile.Profile{Scheme: "static"}
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseStatus(text, "vps", "")
		if err == nil {
			e := &evidence{profile: p, port: 22, server: &serverEvidence{installed: true, before: s, after: s},
				targets: []target{{addr: ipv4, after: portSilent, knocks: answersTo(portRefused, portRefused, portRefused)}}}
			causes(e)
		}
	})
}

// TestCauseNamesInstalledScript: a cause names the script on the server also if the name of the
// profile is not the name of the file.
func TestCauseNamesInstalledScript(t *testing.T) {
	p := parsedProfile(t, "Sequence 7001/udp 8003/tcp 9005/udp")
	p.Name = "my-vps"
	all := causes(&evidence{profile: p, port: 22, targets: []target{{addr: ipv4, before: portOpen, after: portOpen}},
		server: &serverEvidence{before: admitting(ipv4)}})
	if len(all) != 1 || all[0].ID != "trusted" || !strings.HasSuffix(all[0].Fix, ": sh /etc/portknock/my_vp_8ab147.sh status") {
		t.Errorf("the causes are %+v", all)
	}
}
