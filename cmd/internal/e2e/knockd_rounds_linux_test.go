package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
)

// knockdLetters are the knocks that the tests of this file name by letters.
var knockdLetters = map[rune]knock.Step{
	'A': {Transport: knock.TCP, Port: 7000},
	'B': {Transport: knock.TCP, Port: 8000},
	'C': {Transport: knock.TCP, Port: 9000},
}

// knockdFile is a knockd.conf whose sequence A B C opens the port.
type knockdFile struct {
	name     string
	section  string // section with the sequence A B C
	sections string // text of the sections; if it is empty, emit-rules writes the file
}

var (
	debianFile  = knockdFile{"Debian", "openSSH", knockdOpenSection + knockdOtherSections}
	oneSection  = knockdFile{"one section", "openSSH", knockdOpenSection}
	emittedFile = knockdFile{"emitted", "vps", ""}
	knockdFiles = []knockdFile{debianFile, oneSection, emittedFile}
)

// knockdRig is a rig whose server runs knockd. Unless the file is emittedFile, knockd adds a
// rule to INPUT for each address that it admits, and INPUT drops all other packets.
type knockdRig struct {
	*rig
	file knockdFile
	log  *lab.Log
}

// newWANRig makes a rig without a profile and without an attacker. A service listens on port 22.
func newWANRig(t *testing.T, f lab.Firewall, w lab.WAN) *rig {
	t.Helper()
	r := &rig{server: lab.NewHost(t, "server"), client: lab.NewHost(t, "client"), firewall: f, family: lab.IPv4}
	lab.LinkWAN(t, r.client, r.server, w)
	f.Install(t, r.server)
	r.server.Listen(t, lab.GuardedPort)
	return r
}

func newKnockdRig(t *testing.T, file knockdFile, w lab.WAN) knockdRig {
	t.Helper()
	r := newWANRig(t, firewallNamed("knockd"), w)
	r.profile = r.vpsProfile(t, "Sequence 7000 8000 9000", "Host close", "HostName "+r.addr().String(), "Sequence 9000 8000 7000")
	conf := ""
	if file.sections == "" {
		r.emitRules(t)
		r.runHeaderLine(t, "load")
		r.server.Run(t, "pkill", "-x", "knockd")
		conf = r.rules
	} else {
		r.server.Shell(t, "iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables -P INPUT DROP")
		conf = lab.File(t, "knockd.conf", "[options]", "UseSyslog", file.sections)
	}
	return knockdRig{r, file, r.server.Knockd(t, conf).Log}
}

// round sends the knocks of a round, such as AABC, and returns when knockd has seen them.
func (k knockdRig) round(t *testing.T, from netip.Addr, letters string) {
	t.Helper()
	var steps []knock.Step
	for _, l := range letters {
		steps = append(steps, knockdLetters[l])
	}
	k.client.KnockFrom(t, from, k.addr(), steps...)
	k.settle(t)
}

// settle waits until knockd has seen all knocks that have left the client. The link and
// knockd keep the order of packets, so a knock from another address comes last.
func (k knockdRig) settle(t *testing.T) {
	t.Helper()
	var others []string
	lab.Await(t, 30*time.Second, func() string {
		log := k.log.String()
		if slices.ContainsFunc(others, func(line string) bool { return strings.Contains(log, line) }) {
			return ""
		}
		other := k.freshAddr() // the link may lose a knock, so each try sends another one
		others = append(others, fmt.Sprintf("\n%v: ", other))
		k.client.KnockFrom(t, other, k.addr(), knockdLetters['A'])
		return "knockd does not see the last knock"
	})
}

// openings returns how often knockd has opened the port to an address, minus how often it has
// closed the port again.
func (k knockdRig) openings(from netip.Addr) int {
	log := k.log.String()
	count := func(section string) int {
		return strings.Count(log, fmt.Sprintf("\n%v: %s: OPEN SESAME\n", from, section))
	}
	return count(k.file.section) - count("closeSSH")
}

