package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
)

// facts is what a deploy finds out about a server before it changes something.
type facts struct {
	system    string        // name and release of the operating system
	offset    time.Duration // server's clock minus this computer's clock
	within    time.Duration // largest error of offset
	sshdPorts []uint16      // ports where sshd listens; nil if unknown
	managers  []string      // services that manage a firewall
	redirects []string      // NAT rules that change the port of packets
}

// factsScript prints lines, each a word and a value.
const factsScript = `uname -s | sed 's/^/kernel /'
if [ -r /etc/os-release ]; then
	(. /etc/os-release && echo "system $PRETTY_NAME")
else
	uname -sr | sed 's/^/system /'
fi
# The sockets of systemd listen for sshd on some systems.
{
	sshd -T 2>/dev/null | sed -n 's/^port //p'
	systemctl show -p Listen ssh.socket sshd.socket 2>/dev/null | sed -n 's/^Listen=.*:\([0-9]*\) (Stream)$/\1/p'
} | sort -un | sed 's/^/sshd /'
for unit in ufw firewalld nftables netfilter-persistent docker; do
	! systemctl -q is-active $unit 2>/dev/null || echo "manager $unit"
done
{
	nft -s -t list ruleset 2>/dev/null
	iptables -w -t nat -S 2>/dev/null
	ip6tables -w -t nat -S 2>/dev/null
} | grep -i -e '[^-a-z_]redirect to' -e ' dnat .*to ' -e '-j REDIRECT' -e '-j DNAT' | sed 's/^[ 	]*/redirect /'
:`

// readFacts fills s.facts, and refuses servers that cannot have a guard.
func (s *server) readFacts(ctx context.Context) error {
	out, err := s.channel.run(ctx, verbLimit, factsScript)
	if err != nil {
		return err
	}
	f := &s.facts
	kernel := ""
	for line := range strings.Lines(out) {
		word, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "kernel":
			kernel = value
		case "system":
			f.system = value
		case "sshd":
			if port, err := parsePort(value); err == nil {
				f.sshdPorts = append(f.sshdPorts, port)
			}
		case "manager":
			f.managers = append(f.managers, value)
		case "redirect":
			f.redirects = append(f.redirects, value)
		}
	}
	if kernel != "Linux" {
		return &failure{exitNotDeployed, fmt.Errorf("the server runs %s; the rules need Linux", kernel), ""}
	}
	return s.readClock(ctx)
}

// readClock compares the clock of the server with that of this computer.
func (s *server) readClock(ctx context.Context) error {
	began := time.Now()
	out, err := s.channel.run(ctx, verbLimit, "date +%s.%N")
	took := time.Since(began)
	if err != nil {
		return err
	}
	second, fraction, _ := strings.Cut(out, ".")
	seconds, err := strconv.ParseInt(second, 10, 64)
	if err != nil {
		return fmt.Errorf("unexpected time of the server: %s", oneLine(out))
	}
	s.facts.within = took / 2
	nanoseconds, err := strconv.ParseInt(fraction, 10, 64)
	if err != nil { // the date of busybox has whole seconds
		nanoseconds = 5e8
		s.facts.within += 500 * time.Millisecond
	}
	middle := now().Add(-took / 2)
	s.facts.offset = time.Unix(seconds, nanoseconds).Sub(middle)
	return nil
}

