package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// These tests are of what else comes to a guarded server: packets for others, for
// services, and scans.

// TestPublishedPort guards a port that the server hands on to another host.
func TestPublishedPort(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp", "OpenPorts 22/tcp 2200-2222/tcp")
		r.Attacker.Listen(t, 80) // the host that it is handed on to
		r.Server.Shell(t, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
		proto := map[lab.Family]string{lab.IPv4: "ip", lab.IPv6: "ip6"}[family]
		r.Server.RunInput(t, strings.NewReader(fmt.Sprintf(`table %s published {
			chain in { type nat hook prerouting priority -100; tcp dport 2222 dnat to %s; }
			chain out { type nat hook postrouting priority 100; oif eth0 masquerade; }
		}`, proto, netip.AddrPortFrom(r.Attacker.Addr(family), 80))), "nft", "-f", "-")
		port := addrPort(r, 2222)
		if got := r.Client.Probe(t, port); got != lab.Open {
			t.Fatalf("without a guard the published port is %v", got)
		}
		header(t, r.Server, r.rules, "load")
		if got := r.Client.Probe(t, port); got != lab.Dropped {
			t.Errorf("guarded, the published port is %v", got)
		}
		r.ssh(t, "true")
		if got := r.Client.Probe(t, port); got != lab.Open {
			t.Errorf("after the knock the published port is %v", got)
		}
	})
}

// TestRoutedTraffic: a guard is about its own host. What the server hands on
// between others passes, to the same port, too.
func TestRoutedTraffic(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		r.Attacker.Listen(t, 22)
		r.Server.Shell(t, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
		beyond := r.Attacker.Source(family, 5)
		r.Client.Run(t, "ip", "route", "add", beyond.String(), "via", r.Server.Addr(family).String())
		header(t, r.Server, r.rules, "load")
		if got := r.Client.Probe(t, netip.AddrPortFrom(beyond, 22)); got != lab.Open {
			t.Errorf("port 22 of a host beyond the server is %v", got)
		}
		r.expect(t, r.Client, lab.Dropped)
	})
}

// TestKnockAtAService: a knock may go to a port where somebody answers. The
// client's kernel then ends the handshake by RST, which is not another knock.
func TestKnockAtAService(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp 9005/tcp 4000/udp")
		r.Server.Listen(t, 8003)
		header(t, r.Server, r.rules, "load")
		if got := r.ssh(t, "echo in"); got != "in\n" {
			t.Errorf("ssh prints %q", got)
		}
		if got := r.Attacker.Probe(t, addrPort(r, 8003)); got != lab.Open {
			t.Errorf("the service is %v for others", got)
		}
	})
}

// TestNoOracle: on a server that answers at closed ports, a scanner sees no
// difference between a knock port and any other, at any stage.
func TestNoOracle(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "nmap")
		r := newRig(t, f, family, "Sequence 7001/tcp 8003/udp 9005/tcp", "KnockTimeout 1m") // nmap takes its time
		header(t, r.Server, r.rules, "load")
		// Linux answers at a closed UDP port only so often.
		r.Server.Shell(t, "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
		sequence := knock.Sequence{{Port: 7001}, {Transport: knock.UDP, Port: 8003}, {Port: 9005}}
		for stage := range len(sequence) {
			for _, transport := range []struct {
				name, flag string
				ports      []string
			}{
				{"tcp", "-sS", []string{"7001", "9005", "7777"}},
				{"udp", "-sU", []string{"8003", "7777"}},
			} {
				for _, port := range transport.ports {
					r.Client.Knock(t, r.Server.Addr(family), sequence[:stage]...)
					args := []string{transport.flag, "-Pn", "-n", "--max-retries", "1", "-p", port, r.Server.Addr(family).String()}
					if family == lab.IPv6 {
						args = append(args, "-6")
					}
					out := r.Client.Run(t, "nmap", args...)
					if want := port + "/" + transport.name + " closed"; !strings.Contains(out, want) {
						t.Errorf("stage %d: nmap does not say %q:\n%s", stage, want, out)
					}
					r.Client.Knock(t, r.Server.Addr(family), knock.Step{Port: 1}) // back to the start
				}
			}
		}
	})
}

// TestNmapSweep has nmap itself scan all ports; it opens nothing.
func TestNmapSweep(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nmap")
	r := newRig(t, lab.Firewalls[0], lab.IPv4, "Sequence 7001/tcp 8003/tcp 9005/tcp")
	header(t, r.Server, r.rules, "load")
	out := r.Client.Run(t, "nmap", "-sS", "-Pn", "-n", "-T5", "-p-", r.Server.Addr(lab.IPv4).String())
	if !strings.Contains(out, "22/tcp filtered") || strings.Contains(out, "7001/tcp filtered") {
		t.Errorf("nmap says\n%s", out)
	}
	r.expect(t, r.Client, lab.Dropped)
}
