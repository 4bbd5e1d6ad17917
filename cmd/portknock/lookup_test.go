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

func TestWarningBeforeAndAfterRulesExpire(t *testing.T) {
	now := time.Date(2027, 11, 1, 0, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	const (
		ends  = "the rules expire at %s; act"
		ended = "the rules expired at %s; act"
	)
	for _, tt := range []struct {
		end  time.Time
		text string // "" if a warning is not expected
	}{
		{time.Time{}, ""},
		{now.Add(expiryNear + 1), ""},
		{now.Add(expiryNear), ends},
		{now.Add(time.Second), ends},
		{now, ended},
		{now.Add(-400 * day), ended},
	} {
		want := strings.Replace(tt.text, "%s", tt.end.Format(time.RFC3339), 1)
		if got := expiryWarning(tt.end, now, expiryNear, "; act"); got != want {
			t.Errorf("rules that expire at %v:\ngot  %s\nwant %s", tt.end, got, want)
		}
	}
}

// TestConfigsAreIndependent: one process looks up profiles of the same name in two files,
// with other options for each file.
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
			t.Errorf("the profile has port %d, want %d", p.Port, tt.port)
		}
	}
}

// TestTimeoutIsBelowTenSeconds: portknock gives up before an ssh whose ConnectTimeout is
// 10 s. This holds with and without a profile.
func TestTimeoutIsBelowTenSeconds(t *testing.T) {
	f, err := profile.Parse("file", []byte("Host vps\n    Sequence 7001/udp 8003\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*profile.Profile{p, new(remote).withoutKnocks("vps")} {
		d, err := dialer(t.Context(), p, nil, &logger{})
		if err != nil {
			t.Fatal(err)
		}
		if d.Timeout != 9*time.Second {
			t.Errorf("scheme %q: the timeout is %v, want 9s", p.Scheme, d.Timeout)
		}
	}
}

// TestTooLargeProfileIsNotReadToItsEnd: portknock stops reading input that is too large to
// be a profile file.
func TestTooLargeProfileIsNotReadToItsEnd(t *testing.T) {
	endless, err := os.Create(filepath.Join(t.TempDir(), "endless"))
	if err != nil {
		t.Fatal(err)
	}
	defer endless.Close()
	if err := endless.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	a := &app{stdin: endless}
	if err := a.main(t.Context(), []string{"profile", "list", "-c", "-"}); err == nil || !strings.Contains(err.Error(), "-: the file is larger than") {
		t.Errorf("the error is %v, want one that says that the file is too large", err)
	}
	if read, err := endless.Seek(0, io.SeekCurrent); err != nil || read > 8<<20 {
		t.Errorf("%d bytes were read, error %v; want at most 8 MiB", read, err)
	}
}
