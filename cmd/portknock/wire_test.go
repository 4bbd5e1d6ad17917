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
