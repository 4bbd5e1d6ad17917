package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
)

// These tests send knocks as they arrive from a client with Repeat 2, over a path that loses,
// delays, doubles and interleaves packets.

// repeats is an order in which the packets of one address arrive, such as "AABXC". A, B and C
// are the knocks of a sequence, a, b and c those of the other window, and X is a wrong knock.
// At a dot, the sender waits until its opening has ended.
type repeats struct {
	order    string
	opens    bool   // the address is admitted at the end
	answered string // packets that reach the server's kernel although the rules drop the knocks
}

// repeatSteps are the packets of an order. They are TCP, because the kernel answers each SYN
// to a closed port, but few datagrams.
var repeatSteps = map[rune]knock.Step{
	'A': {Port: 7001}, 'B': {Port: 8003}, 'C': {Port: 9005},
	'a': {Port: 7103}, 'b': {Port: 8107}, 'c': {Port: 9109}, 'X': {Port: 4000},
}

// repeatSequence returns the packets of an order without dots.
func repeatSequence(order string) (s knock.Sequence) {
	for _, letter := range order {
		s = append(s, repeatSteps[letter])
	}
	return s
}

var (
	// staticRepeats are for the sequence ABC, alone or in one of two windows.
	staticRepeats = append(overBadPath(), []repeats{
		{"AABBCC", true, ""},
		{"AABBCCABC", true, ""},
		{"AABBCCAABBCC", true, ""},
		{"ABABCC", true, ""},
		{"AABABBCAC", true, ""},
		{"AABCABC", true, ""},     // two copies are lost
		{"AABBABC", true, ""},     // both copies of C are lost
		{"BBCCABC", true, "BBCC"}, // both copies of A are lost
		{"BABC", true, "B"},       // B overtakes A
		{"AACCBBAABBCC", true, "CCBB"},
		{"ABXABC", true, "X"}, // after a wrong knock, a sequence may begin again at once
		{"AXAXABC", true, "XX"},
		{"AACC", false, "CC"},
		{"AACCBB", false, "CCBB"},
		{"CCBBAA", false, "CCBB"},
		{"AABBXCC", false, "XCC"},
		{"AXBC", false, "XBC"},
		{"ABCBC", true, ""},
		{"ABCXC", true, "X"},
		{"ABCXCC.ABC", true, "X"},
		{"ABC.ABC", true, ""},
		{"AABBCC.AABBCC", true, ""},
		{"ABCAC.BC", true, ""}, // a late C does not undo the next attempt
		{"ABCXAC.BC", true, "X"},
		{"ABCXAACCB.BC", true, "X"},
	}...)
	// windowRepeats are for the sequences ABC and abc of two windows in force. A late copy of
	// the last knock of one window does not undo a sequence of the other.
	windowRepeats = append([]repeats{
		{"aabbcc", true, ""},
		{"ABCaC.bc", true, ""},
		{"ABCabC.c", true, ""},
		{"AABBCCaaCbC.bcc", true, ""},
		{"ABCaXC.abc", true, "X"},
		{"abcAc.BC", true, ""},
		{"abcABc.C", true, ""},
	}, staticRepeats...)
	// sharedRepeats are for the sequences ABC and Cbc of two windows in force. A late copy of C
	// does not begin a sequence in which A, B and C would not count.
	sharedRepeats = []repeats{
		{"AABBCC", true, ""},
		{"Cbc", true, ""},
		{"ABCC.ABC", true, ""},
		{"AABBCCC.AABBCC", true, ""},
	}
	// sameRepeats are for the sequence ABA.
	sameRepeats = []repeats{
		{"ABA", true, ""},
		{"AABBAA", true, ""},
		{"AABBAAABA", true, ""},
		{"AAAA", false, ""},
		{"ABXA", false, "X"},
		{"ABXABA", true, "X"},
		{"ABA.ABA", true, ""},
		{"AABBAA.AABBAA", true, ""},
	}
)

// repeatGuard returns a guard for a static sequence, or for two windows in force. In the role
// "odd of two", the first sequence belongs to the window with the odd number. An opening lasts
// for two seconds, and the rules remember a knock for a minute.
func repeatGuard(role string, orders ...string) rules.Guard {
	g := alternatingGuard(role, repeatSequence(orders[0]), repeatSequence(orders[len(orders)-1]))
	if len(orders) == 1 {
		g.Schedule = repeatSequence(orders[0])
	}
	g.OpenFor, g.KnockTimeout = 2*time.Second, time.Minute
	return g
}

