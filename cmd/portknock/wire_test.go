package main

import (
	"testing"
	"time"

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
