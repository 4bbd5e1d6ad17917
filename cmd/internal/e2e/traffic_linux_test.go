package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// These tests send other packets to a guarded server: packets for other hosts, and packets
// for services.

// TestGuardCoversPublishedPort: a guard protects a port that the server forwards to
// another host (DNAT).
func TestGuardCoversPublishedPort(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 22/tcp 2200-2222/tcp")
		r.attacker.Listen(t, 80) // the server forwards the port to this host
		r.server.Shell(t, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
		proto := map[lab.Family]string{lab.IPv4: "ip", lab.IPv6: "ip6"}[family]
		r.server.RunInput(t, strings.NewReader(fmt.Sprintf(`table %s published {
			chain in { type nat hook prerouting priority -100; tcp dport 2222 dnat to %s; }
			chain out { type nat hook postrouting priority 100; oif eth0 masquerade; }
		}`, proto, netip.AddrPortFrom(r.attacker.Addr(family), 80))), "nft", "-f", "-")
		port := r.port(2222)
		if got := r.client.Probe(t, port); got != lab.Open {
			t.Fatalf("without a guard the published port is %v", got)
		}
		r.runHeaderLine(t, "load")
		if got := r.client.Probe(t, port); got != lab.Dropped {
			t.Errorf("with a guard the published port is %v", got)
		}
		r.ssh(t, "true")
		if got := r.client.Probe(t, port); got != lab.Open {
			t.Errorf("after the knocks the published port is %v", got)
		}
	})
}

// TestRoutedTrafficPassesGuard: a guard protects only its own host. Packets that the
// server routes between other hosts pass the guard, even to the guarded port number.
func TestRoutedTrafficPassesGuard(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		r.attacker.Listen(t, 22)
		r.server.Shell(t, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
		beyond := r.attacker.Source(family, 5)
		r.client.Run(t, "ip", "route", "add", beyond.String(), "via", r.addr().String())
		r.runHeaderLine(t, "load")
		if got := r.client.Probe(t, netip.AddrPortFrom(beyond, 22)); got != lab.Open {
			t.Errorf("port 22 of a host behind the server is %v, want open", got)
		}
		r.expect(t, r.client, lab.Dropped)
	})
}

// TestKnockAtLiveServiceCounts: a knock may go to a port on which a service listens. The
// client's kernel then ends the handshake with a RST, and the guard does not count the RST
// as another knock.
func TestKnockAtLiveServiceCounts(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp 9005/tcp 4000/udp")
		r.server.Listen(t, 8003)
		r.runHeaderLine(t, "load")
		r.login(t)
		r.expectPort(t, r.attacker, 8003, lab.Open)
	})
}
