package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

// These tests reach a guarded port by other paths than its own number at an address of
// the server.

// redirect makes the server rewrite the ports of TCP and UDP, as an administrator would:
// 443, 2222 and 2224 become 22 by REDIRECT, and 2223 by DNAT. 8443 becomes 8080.
func (r *rig) redirect(t testing.TB) {
	t.Helper()
	table := map[lab.Family]string{lab.IPv4: "ip", lab.IPv6: "ip6"}[r.family]
	r.server.RunInput(t, strings.NewReader(fmt.Sprintf(`table %s paths {
		chain in { type nat hook prerouting priority -100
			meta l4proto { tcp, udp } th dport { 443, 2222, 2224 } redirect to :22
			meta l4proto { tcp, udp } th dport 8443 redirect to :8080
			meta l4proto { tcp, udp } th dport 2223 dnat to %s
		}
	}`, table, r.port(22))), "nft", "-f", "-")
}

// expectPaths checks the state of these ports for a host.
func (r *rig) expectPaths(t testing.TB, when string, from *lab.Host, want lab.State, ports ...uint16) {
	t.Helper()
	for _, port := range ports {
		if got := from.Probe(t, r.port(port)); got != want {
			t.Errorf("%s, port %d is %v for the %s, want %v", when, port, got, from.Name, want)
		}
	}
}

// routeByTable makes the addresses of a prefix local to the server, but only by another
// routing table. The attacker sends packets for these addresses to the server.
// routeByTable returns one of the addresses.
func (r *rig) routeByTable(t testing.TB) netip.Addr {
	t.Helper()
	ip, prefix := "ip", netip.MustParsePrefix("198.51.100.0/24")
	if r.family == lab.IPv6 {
		ip, prefix = "ip -6", netip.MustParsePrefix("2001:db8:77::/64")
	}
	r.server.Shell(t, fmt.Sprintf("%s rule add to %s lookup 777; %[1]s route add local %[2]s dev lo table 777", ip, prefix))
	r.attacker.Shell(t, fmt.Sprintf("%s route add %s via %s", ip, prefix, r.addr()))
	return prefix.Addr().Next()
}

// listenTransparently makes the server accept connections to a port at any address that
// the kernel delivers.
func listenTransparently(t testing.TB, h *lab.Host, family lab.Family, port uint16) {
	t.Helper()
	level, option, network := unix.SOL_IP, unix.IP_TRANSPARENT, "tcp4"
	if family == lab.IPv6 {
		level, option, network = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "tcp6"
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); e != nil {
			return e
		}
		return err
	}}
	lab.Socket(t, h, func() (net.Listener, error) {
		return config.Listen(context.Background(), network, fmt.Sprintf(":%d", port))
	})
}

