package knock

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
)

// pickerVector is an example of what a [Client] sends. Vectors never change, because other
// clients follow them.
type pickerVector struct {
	About   string
	Address string   // address of the client
	Tokens  int      // number of tokens in a window
	To      string   // address of the server; "" if it has only one
	Targets []string // all addresses of the server; none if it has only one
	Since   int64    // seconds since the start of the window
	Skew    int64    // skew in seconds
	Round   int
	Window  int // 0 for the current window, -1 for the previous window
	Index   int // index of the token in its window; -1 for no token
}

const pickerVectorFile = "../testdata/vectors/picker.json"

func pickerVectors(t *testing.T) (all []pickerVector) {
	t.Helper()
	text, err := os.ReadFile(pickerVectorFile)
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil || len(all) < 20 {
		t.Fatalf("got %d vectors, error %v; want at least 20", len(all), err)
	}
	return all
}

func TestClientMatchesVectors(t *testing.T) {
	start := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC)
	for _, v := range pickerVectors(t) {
		s := exampleToken(t)
		s.Tokens = v.Tokens
		want, _, err := s.At(start.Add(time.Duration(v.Window) * s.Period))
		if err != nil {
			t.Fatal(err)
		}
		c := Client{Schedule: s, Skew: time.Duration(v.Skew) * time.Second}
		to, _ := netip.ParseAddr(v.To)
		for _, target := range v.Targets {
			c.Targets = append(c.Targets, netip.MustParseAddr(target))
		}
		var send Sequence
		if v.Index >= 0 {
			send = want[v.Index]
		}
		got, err := c.Round(start.Add(time.Duration(v.Since)*time.Second), netip.MustParseAddr(v.Address), to, v.Round)
		if err != nil || got.Send.String() != send.String() {
			t.Errorf("%+v:\ngot the sequence %v, error %v", v, got.Send, err)
		}
	}
}

