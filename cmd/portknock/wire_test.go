package main

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
)

func TestEndOfRules(t *testing.T) {
	now := time.Date(2027, 11, 1, 0, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for _, tt := range []struct {
		end  time.Time
		want string
	}{
		{time.Time{}, ""},
		{now.Add(endNear + 1), ""},
		{now.Add(endNear), "the server's rules end at 2027-11-15T00:00:00Z: emit new ones, load them, and set the new ValidUntil before that"},
		{now.Add(time.Second), "the server's rules end at 2027-11-01T00:00:01Z: emit new ones, load them, and set the new ValidUntil before that"},
		{now, "the server's rules have ended at 2027-11-01T00:00:00Z: emit new ones, load them, and set the new ValidUntil"},
		{now.Add(-400 * day), "the server's rules have ended at 2026-09-27T00:00:00Z: emit new ones, load them, and set the new ValidUntil"},
	} {
		if got := endOfRules(tt.end, now); got != tt.want {
			t.Errorf("%v:\ngot  %s\nwant %s", tt.end, got, tt.want)
		}
	}
}

// TestConnectTimeout: with a profile and without, portknock gives up before an ssh
// whose ConnectTimeout is 10 s.
func TestConnectTimeout(t *testing.T) {
	f, err := profile.Parse("file", []byte("Host vps\n    Sequence 7001/udp 8003\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	a := &app{}
	d, err := a.dialer(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if plain := a.plainDialer(); d.Timeout != 9*time.Second || plain.Timeout != d.Timeout {
		t.Errorf("%v with a profile, %v without", d.Timeout, plain.Timeout)
	}
}

func TestPause(t *testing.T) {
	k := &knocker{Profile: &profile.Profile{KnockDelay: 200 * time.Microsecond, KnockTimeout: 5 * time.Second}}
	const ms = time.Millisecond
	for round, want := range []time.Duration{200 * time.Microsecond, 10 * ms, 20 * ms, 40 * ms, 80 * ms, 133333333, 133333333} {
		if got := k.pause(round, 3); got != want {
			t.Errorf("round %d: %v, want %v", round, got, want)
		}
	}
	if got := k.pause(9, 20); got != 20*ms {
		t.Errorf("of 20 knocks: %v", got)
	}
	k.KnockTimeout = 30 * ms // what the server allows bounds it
	if got := k.pause(9, 3); got != 15*ms {
		t.Errorf("with a short KnockTimeout: %v", got)
	}
	k.KnockDelay = time.Second // what the user asks for, never less
	if got := k.pause(0, 3); got != time.Second {
		t.Errorf("first round: %v", got)
	}
	if got := k.pause(3, 3); got != time.Second {
		t.Errorf("later round: %v", got)
	}
}

// An address takes one token after the other, all there are, always beginning
// with the same; the other family begins with others.
func TestChoice(t *testing.T) {
	first := map[int]bool{}
	for of := 1; of <= 9; of++ {
		for n := range byte(100) {
			v4, v6 := netip.AddrFrom4([4]byte{192, 0, 2, n}), netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: n})
			var all [2][]int
			for i, from := range []netip.Addr{v4, v6} {
				for round := range 2 * of {
					all[i] = append(all[i], choice(from, round, of))
				}
				if !slices.Equal(all[i][:of], all[i][of:]) {
					t.Fatalf("of %d, not a cycle: %v", of, all[i])
				}
				all[i] = all[i][:of]
			}
			for i := range of / 2 {
				if slices.Contains(all[1][:of/2], all[0][i]) {
					t.Errorf("of %d, the families share: %v", of, all)
				}
			}
			if of == 8 {
				first[all[0][0]] = true
			}
			for _, list := range all {
				slices.Sort(list)
				if list[0] != 0 || list[of-1] != of-1 || len(slices.Compact(list)) != of {
					t.Errorf("of %d, not all: %v", of, list)
				}
			}
		}
	}
	if len(first) != 4 {
		t.Errorf("addresses begin with %v only", first)
	}
}

// TestTurns: within Skew of a window's start the window before has every other
// round, and each round of a window another token.
func TestTurns(t *testing.T) {
	s := knock.Token{Key: knock.NewKey(), Port: 62202, Period: time.Hour, Tokens: 8}
	k := &knocker{Profile: &profile.Profile{Skew: 2 * time.Minute}, schedule: s}
	start := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC)
	from := netip.MustParseAddr("192.0.2.7")
	of := func(at time.Time) (tokens []string) {
		seqs, _, err := s.At(at)
		if err != nil {
			t.Fatal(err)
		}
		for _, seq := range seqs {
			tokens = append(tokens, seq.String())
		}
		return tokens
	}
	now, before := of(start), of(start.Add(-1))
	for _, tt := range []struct {
		after time.Duration
		turns [][]string
	}{
		{0, [][]string{now, before}},
		{119 * time.Second, [][]string{now, before}},
		{2 * time.Minute, [][]string{now, now}},
		{time.Hour - 1, [][]string{now, now}},
	} {
		seen := map[string]bool{}
		for round := range 8 {
			seq, err := k.sequence(from, start.Add(tt.after), round)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(tt.turns[round%2], seq.String()) {
				t.Errorf("%v after the start, round %d is of another window", tt.after, round)
			}
			if seen[seq.String()] {
				t.Errorf("%v after the start, round %d repeats a token", tt.after, round)
			}
			seen[seq.String()] = true
		}
	}
}