// TestGuardCoversOtherPaths: the guard also closes a guarded port for connections that
// reach it from another port by REDIRECT or DNAT, and at addresses that are local by
// another routing table. After the knocks, these paths are open.
func TestGuardCoversOtherPaths(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, flags := range [][]string{nil, {"--policy", "drop"}} {
			t.Run(strings.Join(flags, " "), func(t *testing.T) {
				r := newRig(t, f, family, twoKnocks, "OpenPorts 22/tcp 22/udp 2200/tcp", "OpenFor 1m")
				r.emitRules(t, flags...)
				r.redirect(t)
				beyond := r.routeByTable(t)
				listenTransparently(t, r.server, family, 2200)
				expect := func(when string, from *lab.Host, want lab.State) {
					t.Helper()
					r.expectPaths(t, when, from, want, 22, 2222, 2223)
					syn := lab.Packet{Dst: netip.AddrPortFrom(beyond, 2200), Flags: lab.SYN}
					if got := from.ProbeAs(t, syn, nil); got != want {
						t.Errorf("%s, the port is %v for the %s at an address of another routing table, want %v", when, got, from.Name, want)
					}
				}
				service := lab.Socket(t, r.server, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":22") })
				local := r.server.Dial(t, "udp", "127.0.0.1:22")
				hears := func(from *lab.Host) string {
					t.Helper()
					for _, port := range []uint16{22, 2222, 2223} {
						from.Send(t, lab.Packet{Dst: r.port(port), Payload: fmt.Appendf(nil, "%d", port)})
					}
					from.Capture(t).Packets(t) // waits until the datagrams have arrived
					return datagrams(t, service, local)
				}

				expect("without a guard", r.client, lab.Open)
				if got := hears(r.client); got != "22 2222 2223" {
					t.Fatalf("without a guard, the service receives %q", got)
				}
				r.runHeaderLine(t, "load")
				expect("with a guard", r.client, lab.Dropped)
				if got := hears(r.client); got != "" {
					t.Errorf("with a guard, the service receives %q", got)
				}
				r.knockAndWait(t, r.client)
				expect("after the knocks of the client", r.client, lab.Open)
				if got := hears(r.client); got != "22 2222 2223" {
					t.Errorf("after the knocks, the service receives %q", got)
				}
				expect("after the knocks of the client", r.attacker, lab.Dropped)
			})
		}
	})
}

// TestGuardsOnBothSidesOfRedirect: one profile guards a port, and another one guards a
// port that is redirected to it. Each opens its own port only.
func TestGuardsOnBothSidesOfRedirect(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, flags := range [][]string{nil, {"--policy", "drop"}} {
			t.Run(strings.Join(flags, " "), func(t *testing.T) {
				r := newRig(t, f, family, twoKnocks)
				r.profile = lab.File(t, "config", "Host *", "HostName "+r.addr().String(), "OpenFor 1m",
					"Host inner", "OpenPorts 22", "Sequence 7001/udp 8003/tcp", "Host outer", "OpenPorts 2222", "Sequence 7011/udp 8013/tcp")
				r.redirect(t)
				loads := [][]string{{"inner"}, {"outer"}}
				if f.Async { // knockd reads one file
					loads = [][]string{{"inner", "outer"}}
				}
				for _, names := range loads {
					runHeaderLine(t, r.server, emitRulesFor(t, r.server, f, r.profile, append(names, flags...)...), "load")
				}
				r.expectPaths(t, "before the knocks", r.client, lab.Dropped, 22, 2222, 2223)
				r.client.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "outer", "2222")
				r.expectPaths(t, "after the knocks for 2222", r.client, lab.Open, 2222)
				r.expectPaths(t, "after the knocks for 2222", r.client, lab.Dropped, 22, 2223)
				r.attacker.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "inner", "22")
				r.expectPaths(t, "after the knocks for 22", r.attacker, lab.Open, 22, 2223)
				r.expectPaths(t, "after the knocks for 22", r.attacker, lab.Dropped, 2222)
			})
		}
	})
}

// TestForwardedKnocksAdmitOnlySender: knocks to a published address of the server admit at
// most their sender, although NAT leads these knocks to another host and gives them another
// source address. Knocks to other hosts that the server routes admit nobody.
func TestForwardedKnocksAdmitOnlySender(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenFor 5m")
		table := map[lab.Family]string{lab.IPv4: "ip", lab.IPv6: "ip6"}[family]
		published, host := r.server.Source(family, 1), r.attacker.Addr(family)
		r.server.Shell(t, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
		r.server.RunInput(t, strings.NewReader(fmt.Sprintf(`table %s published {
			chain in { type nat hook prerouting priority -100; %[1]s daddr %s dnat to %s; }
			chain out { type nat hook postrouting priority 100; oif eth0 masquerade; }
		}`, table, published, host)), "nft", "-f", "-")
		r.runHeaderLine(t, "load")
		knocks := sequence("7001/udp 8003/tcp")
		capture := r.attacker.Capture(t)
		for _, to := range []netip.Addr{r.attacker.Source(family, 5), published} {
			for _, s := range knocks {
				r.client.SendAs(t, lab.KnockPacket(netip.AddrPort{}, to, s), nil) // to the server, whatever the destination
			}
			forwarded := 0
			for _, p := range capture.Packets(t) {
				if !p.Out && p.Src.Addr() == r.addr() && (p.Dst.Port() == 7001 || p.Dst.Port() == 8003) {
					forwarded++
				}
			}
			if forwarded < len(knocks) {
				t.Errorf("the server forwards %d of the knocks to %v", forwarded, to)
			}
			r.expect(t, r.attacker, lab.Dropped)
			if to != published {
				r.expect(t, r.client, lab.Dropped)
			}
		}
	})
}