// TestRepeatedKnocks: an address is admitted if the knocks of a sequence arrive in order, with
// only repeats of made knocks between them. A late copy of the last knock changes nothing, and
// rules that drop the knocks drop the copy too.
func TestRepeatedKnocks(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		for _, tt := range []struct {
			sequences string
			roles     []string
			all       []repeats
		}{
			{"ABC", windowRoles[:1], staticRepeats},
			{"ABA", windowRoles[:1], sameRepeats},
			{"ABC abc", windowRoles[1:], windowRepeats},
			{"ABC Cbc", windowRoles[1:], sharedRepeats},
		} {
			for _, role := range tt.roles {
				for _, consume := range []bool{false, true} {
					if !allScans && consume == (family == lab.IPv6) && f.Name != nftables.Name {
						continue
					}
					g := repeatGuard(role, strings.Fields(tt.sequences)...)
					r.rules = loadGuard(t, r.server, f, g, rules.Options{Consume: consume})
					t.Run(fmt.Sprintf("%s/%s/consume=%v", tt.sequences, role, consume), func(t *testing.T) { r.expectRepeats(t, consume, tt.all) })
					r.runHeaderLine(t, "unload")
				}
			}
		}
	})
}

// expectRepeats sends each order from an address of its own, and checks whether it opens the port
// and which packets the server answers.
func (r *rig) expectRepeats(t *testing.T, consume bool, all []repeats) {
	t.Helper()
	capture := r.server.Capture(t)
	from := map[string]netip.Addr{}
	expect := func(order, sent string, opens bool) {
		t.Helper()
		if got := r.answer(t, from[order]) == lab.Open; got != opens {
			t.Errorf("after %s of %s, port 22 is open: %v", sent, order, got)
		}
	}
	for _, tt := range all {
		from[tt.order] = r.freshAddr()
		first, _, waits := strings.Cut(tt.order, ".")
		r.client.KnockFrom(t, from[tt.order], r.addr(), repeatSequence(first)...)
		expect(tt.order, first, tt.opens || waits)
	}
	for _, tt := range all {
		if _, rest, waits := strings.Cut(tt.order, "."); waits {
			lab.Await(t, time.Minute, func() string { // a test cannot fake the kernel's clock
				if r.answer(t, from[tt.order]) == lab.Open {
					return "port 22 stays open"
				}
				return ""
			})
			r.client.KnockFrom(t, from[tt.order], r.addr(), repeatSequence(rest)...)
			expect(tt.order, rest, tt.opens)
		}
	}
	answered := map[netip.Addr]string{}
	for _, p := range capture.Packets(t) {
		for letter, s := range repeatSteps {
			if p.Out && p.Src.Port() == s.Port {
				answered[p.Dst.Addr()] += string(letter)
			}
		}
	}
	for _, tt := range all {
		want := strings.ReplaceAll(tt.order, ".", "")
		if consume {
			want = tt.answered
		}
		if got := answered[from[tt.order]]; got != want {
			t.Errorf("%s: the server answers %q, want %q", tt.order, got, want)
		}
	}
}

// overBadPath returns orders in which AABBCC and, 15 ms later, ABC arrive over a path that loses
// a third of the packets and delays the rest by up to 30 ms.
func overBadPath() (all []repeats) {
	random := rand.New(rand.NewPCG(15, 2))
	for range 40 { // a list of xt_recent holds 100 addresses
		arrivals := map[float64]string{}
		for i, letter := range "AABBCCABC" {
			if random.Float64() > 1./3 {
				sent := float64(i)/10 + float64(i/6)*15
				arrivals[sent+30*random.Float64()] = string(letter)
			}
		}
		order := ""
		for _, at := range slices.Sorted(maps.Keys(arrivals)) {
			order += arrivals[at]
		}
		all = append(all, follow(order))
	}
	return all
}

// follow returns what the rules for ABC must do with an order of A, B and C.
func follow(order string) repeats {
	result, stage := repeats{order: order}, 0
	for _, letter := range order {
		switch n := strings.IndexRune("ABC", letter); {
		case n == stage:
			stage++
		case n > stage: // a wrong knock
			result.answered += string(letter)
			stage = 0
		}
		result.opens = stage == 3
	}
	return result
}
