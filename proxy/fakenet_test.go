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

// fakeNet simulates a network for a Dialer. It must run inside a synctest bubble. Its
// clock starts with newFakeNet.
type fakeNet struct {
	t *testing.T
	// answer decides the result of SYN n to an address, counted from 0. After the
	// delay the SYN gets the error, or a connection if the error is nil. If the delay
	// is negative, the SYN never gets an answer.
	answer  func(to netip.Addr, n int) (time.Duration, error)
	noRoute []netip.Addr // knocks to these addresses cannot leave

	start   time.Time
	mu      sync.Mutex
	live    map[netip.Addr]int // number of sockets live now, for each address
	maxLive int                // largest number of sockets live at once to one address
	syns    map[netip.Addr]int // number of SYNs so far, for each address
	log     []string           // "0s knock 192.0.2.1 #0", "0s dial 192.0.2.1"
	conns   []*fakeConn        // all connections that SYNs have got
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

func (f *fakeNet) knock(_ context.Context, _, to netip.Addr, round int) (Sent, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.noRoute, to) {
		return Sent{}, errNoRoute
	}
	f.note("knock %v #%d", to, round)
	return Sent{}, nil
}

func (f *fakeNet) dial(ctx context.Context, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
	addr := to.Addr()
	f.mu.Lock()
	n := f.syns[addr]
	f.syns[addr]++
	f.live[addr]++
	f.maxLive = max(f.maxLive, f.live[addr])
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
	f.conns = append(f.conns, conn)
	f.mu.Unlock()
	return conn, nil
}

// meanPause is a Dialer.random that makes each pause last as long as its mean.
func meanPause(n time.Duration) time.Duration { return n / 2 }

// The functions change the pauses of a Dialer.
func meanPauses(d *Dialer)     { d.random = meanPause }
func shortestPauses(d *Dialer) { d.random = func(time.Duration) time.Duration { return 0 } }
func longestPauses(d *Dialer)  { d.random = func(n time.Duration) time.Duration { return n } }
func randomPauses(d *Dialer)   { d.random = nil }

// dialer returns a Dialer without random pauses.
func (f *fakeNet) dialer(addrs ...netip.Addr) *Dialer {
	return &Dialer{
		Resolve: func(context.Context, string) ([]netip.Addr, error) { return addrs, nil },
		Knock:   f.knock,
		Dial:    f.dial,
		Timeout: 10 * time.Second,
		random:  meanPause,
	}
}

// wantAllClosed fails the test if a socket is live, or if kept is not the only open
// connection. If kept is nil, all connections must be closed.
func (f *fakeNet) wantAllClosed(kept net.Conn) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for addr, n := range f.live {
		if n != 0 {
			f.t.Errorf("%d sockets to %v are live after Connect", n, addr)
		}
	}
	for _, c := range f.conns {
		if c.closed == (net.Conn(c) == kept) {
			f.t.Errorf("connection to %v: closed is %v, want the opposite", c.to, c.closed)
		}
	}
}

type fakeConn struct {
	net.Conn
	to     netip.AddrPort
	closed bool
}

func (c *fakeConn) Close() error { c.closed = true; return nil }

const noAnswer = time.Duration(-1) // the delay of a SYN that never gets an answer

// roundStarts returns when the rounds of the first two seconds begin if every SYN gets
// the error err after delay. The function set changes the Dialer.
func roundStarts(t *testing.T, set func(*Dialer), delay time.Duration, err error) (rounds []time.Duration) {
	t.Helper()
	f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return delay, err })
	d := f.dialer(v4)
	d.Timeout = 2 * time.Second
	set(d)
	d.Knock = func(context.Context, netip.Addr, netip.Addr, int) (Sent, error) {
		rounds = append(rounds, time.Since(f.start))
		return Sent{}, nil
	}
	_, _ = d.Connect(t.Context(), "vps", 22)
	return rounds
}
