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

// pickerVector is one example of what a [Client] sends. Vectors are fixed: other
// clients follow them.
type pickerVector struct {
	About   string
	Address string // of the client
	Tokens  int    // per window
	Since   int64  // seconds since the window's start
	Skew    int64  // seconds
	Round   int
	Window  int // 0, or -1 for the previous window
	Index   int // of the token
}

const pickerVectorFile = "../testdata/vectors/picker.json"

func pickerVectors(t *testing.T) (all []pickerVector) {
	t.Helper()
	text, err := os.ReadFile(pickerVectorFile)
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil || len(all) < 20 {
		t.Fatalf("%d vectors, %v", len(all), err)
	}
	return all
}

func TestPickerVectors(t *testing.T) {
	start := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC)
	for _, v := range pickerVectors(t) {
		s := token(t)
		s.Tokens = v.Tokens
		want, _, err := s.At(start.Add(time.Duration(v.Window) * s.Period))
		if err != nil {
			t.Fatal(err)
		}
		c := Client{Schedule: s, Skew: time.Duration(v.Skew) * time.Second}
		got, err := c.Round(start.Add(time.Duration(v.Since)*time.Second), netip.MustParseAddr(v.Address), netip.Addr{}, v.Round)
		if err != nil || got.Send.String() != want[v.Index].String() {
			t.Errorf("%+v:\ngot %v, %v", v, got.Send, err)
		}
	}
}

// TestPickerReference compares the Python in testdata/vectors with the vectors.
func TestPickerReference(t *testing.T) {
	var want []string
	for _, v := range pickerVectors(t) {
		want = append(want, fmt.Sprint(v.Window, " ", v.Index))
	}
	if got := reference(t, pickerVectorFile); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func TestPauseGrowsWithinLimits(t *testing.T) {
	const ms = time.Millisecond
	c := Client{KnockDelay: 200 * time.Microsecond, KnockTimeout: 5 * time.Second}
	for n, want := range []time.Duration{200 * time.Microsecond, 10 * ms, 20 * ms, 40 * ms, 80 * ms, 133333333, 133333333} {
		if got := c.pause(n, 3); got != want {
			t.Errorf("round %d: %v, want %v", n, got, want)
		}
	}
	if got := c.pause(9, 20); got != 20*ms {
		t.Errorf("20 knocks: %v", got)
	}
	c.KnockTimeout = 30 * ms
	if got := c.pause(9, 3); got != 15*ms {
		t.Errorf("with a short KnockTimeout: %v", got)
	}
	c.KnockDelay = time.Second // never less than the user asks for
	if got := c.pause(0, 3); got != time.Second {
		t.Errorf("first round: %v", got)
	}
	if got := c.pause(3, 3); got != time.Second {
		t.Errorf("later round: %v", got)
	}
}

// TestTokenIndexPerAddress: an address sends one token after the other, all there
// are, and always begins with the same one. The other family begins with others.
func TestTokenIndexPerAddress(t *testing.T) {
	first := map[int]bool{}
	for count := 1; count <= 9; count++ {
		for n := range byte(100) {
			v4, v6 := netip.AddrFrom4([4]byte{192, 0, 2, n}), netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: n})
			var all [2][]int
			for i, from := range []netip.Addr{v4, v6} {
				for turn := range 2 * count {
					all[i] = append(all[i], tokenIndex(from, turn, count))
				}
				if !slices.Equal(all[i][:count], all[i][count:]) {
					t.Fatalf("%d tokens, not a cycle: %v", count, all[i])
				}
				all[i] = all[i][:count]
			}
			for i := range count / 2 {
				if slices.Contains(all[1][:count/2], all[0][i]) {
					t.Errorf("%d tokens, the families share: %v", count, all)
				}
			}
			if count == 8 {
				first[all[0][0]] = true
			}
			for _, list := range all {
				slices.Sort(list)
				if list[0] != 0 || list[count-1] != count-1 || len(slices.Compact(list)) != count {
					t.Errorf("%d tokens, not all: %v", count, list)
				}
			}
		}
	}
	if len(first) != 4 {
		t.Errorf("addresses begin with %v only", first)
	}
}

// TestPreviousWindowEveryOtherRound: within Skew of a window's start, every other
// round is of the previous window, and each round sends another token.
func TestPreviousWindowEveryOtherRound(t *testing.T) {
	s := token(t)
	c := Client{Schedule: s, Skew: 2 * time.Minute}
	start := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC)
	tokens := func(at time.Time) (all []string) {
		seqs, _, err := s.At(at)
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
		rounds [2][]string // even and odd ones
	}{
		{0, [2][]string{current, previous}},
		{119 * time.Second, [2][]string{current, previous}},
		{2 * time.Minute, [2][]string{current, current}},
		{time.Hour - 1, [2][]string{current, current}},
	} {
		seen := map[string]bool{}
		for n := range 8 {
			r, err := c.Round(start.Add(tt.since), netip.MustParseAddr("192.0.2.7"), netip.Addr{}, n)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(tt.rounds[n%2], r.Send.String()) {
				t.Errorf("%v after the start, round %d is of another window", tt.since, n)
			}
			if seen[r.Send.String()] {
				t.Errorf("%v after the start, round %d repeats a token", tt.since, n)
			}
			seen[r.Send.String()] = true
		}
	}
}

// nothing is a schedule without sequences.
type nothing struct{}

func (nothing) At(time.Time) ([]Sequence, Window, error) { return nil, Window{}, nil }

func TestClientErrors(t *testing.T) {
	for _, s := range []Schedule{nothing{}, Token{}} {
		if r, err := (Client{Schedule: s}).Round(time.Now(), netip.Addr{}, netip.Addr{}, 0); err == nil || r.Send != nil {
			t.Errorf("%T: %v, %v", s, r, err)
		}
	}
}
