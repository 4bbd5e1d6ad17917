package lab

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

func TestPortsAreOpenRefusedOrDropped(t *testing.T) {
	t.Parallel()
	Require(t, "nft")
	n := New(t)
	n.Server.Listen(t, 22)
	n.Server.Listen(t, 2222)
	n.Server.Run(t, "nft", `add table inet f; add chain inet f c { type filter hook prerouting priority mangle; };
		add rule inet f c ct state invalid drop; add rule inet f c tcp dport { 2222, 2223 } drop`)
	for _, f := range Families {
		for p, want := range map[uint16]State{22: Open, 23: Refused, 2222: Dropped, 2223: Dropped} {
			for _, from := range []netip.Addr{n.Client.Addr(f), n.Client.Source(f, 7), n.Client.Source(f, 65535)} {
				if got := n.Client.ProbeFrom(t, from, port(n.Server.Addr(f), p)); got != want {
					t.Errorf("%v port %d from %v: %v, want %v", f, p, from, got, want)
				}
			}
		}
	}
}

func TestSweepArrivesWholeAndInOrder(t *testing.T) {
	t.Parallel()
	n := New(t)
	for _, f := range Families {
		c := n.Server.Capture(t)
		start := time.Now()
		n.Client.Sweep(t, n.Server.Addr(f), 0, Ascending)
		took := time.Since(start)
		next := uint16(1)
		for _, p := range c.Packets(t) {
			if p.Out || p.Proto != unix.IPPROTO_TCP {
				continue
			}
			if p.Dst.Port() != next || p.Flags != SYN {
				t.Fatalf("%v: got %v, want port %d", f, p, next)
			}
			next++
		}
		if next != 0 {
			t.Errorf("%v: the sweep ended at %d", f, next-1)
		}
		t.Logf("%v: 65535 SYNs in %v", f, took)
	}
}

func TestHostsSeeEachOther(t *testing.T) {
	t.Parallel()
	start := time.Now()
	a, b := NewHost(t, "a"), NewHost(t, "b")
	Link(t, a, b)
	t.Logf("two hosts and a link in %v", time.Since(start))
	start = time.Now()
	n := New(t)
	t.Logf("a network in %v", time.Since(start))
	b.Listen(t, 80)
	n.Server.Listen(t, 80)
	for _, f := range Families {
		for _, c := range []struct {
			from *Host
			to   netip.Addr
		}{{a, b.Addr(f)}, {a, b.Source(f, 3)}, {n.Client, n.Server.Addr(f)}, {n.Attacker, n.Server.Source(f, 9)}} {
			var conn net.Conn
			var err error
			c.from.Do(func() { conn, err = net.DialTimeout("tcp", port(c.to, 80).String(), limit) })
			if err != nil {
				t.Errorf("%s: %v", c.from.Name, err)
				continue
			}
			_ = conn.Close()
		}
	}
}
