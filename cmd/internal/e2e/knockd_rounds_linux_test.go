package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// These are the sections of the knockd.conf of Debian's package. Many guides use the first
// two. A lost knock matters, because the last knock of openSSH begins closeSSH.
const (
	knockdOpenSection = `
[openSSH]
	sequence    = 7000,8000,9000
	seq_timeout = 5
	command     = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	tcpflags    = syn
`
	knockdOtherSections = `
[closeSSH]
	sequence    = 9000,8000,7000
	seq_timeout = 5
	command     = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	tcpflags    = syn

[openHTTPS]
	sequence    = 12345,54321,24680,13579
	seq_timeout = 5
	command     = /usr/local/sbin/knock_add -i -c INPUT -p tcp -d 443 -f %IP%
	tcpflags    = syn
`
	oneSection     = knockdOpenSection
	debianSections = knockdOpenSection + knockdOtherSections
)

// knockdLetters are the knocks that the tests of this file name by letters.
var knockdLetters = map[rune]knock.Step{
	'A': {Transport: knock.TCP, Port: 7000},
	'B': {Transport: knock.TCP, Port: 8000},
	'C': {Transport: knock.TCP, Port: 9000},
}

// knockdRig is a rig whose server runs knockd. Rules of INPUT admit clients. knockd adds
// them, and INPUT drops all other packets.
type knockdRig struct {
	*rig
	log *lab.Log
}

// newKnockdRig starts knockd with a file, whose path it gets.
func newKnockdRig(t *testing.T, file string) knockdRig {
	t.Helper()
	r := newListeningRig(t, firewallNamed("knockd"), lab.IPv4)
	r.server.Shell(t, "iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables -P INPUT DROP")
	return knockdRig{r, r.server.Knockd(t, file).Log}
}

// knockdFile writes a knockd.conf with these sections.
func knockdFile(t *testing.T, sections string) string {
	t.Helper()
	return lab.File(t, "knockd.conf", "[options]", "UseSyslog", sections)
}

// round sends the knocks of a round, such as AABC, and returns when knockd has seen them.
func (k knockdRig) round(t *testing.T, from netip.Addr, letters string) {
	t.Helper()
	var steps []knock.Step
	for _, l := range letters {
		steps = append(steps, knockdLetters[l])
	}
	k.client.KnockFrom(t, from, k.addr(), steps...)
	// knockd treats packets in order, so it logs a knock from another address last.
	other := k.freshAddr()
	k.client.KnockFrom(t, other, k.addr(), knockdLetters['A'])
	k.log.Await(t, fmt.Sprintf("\n%v: ", other), 1)
}

// completed returns how often an address has completed the sequence of a section.
func (k knockdRig) completed(from netip.Addr, section string) int {
	return strings.Count(k.log.String(), fmt.Sprintf("\n%v: %s: OPEN SESAME\n", from, section))
}

// awaitRules waits until the server has n rules that admit an address.
func (k knockdRig) awaitRules(t *testing.T, from netip.Addr, n int) {
	t.Helper()
	lab.Await(t, 10*time.Second, func() string {
		if rules := k.server.Run(t, "iptables", "-S", "INPUT"); strings.Count(rules, " "+from.String()+"/32 ") != n {
			return fmt.Sprintf("want %d rules for %v:\n%s", n, from, rules)
		}
		return ""
	})
}