// awaitRules waits until the server has n rules that admit an address. An emitted file makes no
// rules for single addresses.
func (k knockdRig) awaitRules(t *testing.T, from netip.Addr, n int) {
	t.Helper()
	if k.file == emittedFile {
		return
	}
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
	debian, one := newKnockdRig(t, debianFile, lab.WAN{}), newKnockdRig(t, oneSection, lab.WAN{})
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
				got := tt.openings(from)
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
	debian, one := newKnockdRig(t, debianFile, lab.WAN{}), newKnockdRig(t, oneSection, lab.WAN{})
	emitted := newKnockdRig(t, emittedFile, lab.WAN{})
	for _, tt := range []struct {
		knockdRig
		rounds, want string
	}{
		{debian, "ABC ABC ABC ABC ABC", "never 1 never"},
		{debian, "ABC AABC AABC ABC", "1 2 1"},
		{debian, "ABC AABC ABC AABC", "1 3 1"},
		{debian, "ABC ABC AABC AABC", "2 1 2"},
		{one, "ABC ABC ABC", "1 1 2"},
		{one, "ABC AABC AABC ABC", "3 3 1"},
		{one, "ABC AABC ABC AABC", "2 2 1"},
		{emitted, "ABC ABC ABC", "1 1 2"},
		{emitted, "ABC AABC AABC ABC", "3 3 1"},
		{emitted, "ABC AABC ABC AABC", "2 2 1"},
	} {
		t.Run(tt.file.name+", "+tt.rounds, func(t *testing.T) {
			var got []string
			for _, lost := range "ABC" {
				from, opened := tt.freshAddr(), "never"
				for i, letters := range strings.Fields(tt.rounds) {
					if i == 0 {
						letters = strings.ReplaceAll(letters, string(lost), "")
					}
					tt.round(t, from, letters)
					if tt.openings(from) > 0 {
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

// connectFrom makes portknock connect from an address of the client. It returns how long that
// took, and whether it succeeded.
func (r *rig) connectFrom(t *testing.T, from netip.Addr, options ...string) (took time.Duration, ok bool) {
	t.Helper()
	args := []string{"-c", r.profile, "-o", "BindAddress=" + from.String()}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	began := time.Now()
	_, stderr, code := portknock(r.client, append(args, "vps", "22")...)
	took = time.Since(began)
	t.Logf("%v: exit code %d after %v %s", from, code, took, stderr)
	return took, code == 0
}

// expectConnect checks that portknock connects from an address within a time.
func (k knockdRig) expectConnect(t *testing.T, within time.Duration, from netip.Addr, options ...string) {
	t.Helper()
	if took, ok := k.connectFrom(t, from, options...); !ok || took > within {
		t.Errorf("%s: connected: %v after %v, want within %v", k.file.name, ok, took, within)
	}
}

// connectMany makes portknock connect from n addresses, a few at a time. It returns how often
// knockd has then opened the port to each address, or -1 for a client that did not connect.
func (k knockdRig) connectMany(t *testing.T, n int) (openings []int) {
	t.Helper()
	openings = make([]int, n)
	slots := make(chan struct{}, 5)
	var all sync.WaitGroup
	addrs := make([]netip.Addr, n)
	for i := range n {
		addrs[i] = k.freshAddr()
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if _, ok := k.connectFrom(t, addrs[i]); !ok {
				openings[i] = -1
			}
		})
	}
	all.Wait()
	k.settle(t)
	for i, from := range addrs {
		if openings[i] == 0 {
			openings[i] = k.openings(from)
			k.awaitRules(t, from, openings[i])
		}
	}
	return openings
}

// expectOneRule checks that knockd admits an address once.
func (k knockdRig) expectOneRule(t *testing.T, from netip.Addr) {
	t.Helper()
	k.settle(t)
	if n := k.openings(from); n != 1 {
		t.Errorf("%s: %d openings for %v, want 1", k.file.name, n, from)
	}
	k.awaitRules(t, from, 1)
}

// TestConnectsToKnockdAfterLostPacket: portknock connects soon if a single knock or the SYN
// behind them is lost, and knockd admits it once.
func TestConnectsToKnockdAfterLostPacket(t *testing.T) {
	t.Parallel()
	for _, file := range knockdFiles {
		t.Run(file.name, func(t *testing.T) {
			t.Parallel()
			k := newKnockdRig(t, file, lab.WAN{Delay: 20 * time.Millisecond})
			for _, lost := range []int{7000, 8000, 9000, 22} {
				t.Run(fmt.Sprint(lost), func(t *testing.T) {
					k.client.Run(t, "nft", fmt.Sprintf("add table ip lost; add chain ip lost out { type filter hook output priority 0; };"+
						"add rule ip lost out tcp dport %d quota until 61 bytes counter drop", lost)) // a SYN has 60 bytes
					from := k.freshAddr()
					k.expectConnect(t, 5*time.Second, from) // 2.5 s on an idle machine
					if rules := k.client.Run(t, "nft", "list table ip lost"); !strings.Contains(rules, "counter packets 1 ") {
						t.Errorf("not exactly one packet was lost:\n%s", rules)
					}
					k.client.Run(t, "nft", "delete table ip lost")
					k.expectOneRule(t, from)
				})
			}
		})
	}
}

// runs returns the number of runs of a test: all of them if allScans is set, else few.
func runs(all, few int) int {
	if allScans {
		return all
	}
	return few
}

// TestConnectsToKnockdOnLossyLink: every client connects although the link loses packets.
func TestConnectsToKnockdOnLossyLink(t *testing.T) {
	t.Parallel()
	for i, file := range knockdFiles {
		t.Run(file.name, func(t *testing.T) {
			t.Parallel()
			k := newKnockdRig(t, file, lab.WAN{Delay: 20 * time.Millisecond, Loss: .05, Seed: uint64(1 + i)})
			if openings := k.connectMany(t, runs(100, 20)); slices.Contains(openings, -1) {
				t.Errorf("a client did not connect; the openings are %v", openings)
			}
		})
	}
}

// TestKnockdAdmitsDistantClientOnce: a client that is far away, and knows that it is, does not
// make knockd open the port twice. That would leave a second rule for the client's address. It
// rarely happens, if many packets are lost one after another.
func TestKnockdAdmitsDistantClientOnce(t *testing.T) {
	t.Parallel()
	var clients, others atomic.Int64 // others are clients with no rule or with several
	t.Run("seeds", func(t *testing.T) {
		for seed := range uint64(runs(3, 1)) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				k := newKnockdRig(t, debianFile, lab.WAN{Delay: 150 * time.Millisecond, Loss: .05, Seed: seed})
				k.connectFrom(t, k.freshAddr()) // from now on, portknock knows the round trip
				for _, n := range k.connectMany(t, runs(50, 20)) {
					clients.Add(1)
					if n != 1 {
						others.Add(1)
					}
				}
			})
		}
	})
	if got, most := others.Load(), max(2, clients.Load()/50); got > most {
		t.Errorf("%d of %d clients do not have exactly one rule, want at most %d", got, clients.Load(), most)
	}
}

// TestKnockdOpensAgainAfterClosing: a client can open the port again as soon as it has closed
// the port.
func TestKnockdOpensAgainAfterClosing(t *testing.T) {
	t.Parallel()
	k := newKnockdRig(t, debianFile, lab.WAN{Delay: 20 * time.Millisecond})
	from := k.freshAddr()
	for range 3 {
		k.expectConnect(t, 3*time.Second, from)
		k.expectOneRule(t, from)
		k.client.Run(t, "portknock", "knock", "-c", k.profile, "-o", "BindAddress="+from.String(), "close")
		k.awaitRules(t, from, 0)
	}
}

// TestConnectsToKnockdWithWrongRepeat: knockd opens nothing to repeated knocks. A client whose
// profile says Repeat 2 connects nevertheless, a little later.
func TestConnectsToKnockdWithWrongRepeat(t *testing.T) {
	t.Parallel()
	for _, file := range knockdFiles {
		t.Run(file.name, func(t *testing.T) {
			t.Parallel()
			k := newKnockdRig(t, file, lab.WAN{Delay: 20 * time.Millisecond})
			for range 5 {
				k.expectConnect(t, 4*time.Second, k.freshAddr(), "Repeat=2")
			}
		})
	}
}

// ufwLimit is what the command "ufw limit 22/tcp" adds. The sixth new connection in 30 s is
// rejected.
const ufwLimit = `
iptables -A INPUT -p tcp --dport 22 -m conntrack --ctstate NEW -m recent --set
iptables -A INPUT -p tcp --dport 22 -m conntrack --ctstate NEW -m recent --update --seconds 30 --hitcount 6 -j REJECT
`

// TestLoginsWithinLimitOfUFW: clients that log in at the rate that ufw limit allows are never
// rejected, because a login sends one SYN on a link without losses.
func TestLoginsWithinLimitOfUFW(t *testing.T) {
	t.Parallel()
	// With this delay, Hedge is 85 ms longer than a round trip. Answers may be late on a busy
	// machine.
	w := lab.WAN{Delay: 150 * time.Millisecond}
	own := func(t *testing.T) *rig {
		r := newWANRig(t, nftables, w)
		r.profile = r.vpsProfile(t, "Sequence 7000 8000 9000")
		r.emitRules(t)
		r.runHeaderLine(t, "load")
		return r
	}
	knockd := func(file knockdFile) func(*testing.T) *rig {
		return func(t *testing.T) *rig { return newKnockdRig(t, file, w).rig }
	}
	for _, tt := range []struct {
		name   string
		start  func(*testing.T) *rig
		repeat int
	}{
		{"nftables", own, 1},
		{"nftables, Repeat 2", own, 2},
		{"knockd, emitted", knockd(emittedFile), 1},
		{"knockd, Debian", knockd(debianFile), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := tt.start(t)
			r.connectFrom(t, r.freshAddr()) // from now on, portknock knows the round trip
			r.server.Shell(t, ufwLimit)
			from := r.freshAddr()
			for n := range 10 {
				// Four logins in 30 s leave room for one more SYN, on a busy machine. Login 0
				// is alone, because knockd opens the port only after its first SYN.
				if n%4 == 1 { // as if 30 s had passed
					r.server.Shell(t, "echo / >/proc/net/xt_recent/DEFAULT")
				}
				if _, ok := r.connectFrom(t, from, fmt.Sprintf("Repeat=%d", tt.repeat)); !ok {
					t.Fatalf("login %d failed", n)
				}
			}
			for range 5 {
				r.answer(t, from)
			}
			if got := r.answer(t, from); got == lab.Open {
				t.Error("port 22 is open after too many SYNs")
			}
		})
	}
}
