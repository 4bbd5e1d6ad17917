package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// These tests are for rules with --trust.

// trustPolicies are the flags of the policies that the tests use.
var trustPolicies = [][]string{nil, {"--policy", "drop"}}

// trustedRange returns the first 256 of the client's further addresses as a prefix.
func (r *rig) trustedRange() string {
	bits := map[lab.Family]int{lab.IPv4: 24, lab.IPv6: 120}[r.family]
	return netip.PrefixFrom(r.client.Source(r.family, 0), bits).String()
}

// addLink gives the server a second interface, lan0, beside eth0. Only the client sends
// packets for its address there. Packets of other hosts for this address come in at eth0.
func (r *rig) addLink(t testing.TB) netip.Addr {
	t.Helper()
	lab.Require(t, "ping")
	const mac = "02:00:00:00:01:01"
	addr, ip, host := netip.MustParseAddr("198.51.100.1"), "ip", "/32"
	if r.family == lab.IPv6 {
		addr, ip, host = netip.MustParseAddr("2001:db8:77::1"), "ip -6", "/128 nodad"
	}
	r.server.Shell(t, fmt.Sprintf("ip link add link eth0 name lan0 address %s type macvlan mode bridge; ip link set lan0 up; %s addr add %v%s dev lan0",
		mac, ip, addr, host))
	r.client.Shell(t, fmt.Sprintf("%s route add %v dev eth0; %[1]s neigh replace %[2]v lladdr %s nud permanent dev eth0", ip, addr, mac))
	r.attacker.Shell(t, fmt.Sprintf("%s route add %v via %v", ip, addr, r.addr()))
	r.client.Run(t, "ping", "-c1", "-w10", addr.String()) // the link may lose packets at first
	return addr
}

// TestTrustedAddressesNeedNoKnock: trusted addresses connect without knocks, also through
// REDIRECT and DNAT. All other addresses stay out. With the drop policy, all other ports stay
// open to the trusted addresses too.
func TestTrustedAddressesNeedNoKnock(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, flags := range trustPolicies {
			t.Run(strings.Join(flags, " "), func(t *testing.T) {
				r := newRig(t, f, family, twoKnocks, "OpenPorts 22/tcp 22/udp")
				r.server.Listen(t, 8080)
				trusted, inRange := r.client.Addr(family), r.client.Source(family, 255)
				r.emitRules(t, append(flags, "--trust", trusted.String(), "--trust", r.trustedRange())...)
				r.redirect(t)
				r.runHeaderLine(t, "load")
				for _, port := range []uint16{22, 2222, 2223} {
					r.expectAnswer(t, "a trusted address", trusted, port, lab.Open)
					r.expectAnswer(t, "an address in a trusted range", inRange, port, lab.Open)
					r.expectAnswer(t, "an address after a trusted range", inRange.Next(), port, lab.Dropped)
				}
				r.expectPaths(t, "from another address", r.attacker, lab.Dropped, 22, 2222, 2223)
				others := lab.Open
				if flags != nil {
					others = lab.Dropped
				}
				r.expectAnswer(t, "a trusted address", trusted, 8080, lab.Open)
				r.expectAnswer(t, "an address in a trusted range", inRange, 8080, lab.Open)
				r.expectPort(t, r.attacker, 8080, others)

				service := lab.Socket(t, r.server, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":22") })
				local := r.server.Dial(t, "udp", "127.0.0.1:22")
				for _, from := range []*lab.Host{r.client, r.attacker} {
					for _, port := range []uint16{22, 2222, 2223} {
						from.Send(t, lab.Packet{Dst: r.port(port), Payload: fmt.Appendf(nil, "%s:%d", from.Name, port)})
					}
					from.Capture(t).Packets(t) // waits until the datagrams have arrived
				}
				if got := datagrams(t, service, local); got != "client:22 client:2222 client:2223" {
					t.Errorf("the service receives %q", got)
				}
			})
		}
	})
}

// TestTrustedInterfaceNeedsNoKnock: connections that arrive at a trusted interface need no
// knock. Connections of the same client at another interface do, and so do connections to an
// address of the trusted interface that arrive at another one.
func TestTrustedInterfaceNeedsNoKnock(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, flags := range trustPolicies {
			t.Run(strings.Join(flags, " "), func(t *testing.T) {
				r := newRig(t, f, family, twoKnocks)
				r.server.Listen(t, 8080)
				r.emitRules(t, append(flags, "--trust", "lan0,wg7")...)
				r.redirect(t)
				r.runHeaderLine(t, "load") // before the interface exists
				lan := r.addLink(t)
				expect := func(from *lab.Host, to netip.Addr, port uint16, want lab.State) {
					t.Helper()
					if got := from.Probe(t, netip.AddrPortFrom(to, port)); got != want {
						t.Errorf("port %d of %v is %v for the %s, want %v", port, to, got, from.Name, want)
					}
				}
				for _, port := range []uint16{22, 2222, 2223} {
					expect(r.client, lan, port, lab.Open)
					expect(r.client, r.addr(), port, lab.Dropped)
					expect(r.attacker, lan, port, lab.Dropped)
				}
				expect(r.client, lan, 8080, lab.Open)
				if flags != nil {
					expect(r.client, r.addr(), 8080, lab.Dropped)
				}
			})
		}
	})
}

