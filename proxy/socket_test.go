package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func listen(t *testing.T) (*net.TCPListener, netip.AddrPort) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

// pair returns both ends of a connection that Connect has made.
func pair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, addr := listen(t)
	accepted := make(chan *net.TCPConn, 1)
	go func() {
		c, _ := l.AcceptTCP()
		accepted <- c
	}()
	var d Dialer
	conn, err := d.Connect(t.Context(), addr.Addr().String(), addr.Port())
	if err != nil {
		t.Fatal(err)
	}
	client, server = conn.(*net.TCPConn), <-accepted
	if server == nil {
		t.Fatal("the listener did not accept the connection")
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestDialTCPUsesSourceAddress(t *testing.T) {
	_, addr := listen(t)
	conn, err := dialTCP(t.Context(), loopback, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != loopback {
		t.Errorf("local address %v, want 127.0.0.1", got)
	}
}

func TestDialTCPErrorKinds(t *testing.T) {
	l, addr := listen(t)
	l.Close()
	if _, err := dialTCP(t.Context(), netip.Addr{}, addr); !IsRefused(err) || isPermanent(err) || IsNoRoute(err) {
		t.Errorf("closed port: error %v, want only a refusal", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, test := range []struct {
		from, to string
		is       func(error) bool
	}{
		{"192.0.2.1", "127.0.0.1", IsNoRoute}, // this machine does not have the address
		{"::1", "127.0.0.1", isPermanent},     // the addresses are of two families
		{"", "fe80::1", isPermanent},          // the address has no zone
	} {
		from, _ := netip.ParseAddr(test.from)
		to := netip.AddrPortFrom(netip.MustParseAddr(test.to), addr.Port())
		if _, err := dialTCP(ctx, from, to); !test.is(err) {
			t.Errorf("from %q to %q: error %v is of the wrong kind", test.from, test.to, err)
		}
	}
}

// TestLaterSYNFindsOpenedPort: the port opens after the first knocks. A later SYN gets
// the connection.
func TestLaterSYNFindsOpenedPort(t *testing.T) {
	l, addr := listen(t)
	l.Close()
	var open sync.Once
	d := Dialer{
		Hedge:   20 * time.Millisecond,
		Timeout: 10 * time.Second,
		Knock:   func(context.Context, netip.Addr, netip.Addr, int) (Sent, error) { return Sent{}, nil },
		Trace: func(e Event) {
			if e.Kind == Refused {
				open.Do(func() {
					var err error
					if l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr)); err != nil {
						t.Error(err)
					}
				})
			}
		},
	}
	conn, err := d.Connect(t.Context(), "127.0.0.1", addr.Port())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	l.Close()
}

func TestWinnerClosesByFIN(t *testing.T) {
	client, server := pair(t)
	if _, err := client.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	client.Close()
	if got, err := io.ReadAll(server); string(got) != "last words" || err != nil {
		t.Errorf("the server got %q, error %v, want its data and no error", got, err)
	}
}

func TestLoserClosesByRST(t *testing.T) {
	l, addr := listen(t)
	conn, err := dialTCP(t.Context(), netip.Addr{}, addr)
	if err != nil {
		t.Fatal(err)
	}
	// With data to send, every system finishes the handshake.
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn.Close()
	if _, err := io.ReadAll(server); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the server read to the end, error %v, want a reset", err)
	}
}
