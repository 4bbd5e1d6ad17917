package main

import (
	"io"
	"strings"
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
	d, err := dialer(t.Context(), p, &logger{})
	if err != nil {
		t.Fatal(err)
	}
	if plain := new(remote).plainDialer(&logger{}); d.Timeout != 9*time.Second || plain.Timeout != d.Timeout {
		t.Errorf("%v with a profile, %v without", d.Timeout, plain.Timeout)
	}
}

// TestEndlessInput: what is too large to be a profile file is not read to its end.
func TestEndlessInput(t *testing.T) {
	endless := &io.LimitedReader{R: newlines{}, N: 1 << 30}
	a := &app{stdin: endless, stdout: io.Discard}
	if err := a.main(t.Context(), []string{"profile", "list", "-c", "-"}); err == nil || !strings.Contains(err.Error(), "-: larger than") {
		t.Errorf("got %v", err)
	}
	if read := 1<<30 - endless.N; read > 8<<20 {
		t.Errorf("%d bytes were read", read)
	}
}

type newlines struct{}

func (newlines) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '\n'
	}
	return len(b), nil
}