// TestTrustIsForOneProfile: a source that one profile trusts does not get into the ports of
// another profile, in any order of the loads, and also by no redirect.
func TestTrustIsForOneProfile(t *testing.T) {
	eachOf(t, kernelFirewalls(), lab.Families, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, flags := range trustPolicies {
			for _, names := range [][]string{{"lan", "vps"}, {"vps", "lan"}} {
				t.Run(strings.Join(append(names, flags...), " "), func(t *testing.T) {
					r := newListeningRig(t, f, family)
					r.server.Listen(t, 8080)
					r.redirect(t)
					r.profile = r.vpsProfile(t, twoKnocks, "Host lan", "OpenPorts 8080", "Sequence 7011/udp 8013/tcp")
					for _, name := range names {
						args := append([]string{name}, flags...)
						if name == "lan" {
							args = append(args, "--trust", "eth0,"+r.client.Addr(family).String())
						}
						runHeaderLine(t, r.server, emitRulesFor(t, r.server, f, r.profile, args...), "load")
					}
					r.expectPaths(t, "at a trusted interface", r.attacker, lab.Open, 8080)
					r.expectPaths(t, "at a trusted interface", r.client, lab.Open, 8080)
					r.expectPaths(t, "at a trusted interface", r.client, lab.Dropped, 22, 2222, 2223)
					s := r.emitScript(t, r.profile, "--trust", "eth0", "lan")
					s.run(t, "trial")
					r.expectPaths(t, "during a trial", r.client, lab.Open, 8080)
					r.expectPaths(t, "during a trial", r.client, lab.Dropped, 22, 2222, 2223)
					s.run(t, "keep", "--force")
					r.expectPaths(t, "after keep", r.client, lab.Open, 8080)
					r.expectPaths(t, "after keep", r.client, lab.Dropped, 22, 2222, 2223)
					s.run(t, "unload")
					r.expectPaths(t, "after unload", r.client, lab.Dropped, 22, 2222, 2223)
				})
			}
		}
	})
}

// TestTrustedConnectionDoesNotProveTrial: keep wants a connection after knocks. Connections of
// trusted sources do not count, and keep says so. The trial and the kept rules trust the same
// sources.
func TestTrustedConnectionDoesNotProveTrial(t *testing.T) {
	eachOf(t, kernelFirewalls(), lab.Families, func(t *testing.T, f lab.Firewall, family lab.Family) {
		shell := dash
		if family == lab.IPv6 {
			shell = busybox(t)
		}
		for _, flags := range trustPolicies {
			t.Run(strings.Join(flags, " "), func(t *testing.T) {
				r := newListeningRig(t, f, family)
				r.redirect(t)
				r.profile = r.vpsProfile(t, newSettings()...)
				trusted := r.client.Source(family, 7)
				s := r.emitScript(t, r.profile, append(flags, "--trust=wg7,"+r.trustedRange())...).with(shell)
				const why = "connections from trusted sources do not prove that knocks work; log in from elsewhere, or run: "
				out := s.run(t, "trial")
				for _, want := range []string{
					"portknock: trusted interface wg7 does not exist now\n",
					"Connections from trusted sources do not count: wg7, " + r.trustedRange() + "\n",
				} {
					if !strings.Contains(out, want) {
						t.Errorf("trial prints %q, want %q", out, want)
					}
				}
				if out, err := s.try("keep"); err == nil || strings.Contains(out, why) {
					t.Errorf("without a connection, keep returns %v and prints %q", err, out)
				}
				r.expectAnswer(t, "a trusted address, during the trial", trusted, 2222, lab.Open)
				s.refused(t, why+"sh "+s.file+" keep --force", "keep")
				r.expectAnswer(t, "a trusted address, during the trial", trusted, 22, lab.Open)
				s.refused(t, why, "keep")
				if got := s.status(t, false).Profiles[0].Trial; got != "not proved" {
					t.Errorf("status says that the trial is %q", got)
				}
				r.expect(t, r.attacker, lab.Dropped)
				r.knockAndWait(t, r.attacker)
				s.run(t, "keep")
				r.expectAnswer(t, "a trusted address, after keep", trusted, 22, lab.Open)
				r.expect(t, r.client, lab.Dropped)
				s.run(t, "trial") // the rules have not changed
				s.run(t, "keep")
				r.expectAnswer(t, "a trusted address, after another trial", trusted, 22, lab.Open)
				changed := r.emitScript(t, r.profile, append(flags, "--trust=wg7")...).with(shell)
				changed.run(t, "trial")
				r.expectAnswer(t, "an address that the rules on trial do not trust", trusted, 22, lab.Dropped)
				changed.refused(t, "no new connection", "keep")
				changed.run(t, "cancel")
				r.expectAnswer(t, "a trusted address, after cancel", trusted, 22, lab.Open)
			})
		}
	})
}