// plan prints what the deploy will do. It returns an error if the deploy cannot work. The script
// must be on the server.
func (s *server) plan(ctx context.Context, g rules.Guard) error {
	out, err := s.channel.run(ctx, verbLimit, `find_part
echo "part $part"
if [ -f "/etc/portknock/$part.sh" ]; then
	sed -n -e "s/^made_by='\{0,1\}\([^']*\)'\{0,1\}$/by \1/p" -e "s/^key_$part=/key /p" "/etc/portknock/$part.sh"
fi`)
	if err != nil {
		return err
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		word, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		found[word] = value
	}
	s.part, s.presentKey = found["part"], found["key"]
	st, err := s.readStatus(ctx, s.file)
	if err != nil {
		return err
	}
	s.result.ID = st.ID
	s.present, s.foreign = st.Profiles[0].Rules != rulesMissing, st.Profiles[0].Rules == "other" || st.Profiles[0].Installed == "other"
	s.admitsOthers = s.admitsOthers || len(st.Others) > 0
	f := &s.facts
	s.say("server    %s: %s", s.host, f.system)
	s.say("present   %s", presentRules(st, found["by"]))
	key, until := "", ""
	if g.Fingerprint != "" {
		key = ", key " + g.Fingerprint
	}
	if s.result.ValidUntil != "" {
		until = ", valid until " + s.result.ValidUntil
	}
	s.say("new       %s for %s, Scheme %s%s%s, format %s", portList(g.OpenPorts), s.profile.Name, s.profile.Scheme, key, until, s.result.Format)
	for _, port := range f.sshdPorts {
		if !containsPort(g.OpenPorts, port) {
			s.say("note      sshd listens on port %d, which %s does not guard", port, s.profile.Name)
		}
	}
	if len(f.managers) > 0 {
		s.say("note      %s manages the firewall; its rules also apply to knocks and connections", strings.Join(f.managers, ", "))
	}
	for _, r := range f.redirects {
		if redirectsTo(r, g.OpenPorts) {
			s.say("note      NAT leads another port to a guarded port, and is guarded too: %s", r)
		}
	}
	if st.Left != nil {
		return &failure{exitNotDeployed, fmt.Errorf("another trial runs on the server, for %d s more", *st.Left), "wait until it has ended"}
	}
	return s.checkClock()
}

// presentRules describes the rules that the server has. The text by says who made the
// installed rules of the profile.
func presentRules(st *status, by string) string {
	p := st.Profiles[0]
	text := map[string]string{"as loaded": "the same rules for ", "other": "other rules for ",
		"changed": "rules that have changed since they were loaded, for "}[p.Rules]
	loaded := text != ""
	if !loaded {
		text = "no rules for "
	}
	text += p.Name
	switch {
	case by != "" && !loaded:
		text += " in force; those that a boot would load were installed by " + by
	case by != "":
		text += ", installed by " + by
	}
	if len(st.Others) > 0 {
		text += "; other profiles: " + strings.Join(st.Others, ", ")
	}
	return text
}

// spaSkew is how old a packet may be for fwknopd.
const spaSkew = 2 * time.Minute

// checkClock refuses a server whose clock differs by more than its rules allow.
func (s *server) checkClock() error {
	limit := s.profile.Skew
	switch {
	case s.profile.Facts().SingleUse:
		limit = spaSkew
	case s.profile.Period == 0:
		return nil
	}
	s.say("clock     the server's clock minus this one: %s (within %s)", shortSpan(s.facts.offset), shortSpan(s.facts.within))
	if s.facts.offset.Abs() <= limit+s.facts.within {
		return nil
	}
	return &failure{exitNotDeployed, fmt.Errorf("the clocks differ by %s; %s is allowed", shortSpan(s.facts.offset.Abs()), shortSpan(limit)),
		"set the wrong clock, and let NTP keep both right"}
}

// shortSpan writes a difference of clocks.
func shortSpan(d time.Duration) string { return d.Round(10 * time.Millisecond).String() }

func portList(ranges []knock.PortRange) string { return strings.Trim(fmt.Sprint(ranges), "[]") }

// containsPort reports whether one of the ranges contains a TCP port. No range contains port 0.
func containsPort(ranges []knock.PortRange, port uint16) bool {
	step := knock.Step{Transport: knock.TCP, Port: port}
	return slices.ContainsFunc(ranges, func(r knock.PortRange) bool { return r.Contains(step) })
}

// redirectsTo reports whether the ranges contain the last port in a NAT rule.
func redirectsTo(rule string, ranges []knock.PortRange) bool {
	numbers := strings.FieldsFunc(rule, func(r rune) bool { return r < '0' || r > '9' })
	if len(numbers) == 0 {
		return false
	}
	port, err := parsePort(numbers[len(numbers)-1])
	return err == nil && containsPort(ranges, port)
}