// TestPublicRedirectStaysOpen: a port of --public leads everyone to the guarded port. The
// guarded port itself and other redirects stay closed.
func TestPublicRedirectStaysOpen(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, flags := range [][]string{nil, {"--policy", "drop"}} {
			t.Run(strings.Join(flags, " "), func(t *testing.T) {
				r := newRig(t, f, family, twoKnocks)
				r.emitRules(t, append(flags, "--public", "443,2224/tcp")...)
				r.redirect(t)
				r.runHeaderLine(t, "load")
				r.knockAndWait(t, r.attacker) // now a daemon has started
				r.expectPaths(t, "before the knocks", r.client, lab.Open, 443, 2224)
				r.expectPaths(t, "before the knocks", r.client, lab.Dropped, 22, 2222, 2223)
			})
		}
	})
}

// TestTrialCoversOtherPaths: the copy of the rules that a trial loads covers redirects
// too. So do the rules that close the ports if the installed rules cannot be loaded.
func TestTrialCoversOtherPaths(t *testing.T) {
	eachOf(t, kernelFirewalls(), lab.Families, func(t *testing.T, f lab.Firewall, family lab.Family) {
		shell := dash
		if family == lab.IPv6 {
			shell = busybox(t)
		}
		r := newRig(t, f, family, twoKnocks, "OpenFor 1m")
		r.redirect(t)
		s := r.emitScript(t, r.profile).with(shell)
		r.expectPaths(t, "before the trial", r.client, lab.Open, 22, 2222, 2223)
		s.run(t, "trial")
		r.expectPaths(t, "in the trial", r.client, lab.Dropped, 22, 2222, 2223)
		r.knockAndWait(t, r.client)
		r.expectPaths(t, "in the trial, after the knocks", r.client, lab.Open, 22, 2222, 2223)
		s.run(t, "keep")
		r.expectPaths(t, "after the trial", r.client, lab.Open, 22, 2222, 2223)
		r.expectPaths(t, "after the trial", r.attacker, lab.Dropped, 22, 2222, 2223)
		s.run(t, "unload")
		r.expectPaths(t, "after the unload", r.attacker, lab.Open, 22, 2222, 2223)

		text := strings.Replace(lab.ReadFile(t, s.file), "\nmain \"$@\"", "\nstate=/run\nfw_close vps", 1)
		r.server.Run(t, shell[0], append(shell[1:], lab.File(t, "close", text))...)
		r.expectPaths(t, "without rules to load", r.attacker, lab.Dropped, 22, 2222, 2223)
		r.server.Run(t, "nft", "delete", "table", map[lab.Family]string{lab.IPv4: "ip", lab.IPv6: "ip6"}[family], "paths") // NAT makes the kernel join fragments
		syn := lab.Packet{Dst: r.port(22), Flags: lab.SYN}
		if got := r.attacker.ProbeAs(t, syn, lab.Fragments(8)); got != lab.Dropped {
			t.Errorf("without rules to load, the port is %v for a SYN in two fragments", got)
		}
		r.redirect(t)
		s.run(t, "load")
		r.knockAndWait(t, r.client)
		r.expectPaths(t, "after a load", r.client, lab.Open, 22, 2222, 2223)
	})
}