// TestPythonMatchesPickerVectors compares the Python in testdata/vectors with the vectors.
func TestPythonMatchesPickerVectors(t *testing.T) {
	var want []string
	for _, v := range pickerVectors(t) {
		want = append(want, fmt.Sprint(v.Window, " ", v.Index))
	}
	if got := pythonOutput(t, pickerVectorFile); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

// round returns round n of a client, from a fixed address at a fixed time.
func (c Client) round(t *testing.T, n int) Round {
	t.Helper()
	r, err := c.Round(time.Unix(0, 0), netip.MustParseAddr("192.0.2.7"), netip.Addr{}, n)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestEveryThirdRoundIsFast: the pauses of the other rounds grow, within limits.
func TestEveryThirdRoundIsFast(t *testing.T) {
	const ms, delay = time.Millisecond, 200 * time.Microsecond
	c := Client{KnockDelay: delay, KnockTimeout: 5 * time.Second}
	check := func(about string, n, knocks int, want time.Duration) {
		t.Helper()
		c.Schedule = make(Sequence, knocks)
		if got := c.round(t, n).Pause; got != want {
			t.Errorf("%s, round %d: pause %v, want %v", about, n, got, want)
		}
	}
	for n, want := range []time.Duration{delay, 10 * ms, 20 * ms, delay, 40 * ms, 80 * ms, delay, 133333333, 133333333, delay} {
		check("3 knocks", n, 3, want)
	}
	check("20 knocks", 10, 20, 20*ms)
	check("1 knock", 10, 1, 160*ms)
	c.KnockTimeout = 30 * ms
	check("KnockTimeout 30ms", 10, 3, 15*ms)
	c.KnockDelay = time.Second // a pause must not be shorter than the user asks for
	for n := range 6 {
		check("KnockDelay 1s", n, 3, time.Second)
	}
}

// TestEveryThirdRoundIsNotRepeated: Repeat may be wrong for the server, so each third round
// sends the knocks once.
func TestEveryThirdRoundIsNotRepeated(t *testing.T) {
	c := Client{Schedule: make(Sequence, 3), Repeat: true}
	for n, want := range []bool{true, true, false, true, true, false, true, true, false} {
		if got := c.round(t, n).Repeat; got != want {
			t.Errorf("round %d: Repeat is %v, want %v", n, got, want)
		}
	}
}

// TestRedialRounds: with Redial, the rounds of a client are those of the table. Sequences with
// one knock more and without it leave in fast and in slow rounds.
func TestRedialRounds(t *testing.T) {
	abc := Sequence{{Port: 1}, {Port: 2}, {Port: 3}}
	aabc := Sequence{{Port: 1}, {Port: 1}, {Port: 2}, {Port: 3}}
	const fast, slow1, slow2, slow3 = time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond
	c := Client{Schedule: abc, KnockDelay: fast, Redial: true}
	for n, want := range []Round{
		{Send: abc, Pause: fast}, {}, {},
		{Send: aabc, Pause: slow1}, {}, {Send: aabc, Pause: fast}, {}, {Send: abc, Pause: slow2}, {},
		{Send: aabc, Pause: fast}, {}, {Send: aabc, Pause: slow3}, {}, {Send: abc, Pause: fast}, {},
	} {
		if got := c.round(t, n); got.Send.String() != want.Send.String() || got.Pause != want.Pause || got.Repeat {
			t.Errorf("round %d: got %v, want %v", n, got, want)
		}
	}
	if abc.String() != "1/tcp 2/tcp 3/tcp" {
		t.Errorf("the schedule has become %v", abc)
	}
	c.Schedule = abc[:1]
	for n := range 9 {
		if got := len(c.round(t, n).Send); got > 1 {
			t.Errorf("a sequence of one knock, round %d: %d knocks, want at most 1", n, got)
		}
	}
}

// An address sends all tokens of a window, one after the other, and always begins with the
// same token. The two families begin with different tokens.
func TestTokenIndexPerAddress(t *testing.T) {
	first := map[int]bool{}
	for count := 1; count <= 9; count++ {
		tokens := Client{}.share(netip.Addr{}, count)
		for n := range byte(100) {
			v4, v6 := netip.AddrFrom4([4]byte{192, 0, 2, n}), netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: n})
			var all [2][]int
			for i, from := range []netip.Addr{v4, v6} {
				for attempt := range 2 * count {
					all[i] = append(all[i], tokenIndex(from, attempt, tokens))
				}
				if !slices.Equal(all[i][:count], all[i][count:]) {
					t.Fatalf("%d tokens: an address does not repeat its order of tokens: %v", count, all[i])
				}
				all[i] = all[i][:count]
			}
			for i := range count / 2 {
				if slices.Contains(all[1][:count/2], all[0][i]) {
					t.Errorf("%d tokens: IPv4 and IPv6 begin with the same tokens: %v", count, all)
				}
			}
			if count == 8 {
				first[all[0][0]] = true
			}
			for _, list := range all {
				slices.Sort(list)
				if list[0] != 0 || list[count-1] != count-1 || len(slices.Compact(list)) != count {
					t.Errorf("%d tokens: an address does not send each token once: %v", count, list)
				}
			}
		}
	}
	if len(first) != 4 {
		t.Errorf("100 IPv4 addresses begin only with the tokens %v, want 4 tokens", first)
	}
}

