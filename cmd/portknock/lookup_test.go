package main

import (
	"io"
	"os"
	"path/filepath"
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

// TestConfigsAreIndependent: one process looks up two profiles of the same name in
// two files, with options of their own.
func TestConfigsAreIndependent(t *testing.T) {
	a := &app{}
	for _, tt := range []struct {
		text    string
		options []string
		port    uint16
	}{
		{"Host vps\n    Port 1\n    Sequence 7001/udp\n", nil, 1},
		{"Host vps\n    Sequence 7001/udp\n", []string{"Port 2"}, 2},
	} {
		path := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &config{path: path, options: tt.options}
		if err := c.check(); err != nil {
			t.Fatal(err)
		}
		p, err := c.profile(t.Context(), a, "vps")
		if err != nil {
			t.Fatal(err)
		}
		if p.Port != tt.port {
			t.Errorf("port %d, want %d", p.Port, tt.port)
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

// TestPlainTimeout: a host without a profile has the ConnectTimeout of a profile
// that sets none.
func TestPlainTimeout(t *testing.T) {
	file, err := profile.Parse("file", []byte("Host vps\nSequence 7000\n"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := file.Lookup("vps"); err != nil || p.ConnectTimeout != plainTimeout {
		t.Errorf("got %+v, %v; want a ConnectTimeout of %v", p, err, plainTimeout)
	}
}