// TestKnockdAdmitsByRounds: these facts about knockd decide what a client sends in each of
// its rounds. rules holds how many rules admit the client after each round.
func TestKnockdAdmitsByRounds(t *testing.T) {
	t.Parallel()
	debian, one := newKnockdRig(t, knockdFile(t, debianSections)), newKnockdRig(t, knockdFile(t, oneSection))
	for _, tt := range []struct {
		knockdRig
		name, rounds, rules string
	}{
		{debian, "doubled first knock opens nothing", "AABC", "0"},
		{debian, "doubled first knock adds no rule after a success", "ABC AABC", "1 1"},
		{debian, "second doubled first knock adds a rule after a success", "ABC AABC AABC", "1 1 2"},
		{debian, "second sequence adds a rule", "ABC ABC", "1 2"},
		{debian, "begun closing sequence stops a single sequence", "C ABC ABC", "0 0 0"},
		{debian, "doubled first knock opens after a begun closing sequence", "C AABC", "0 1"},
		{debian, "single sequence leaves a begun closing sequence", "C ABC AABC AABC", "0 0 1 1"},
		{debian, "closing sequence removes one rule", "ABC ABC CBA", "1 2 1"},
		{debian, "port opens again after the closing sequence", "ABC CBA ABC", "1 0 1"},
		{debian, "port opens again after the closing sequence and a lost first knock", "ABC CBA BC AABC", "1 0 0 1"},

		{debian, "doubled knocks open nothing", "AABBCC AABBCC", "0 0"},
		{debian, "doubled knocks leave no attempt", "AABBCC ABC", "0 1"},
		{debian, "doubled knocks end a begun closing sequence", "C AABBCC ABC", "0 0 1"},
		{debian, "doubled knocks end a begun sequence", "AB AABBCC ABC", "0 0 1"},
		{debian, "two passes of doubled knocks leave no attempt", "AABBCCAABBCC ABC", "0 1"},
		{debian, "second pass of single knocks opens", "AABBCCABC", "1"},
		{debian, "lost copy of the first knock leaves no attempt", "ABBCC ABC", "0 1"},
		{debian, "lost copy of the second knock leaves no attempt", "AABCC ABC", "0 1"},
		{debian, "lost copy of the last knock begins the closing sequence", "AABBC ABC AABC", "0 0 1"},

		{one, "doubled first knock opens nothing, one section", "AABC AABC", "0 0"},
		{one, "doubled first knock never adds a rule, one section", "ABC AABC AABC", "1 1 1"},
		{one, "second sequence adds a rule, one section", "ABC ABC", "1 2"},
		{one, "last knock begins nothing, one section", "C ABC", "0 1"},
		{one, "doubled knocks leave no attempt, one section", "AABBCC ABC", "0 1"},
		{one, "lost copy of the last knock leaves no attempt, one section", "AABBC ABC", "0 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from := tt.freshAddr()
			rounds := strings.Fields(tt.rounds)
			for i, rules := range strings.Fields(tt.rules) {
				tt.round(t, from, rounds[i])
				got := tt.completed(from, "openSSH") - tt.completed(from, "closeSSH")
				if fmt.Sprint(got) != rules {
					t.Fatalf("round %d, %s: %d rules, want %s", i, rounds[i], got, rules)
				}
				tt.awaitRules(t, from, got)
			}
		})
	}
}

// TestKnockdRoundAfterLostKnock: the first of these rounds loses one of its knocks. The
// result is the round that opens the port if A is lost, if B is lost and if C is lost.
// Rounds are counted from 0.
func TestKnockdRoundAfterLostKnock(t *testing.T) {
	t.Parallel()
	emitted := emitRules(t, lab.NewHost(t, "admin"), firewallNamed("knockd"), vpsProfile(t, "Sequence 7000 8000 9000"))
	debian, one := newKnockdRig(t, knockdFile(t, debianSections)), newKnockdRig(t, knockdFile(t, oneSection))
	ours := newKnockdRig(t, emitted)
	for _, tt := range []struct {
		knockdRig
		name, section, rounds, want string
	}{
		{debian, "Debian", "openSSH", "ABC ABC ABC ABC ABC", "never 1 never"},
		{debian, "Debian", "openSSH", "ABC AABC AABC ABC", "1 2 1"},
		{debian, "Debian", "openSSH", "ABC AABC ABC AABC", "1 3 1"},
		{debian, "Debian", "openSSH", "ABC ABC AABC AABC", "2 1 2"},
		{one, "one section", "openSSH", "ABC ABC ABC", "1 1 2"},
		{one, "one section", "openSSH", "ABC AABC AABC ABC", "3 3 1"},
		{one, "one section", "openSSH", "ABC AABC ABC AABC", "2 2 1"},
		{ours, "emitted file", "vps", "ABC ABC ABC", "1 1 2"},
		{ours, "emitted file", "vps", "ABC AABC AABC ABC", "3 3 1"},
		{ours, "emitted file", "vps", "ABC AABC ABC AABC", "2 2 1"},
	} {
		t.Run(tt.name+", "+tt.rounds, func(t *testing.T) {
			var got []string
			for _, lost := range "ABC" {
				from, opened := tt.freshAddr(), "never"
				for i, letters := range strings.Fields(tt.rounds) {
					if i == 0 {
						letters = strings.ReplaceAll(letters, string(lost), "")
					}
					tt.round(t, from, letters)
					if tt.completed(from, tt.section) > 0 {
						opened = fmt.Sprint(i)
						break
					}
				}
				got = append(got, opened)
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("opened in the rounds %s, want %s", s, tt.want)
			}
		})
	}
}
