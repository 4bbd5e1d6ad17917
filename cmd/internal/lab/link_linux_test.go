package lab

import (
	"net/netip"
	"testing"
	"time"
)

func TestLinkedHostsReachAllAddresses(t *testing.T) {
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
			c.from.Dial(t, "tcp", addrPort(c.to, 80).String())
		}
	}
}

// BenchmarkLink measures how long two hosts and the link between them take to create.
func BenchmarkLink(b *testing.B) {
	for b.Loop() {
		Link(b, NewHost(b, "a"), NewHost(b, "b"))
	}
}
