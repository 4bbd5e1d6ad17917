package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

var (
	v4   = netip.MustParseAddr("192.0.2.1")
	v6   = netip.MustParseAddr("2001:db8::1")
	home = netip.MustParseAddr("198.51.100.7")

	errRefused = os.NewSyscallError("connect", errnosRefused[0])
	errNoRoute = os.NewSyscallError("connect", errnosUnreachable[0])
)

const ms = time.Millisecond

// fakeNet is a network for a Dialer. It must run inside a synctest bubble, whose
// clock starts with the fakeNet.
type fakeNet struct {
	t *testing.T
	// answer says what becomes of the n-th SYN to an address: a connection if
	// the error is nil, after the delay; silence if it is negative.
	answer  func(to netip.Addr, n int) (time.Duration, error)
	noRoute []netip.Addr // knocks to these addresses cannot leave

	start time.Time
	mu    sync.Mutex
	live  map[netip.Addr]int
	most  int // sockets live at once to one address
	syns  map[netip.Addr]int
	log   []string // "0s knock 192.0.2.1 #0", "0s dial 192.0.2.1"
	won   []*fakeConn
}

func newFakeNet(t *testing.T, answer func(netip.Addr, int) (time.Duration, error)) *fakeNet {
	return &fakeNet{
		t: t, answer: answer, start: time.Now(),
		live: make(map[netip.Addr]int), syns: make(map[netip.Addr]int),
	}
}

func (f *fakeNet) note(format string, args ...any) {
	f.log = append(f.log, fmt.Sprint(time.Since(f.start))+" "+fmt.Sprintf(format, args...))
}

func (f *fakeNet) knock(_ context.Context, _, to netip.Addr, round int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.noRoute, to) {
		return errNoRoute
	}
	f.note("knock %v #%d", to, round)
	return nil
}

func (f *fakeNet) dial(ctx context.Context, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
	addr := to.Addr()
	f.mu.Lock()
	n := f.syns[addr]
	f.syns[addr]++
	f.live[addr]++
	f.most = max(f.most, f.live[addr])
	f.note("dial %v", addr)
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.live[addr]--
		f.mu.Unlock()
	}()

	delay, err := f.answer(addr, n)
	if delay < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	conn := &fakeConn{to: to}
	f.mu.Lock()
	f.won = append(f.won, conn)
	f.mu.Unlock()
	return conn, nil
}

func (f *fakeNet) dialer(addrs ...netip.Addr) *Dialer {
	return &Dialer{
		Resolve: func(context.Context, string) ([]netip.Addr, error) { return addrs, nil },
		Knock:   f.knock,
		Dial:    f.dial,
		Timeout: 10 * time.Second,
	}
}

// idle fails the test if a socket is left, or an open connection other than kept.
func (f *fakeNet) idle(kept net.Conn) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for addr, n := range f.live {
		if n != 0 {
			f.t.Errorf("%d sockets to %v are left", n, addr)
		}
	}
	for _, c := range f.won {
		if c.closed == (net.Conn(c) == kept) {
			f.t.Errorf("connection to %v: closed is %v", c.to, c.closed)
		}
	}
}

type fakeConn struct {
	net.Conn
	to     netip.AddrPort
	closed bool
}

func (c *fakeConn) Close() error { c.closed = true; return nil }

const never = time.Duration(-1)

// roundsOf returns when the rounds of two seconds begin if every SYN gets an error
// after the delay.
func roundsOf(t *testing.T, delay time.Duration, err error) (rounds []time.Duration) {
	t.Helper()
	f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return delay, err })
	d := f.dialer(v4)
	d.Timeout = 2 * time.Second
	d.Knock = func(context.Context, netip.Addr, netip.Addr, int) error {
		rounds = append(rounds, time.Since(f.start))
		return nil
	}
	_, _ = d.Connect(t.Context(), "vps", 22)
	return rounds
}
