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

// world is a network for a Dialer. It must run inside a synctest bubble, whose
// clock starts when the world does.
type world struct {
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

func newWorld(t *testing.T, answer func(netip.Addr, int) (time.Duration, error)) *world {
	return &world{
		t: t, answer: answer, start: time.Now(),
		live: make(map[netip.Addr]int), syns: make(map[netip.Addr]int),
	}
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprint(time.Since(w.start))+" "+fmt.Sprintf(format, args...))
}

func (w *world) knock(_ context.Context, _, to netip.Addr, round int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.Contains(w.noRoute, to) {
		return errNoRoute
	}
	w.note("knock %v #%d", to, round)
	return nil
}

func (w *world) dial(ctx context.Context, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
	addr := to.Addr()
	w.mu.Lock()
	n := w.syns[addr]
	w.syns[addr]++
	w.live[addr]++
	w.most = max(w.most, w.live[addr])
	w.note("dial %v", addr)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.live[addr]--
		w.mu.Unlock()
	}()

	delay, err := w.answer(addr, n)
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
	w.mu.Lock()
	w.won = append(w.won, conn)
	w.mu.Unlock()
	return conn, nil
}

func (w *world) dialer(addrs ...netip.Addr) *Dialer {
	return &Dialer{
		Resolve: func(context.Context, string) ([]netip.Addr, error) { return addrs, nil },
		Knock:   w.knock,
		Dial:    w.dial,
		Timeout: 10 * time.Second,
	}
}

// idle fails the test if a socket is left, or an open connection other than kept.
func (w *world) idle(kept net.Conn) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for addr, n := range w.live {
		if n != 0 {
			w.t.Errorf("%d sockets to %v are left", n, addr)
		}
	}
	for _, c := range w.won {
		if c.closed == (net.Conn(c) == kept) {
			w.t.Errorf("connection to %v: closed is %v", c.to, c.closed)
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