// TestStatusShowsTrust: status lists the trusted sources, and counts their connections apart
// from those after knocks. A connection from a trusted source after its knocks counts as one
// after knocks.
func TestStatusShowsTrust(t *testing.T) {
	eachOf(t, kernelFirewalls(), lab.Families, func(t *testing.T, f lab.Firewall, family lab.Family) {
		shell := dash
		if family == lab.IPv6 {
			shell = busybox(t)
		}
		r := newListeningRig(t, f, family)
		r.profile = r.vpsProfile(t, newSettings()...)
		s := r.emitScript(t, r.profile, "--log", "--trust="+r.trustedRange()+",wg7").with(shell)
		s.run(t, "load")
		shows := func(count string) {
			t.Helper()
			want := "\ntrusted    wg7, " + r.trustedRange() + ": no knock needed; " + count + "\n"
			if out := s.run(t, "status"); !strings.Contains(out, want) || strings.Contains(out, "trusted: ") {
				t.Errorf("status prints %q, want %q", out, want)
			}
		}
		shows("0 connections")
		for range 3 {
			r.expectAnswer(t, "a trusted address", r.freshAddr(), 22, lab.Open)
		}
		shows("3 connections")
		if !r.admits(t, r.client.Addr(family), newKnocks...) {
			t.Error("the knocks do not open port 22")
		}
		p := s.status(t, true).Profiles[0]
		if strings.Join(p.Trusted, " ") != "wg7 "+r.trustedRange() || p.Counters["trusted"] != 3 || p.Counters["let_through"] != 1 {
			t.Errorf("status --json has %+v", p)
		}
		r.client.KnockFrom(t, r.client.Source(family, 99), r.addr(), newKnocks...)
		r.expectAnswer(t, "a trusted address, after knocks", r.client.Source(family, 99), 22, lab.Open)
		if c := s.status(t, true).Profiles[0].Counters; c["trusted"] != 3 || c["let_through"] != 2 {
			t.Errorf("after knocks from a trusted address, the counters are %v", c)
		}
		plain := r.emitScript(t, r.profile).with(shell)
		plain.run(t, "load")
		if out := plain.run(t, "status"); strings.Contains(out, "trusted") {
			t.Errorf("without trusted sources, status prints %q", out)
		}
		if p := plain.status(t, true).Profiles[0]; len(p.Trusted) != 0 {
			t.Errorf("without trusted sources, status --json has %+v", p)
		}
		r.expectAnswer(t, "an address that is not trusted any more", r.freshAddr(), 22, lab.Dropped)
	})
}

// TestPlainDropSparesTrustedSources: if the installed rules cannot be loaded, the plain drop
// still lets trusted sources through, although another profile guards the same port. The
// script does not mistake this drop for its rules.
func TestPlainDropSparesTrustedSources(t *testing.T) {
	eachOf(t, kernelFirewalls(), lab.Families, func(t *testing.T, f lab.Firewall, family lab.Family) {
		shell := dash
		if family == lab.IPv6 {
			shell = busybox(t)
		}
		r := newListeningRig(t, f, family)
		r.redirect(t)
		r.profile = r.vpsProfile(t, append(newSettings("OpenPorts 22/tcp 22/udp"), "Host web", "Sequence "+oldKnocks.String())...)
		lan := r.addLink(t)
		trusted := r.client.Source(family, 7)
		s := r.emitScript(t, r.profile, "--trust=lan0,"+r.trustedRange()).with(shell)
		check := func(when string) {
			t.Helper()
			for _, port := range []uint16{22, 2222, 2223} {
				r.expectAnswer(t, when+", a trusted address", trusted, port, lab.Open)
			}
			r.expectPaths(t, when, r.client, lab.Dropped, 22, 2222, 2223)
			r.expectPaths(t, when, r.attacker, lab.Dropped, 22, 2222, 2223)
			if got := r.client.Probe(t, netip.AddrPortFrom(lan, 22)); got != lab.Open {
				t.Errorf("%s, the port is %v at a trusted interface", when, got)
			}
		}
		s.call(t, "fw_close", "vps")
		check("after the plain drop")
		service := lab.Socket(t, r.server, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":22") })
		local := r.server.Dial(t, "udp", "127.0.0.1:22")
		for text, from := range map[string]netip.Addr{"trusted": trusted, "other": r.client.Addr(family)} {
			r.client.Send(t, lab.Packet{Src: netip.AddrPortFrom(from, 4000), Dst: r.port(22), Payload: []byte(text)})
		}
		r.client.Capture(t).Packets(t) // waits until the datagrams have arrived
		if got := datagrams(t, service, local); got != "trusted" {
			t.Errorf("after the plain drop, the service receives %q", got)
		}
		web := r.emitScript(t, r.profile, "web").with(shell)
		if others := web.status(t, false).Others; len(others) != 0 {
			t.Errorf("after the plain drop, the profiles in force are %q", others)
		}
		web.run(t, "load")
		check("after the load of another profile")
		s.run(t, "load")
		check("after a load")
		s.run(t, "unload")
		r.expectPaths(t, "after the unload", r.client, lab.Dropped, 22)
		r.expectAnswer(t, "a trusted address, after the unload", trusted, 22, lab.Dropped)
	})
}
