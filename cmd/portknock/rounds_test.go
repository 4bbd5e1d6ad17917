package main

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/proxy"
)

// TestOneLineForEachRound: with -v, each round of a target is one line with what has left and
// what has come back.
func TestOneLineForEachRound(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	log := logger{path: filepath.Join(t.TempDir(), "log")}
	if err := log.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	d, err := dialer(t.Context(), &profile.Profile{Name: "vps"}, nil, &log)
	if err != nil {
		t.Fatal(err)
	}
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:22"), netip.MustParseAddrPort("[2001:db8::1]:22")
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	done := d.watch(&log)
	for _, e := range []proxy.Event{
		{Kind: proxy.Resolved, Addrs: []netip.Addr{v6.Addr(), v4.Addr()}},
		{Kind: proxy.Knocked, At: 1, To: v6},
		{Kind: proxy.Dialing, At: 1, To: v6},
		{Kind: proxy.Knocked, At: 2, To: v4},
		{Kind: proxy.Dialing, At: 2, To: v4},
		{Kind: proxy.Unreachable, At: 150, To: v6, Round: 1, Err: errors.New("no route")},
		{Kind: proxy.Dialing, At: 160, To: v4, Round: 1},
		{Kind: proxy.Refused, At: 170, To: v4, Round: 0, Err: refused}, // the answer to round 0 is late
		{Kind: proxy.Knocked, At: 180, To: v4, Round: 1},
		{Kind: proxy.Dialing, At: 180, To: v4, Round: 1},
		{Kind: proxy.Dialing, At: 400, To: v4, Round: 2},
		{Kind: proxy.Connected, At: 440, To: v4, Round: 2},
		{Kind: proxy.Lost, At: 440, To: v6, Round: 0},
	} {
		e.At *= time.Millisecond
		d.Trace(e)
	}
	done()
	text, err := os.ReadFile(log.path)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(regexp.MustCompile(`[0-9.]+ ms: (?:resolved|round \d to ).*\n`).FindAllString(string(text), -1), "")
	head, last, _ := strings.Cut(got, "400.0 ms")
	if want := `0.0 ms: resolved: 2001:db8::1 192.0.2.1
1.0 ms: round 0 to [2001:db8::1]:22: knocked, SYN; no answer
2.0 ms: round 0 to 192.0.2.1:22: knocked, SYN; no answer
160.0 ms: round 1 to 192.0.2.1:22: SYN, knocked, SYN; refused after 10.0 ms: connection refused
`; !strings.HasPrefix(head, want) {
		t.Errorf("the lines are\n%swant\n%s", got, want)
	}
	// The order of the targets does not matter at the end.
	if !strings.Contains(head+last, "150.0 ms: round 1 to [2001:db8::1]:22: unreachable after 0.0 ms: no route\n") ||
		!strings.HasPrefix(last, ": round 2 to 192.0.2.1:22: SYN; connected after 40.0 ms\n") || strings.Count(got, "\n") != 6 {
		t.Errorf("the lines are\n%s", got)
	}
}