// TestTargetsShareNoToken: two addresses of a server never get the same token, in any round
// and in any order of the targets. Each gets as many tokens as the others, or one more. The
// targets of a family get only the tokens of this family, unless all targets belong to it.
func TestTargetsShareNoToken(t *testing.T) {
	now := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC) // within Skew after the start of a window
	v4, v6 := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	addr := func(from netip.Addr, n int) netip.Addr {
		b := from.AsSlice()
		b[len(b)-1] = byte(100 - n)
		to, _ := netip.AddrFromSlice(b)
		return to
	}
	for _, tt := range []struct{ tokens, v4, v6 int }{
		{8, 1, 0}, {8, 2, 0}, {8, 0, 3}, {8, 1, 1}, {8, 2, 2}, {8, 4, 4}, {8, 9, 0}, {7, 3, 2}, {1, 1, 1}, {1, 2, 0}, {64, 5, 6},
	} {
		var froms, targets []netip.Addr
		for n := range tt.v4 {
			froms, targets = append(froms, v4), append(targets, addr(v4, n))
		}
		for n := range tt.v6 {
			froms, targets = append(froms, v6), append(targets, addr(v6, n))
		}
		s := exampleToken(t)
		s.Tokens = tt.tokens
		owner := map[string]netip.Addr{}
		shares := map[bool][]int{}
		for i, to := range targets {
			var sent, other []string
			for n := range 4 * tt.tokens {
				c := Client{Schedule: s, Skew: time.Minute, Targets: targets}
				r, err := c.Round(now, froms[i], to, n)
				c.Targets = slices.Clone(targets)
				slices.Reverse(c.Targets)
				again, _ := c.Round(now, froms[i], to, n)
				if token := r.Send.String(); err != nil || again.Send.String() != token {
					t.Fatalf("%+v: error %v, or the token depends on the order of the targets", tt, err)
				} else if token != "" {
					sent = append(sent, token)
				} else {
					other = append(other, token)
				}
			}
			if len(sent) > 0 && len(other) > 0 {
				t.Errorf("%+v: target %v gets a token only in some rounds", tt, to)
			}
			slices.Sort(sent)
			sent = slices.Compact(sent)
			for _, token := range sent {
				if first, twice := owner[token]; twice {
					t.Errorf("%+v: targets %v and %v get the same token", tt, first, to)
				}
				owner[token] = to
			}
			shares[to.Is4()] = append(shares[to.Is4()], len(sent)/2) // of each of two windows
		}
		total := 0
		for ipv4, share := range shares {
			for _, n := range share {
				total += n
			}
			if slices.Max(share)-slices.Min(share) > 1 {
				t.Errorf("%+v: the targets have shares of %v tokens (IPv4: %v)", tt, share, ipv4)
			}
		}
		if total != tt.tokens {
			t.Errorf("%+v: the targets have %d tokens, want all", tt, total)
		}
	}
	// A sequence that is not a token can go to several targets.
	c := Client{Schedule: Sequence{{Port: 7001}}, Targets: []netip.Addr{addr(v4, 1), addr(v4, 2)}}
	for _, to := range c.Targets {
		if r, err := c.Round(now, v4, to, 0); err != nil || len(r.Send) != 1 {
			t.Errorf("target %v of a static sequence gets %v, %v", to, r.Send, err)
		}
	}
}

// For Skew after the start of a window, every other round sends a token of the previous
// window. Each round sends another token. The tokens of each window leave in fast and in
// slow rounds.
func TestPreviousWindowEveryOtherRound(t *testing.T) {
	s := exampleToken(t)
	c := Client{Schedule: s, Skew: 2 * time.Minute, KnockDelay: time.Microsecond}
	start := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC)
	tokens := func(now time.Time) (all []string) {
		seqs, _, err := s.At(now)
		if err != nil {
			t.Fatal(err)
		}
		for _, seq := range seqs {
			all = append(all, seq.String())
		}
		return all
	}
	current, previous := tokens(start), tokens(start.Add(-1))
	for _, tt := range []struct {
		since  time.Duration
		rounds [2][]string // possible tokens of even rounds, and of odd rounds
	}{
		{0, [2][]string{current, previous}},
		{119 * time.Second, [2][]string{current, previous}},
		{2 * time.Minute, [2][]string{current, current}},
		{time.Hour - 1, [2][]string{current, current}},
	} {
		seen := map[string]bool{}
		var fast, slow [2]int // numbers of even rounds, and of odd rounds
		for n := range 8 {
			r, err := c.Round(start.Add(tt.since), netip.MustParseAddr("192.0.2.7"), netip.Addr{}, n)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(tt.rounds[n%2], r.Send.String()) {
				t.Errorf("%v after the start, round %d sends a token of another window", tt.since, n)
			}
			if seen[r.Send.String()] {
				t.Errorf("%v after the start, round %d repeats a token", tt.since, n)
			}
			seen[r.Send.String()] = true
			if r.Pause == c.KnockDelay {
				fast[n%2]++
			} else {
				slow[n%2]++
			}
		}
		if fast != [2]int{2, 1} || slow != [2]int{2, 3} {
			t.Errorf("%d even and %d odd rounds are fast, %d and %d slow; want 2 and 1, 2 and 3", fast[0], fast[1], slow[0], slow[1])
		}
	}
}

// emptySchedule is a schedule without sequences.
type emptySchedule struct{}

func (emptySchedule) At(time.Time) ([]Sequence, Window, error) { return nil, Window{}, nil }

func TestClientReportsUnusableSchedules(t *testing.T) {
	for _, s := range []Schedule{emptySchedule{}, Token{}} {
		if r, err := (Client{Schedule: s}).Round(time.Now(), netip.Addr{}, netip.Addr{}, 0); err == nil || r.Send != nil {
			t.Errorf("schedule %T: got the round %v, error %v; want only an error", s, r, err)
		}
	}
}
