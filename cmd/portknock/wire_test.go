package main

import (
	"testing"
	"time"

	"github.com/portknock/portknock/knock/profile"
)

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
