package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

// TestDropPolicyDropsAllButAllowedTraffic: --policy drop closes all other ports. It lets
// through pings, connections to the ports of --allow, sessions that the server began, and
// ssh after the knocks.
func TestDropPolicyDropsAllButAllowedTraffic(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "ping")
		r := newRig(t, f, family, twoKnocks)
		r.server.Listen(t, 80)
		r.server.Listen(t, 8080)
		r.emitRules(t, "--policy", "drop", "--allow", "80")
		before := r.ruleset(t)
		idle := r.openEcho(t, "direct")
		speak := make(chan bool)
		r.client.Serve(t, 8080, func(c net.Conn) {
			<-speak
			_, _ = io.WriteString(c, "news")
		})
		out := r.server.Dial(t, "tcp", netip.AddrPortFrom(r.client.Addr(family), 8080).String())
		r.runHeaderLine(t, "load")
		close(speak)
		_ = out.SetReadDeadline(time.Now().Add(20 * time.Second))
		if got, err := io.ReadAll(out); string(got) != "news" {
			t.Errorf("a session that the server began receives %q, %v, want news", got, err)
		}
		r.knockAndWait(t, r.attacker) // now a daemon has started
		r.runHeaderLine(t, "load")
		idle.say(t, "before the first load")
		for port, want := range map[uint16]lab.State{80: lab.Open, 8080: lab.Dropped, 22: lab.Dropped, 1: lab.Dropped} {
			r.expectPort(t, r.client, port, want)
		}
		r.ssh(t, "true")
		r.client.Run(t, "ping", "-c1", "-W5", r.addr().String())
		r.runHeaderLine(t, "unload")
		r.expectPort(t, r.client, 8080, lab.Open)
		r.expectRuleset(t, before)
	})
}

// TestReloadWithoutDropPolicyReopensOtherPorts: rules without the drop policy replace
// rules with the drop policy, and open the other ports again. The unload of rules without
// the drop policy also removes rules that have the drop policy.
func TestReloadWithoutDropPolicyReopensOtherPorts(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		r.server.Listen(t, 8080)
		dropping := emitRules(t, r.server, f, r.profile, "--policy", "drop")
		before := r.ruleset(t)
		for _, then := range []string{"load", "unload"} {
			runHeaderLine(t, r.server, dropping, "load")
			r.expectPort(t, r.client, 8080, lab.Dropped)
			r.runHeaderLine(t, then)
			r.expectPort(t, r.client, 8080, lab.Open)
			if then == "load" {
				r.expect(t, r.client, lab.Dropped)
			}
		}
		r.expectRuleset(t, before)
	})
}

// TestDropPolicyKeepsIdleSessions: a session to an allowed port continues if it was idle
// while the server loaded the rules. The server did not track connections before the
// load.
func TestDropPolicyKeepsIdleSessions(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 8080")
		r.emitRules(t, "--policy", "drop", "--allow", "22")
		idle := r.openEcho(t, "direct")
		r.awaitAllAcknowledged(t)
		r.runHeaderLine(t, "load")
		idle.say(t, "after the load")
	})
}

// TestDropPolicyPassesOtherProtocols: --policy drop closes TCP and UDP. Packets of all
// other protocols pass as without a guard, such as those of routers and tunnels.
func TestDropPolicyPassesOtherProtocols(t *testing.T) {
	const vrrp, ospf = 112, 89 // the IP protocols that package unix does not name
	type sent struct {
		name  string
		proto int
		as    lab.Reshape
	}
	content := func(name string, proto int, bytes ...byte) sent {
		return sent{name, proto, lab.Content(uint8(proto), bytes...)}
	}
	// The authentication header of IPv6 is an extension header. 59 means that nothing follows.
	protocols := []sent{
		content("VRRP", vrrp, 0x31, 1, 100, 1, 0, 100, 0, 0, 192, 0, 2, 9),
		content("OSPF", ospf, append([]byte{2, 1, 0, 44, 192, 0, 2, 9}, make([]byte, 36)...)...),
		content("ESP", unix.IPPROTO_ESP, append([]byte{0, 0, 1, 0, 0, 0, 0, 1}, make([]byte, 32)...)...),
		content("AH", unix.IPPROTO_AH, append([]byte{59, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, make([]byte, 12)...)...),
		content("SCTP", unix.IPPROTO_SCTP, append([]byte{0, 22, 0, 22, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20}, make([]byte, 16)...)...),
		content("UDP-Lite", unix.IPPROTO_UDPLITE, 0, 22, 0, 22, 0, 8, 0, 0),
		{"GRE", unix.IPPROTO_GRE, lab.Inside(unix.IPPROTO_GRE, 0, 0, 8, 0)},
		{"IPIP", unix.IPPROTO_IPIP, lab.Inside(unix.IPPROTO_IPIP)},
		{"6in4", unix.IPPROTO_IPV6, lab.Inside(unix.IPPROTO_IPV6)},
	}
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "nft")
		r := newRig(t, f, family, twoKnocks)
		r.emitRules(t, "--policy", "drop")
		r.runHeaderLine(t, "load")
		table, field, all := "ip", "ip protocol", protocols
		if family == lab.IPv6 {
			table, field = "ip6", "ip6 nexthdr"
		} else {
			all = append(all[:len(all):len(all)], content("IGMP", unix.IPPROTO_IGMP, 0x11, 0, 0xee, 0xff, 0, 0, 0, 0))
		}
		var counters strings.Builder
		for _, p := range append(all, sent{proto: unix.IPPROTO_UDP}) {
			fmt.Fprintf(&counters, "counter p%d { }\n", p.proto)
		}
		// This chain comes after the chains of the drop policy.
		counters.WriteString("chain in { type filter hook input priority 10;\n")
		for _, p := range append(all, sent{proto: unix.IPPROTO_UDP}) {
			fmt.Fprintf(&counters, "%s %d counter name p%d\n", field, p.proto, p.proto)
		}
		r.server.RunInput(t, strings.NewReader("table "+table+" seen {\n"+counters.String()+"}\n}"), "nft", "-f", "-")
		passed := func(p sent) bool {
			r.attacker.SendAs(t, lab.Packet{Dst: r.port(22)}, p.as)
			r.attacker.Capture(t).Packets(t) // waits until the packet has arrived
			return strings.Contains(r.server.Shell(t, fmt.Sprintf("nft list counter %s seen p%d", table, p.proto)), "packets 1 ")
		}
		for _, p := range all {
			if !passed(p) {
				t.Errorf("a packet of %s does not pass the drop policy", p.name)
			}
		}
		if passed(sent{proto: unix.IPPROTO_UDP}) {
			t.Error("a datagram passes the drop policy")
		}
	})
}

// TestDropPolicyPassesDHCPv6FromLinkOnly: the drop policy passes a datagram to the DHCPv6
// client only if it comes from port 547 of a link-local address.
func TestDropPolicyPassesDHCPv6FromLinkOnly(t *testing.T) {
	eachOf(t, lab.Firewalls, []lab.Family{lab.IPv6}, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "nft")
		r := newRig(t, f, family, twoKnocks)
		r.emitRules(t, "--policy", "drop")
		r.runHeaderLine(t, "load")
		// This chain comes after the chains of the drop policy.
		r.server.Run(t, "nft", "add table ip6 seen; add counter ip6 seen dhcp; "+
			"add chain ip6 seen in { type filter hook input priority 10; }; add rule ip6 seen in udp dport 546 counter name dhcp")
		seen := 0
		for _, c := range []struct {
			from   string
			passes bool
		}{
			{"[fe80::9]:547", true},
			{"[fe80::9]:546", false},
			{"[fe80::9]:1547", false},
			{"[2001:db8::9]:547", false},
			{"[fd00::9]:547", false},
		} {
			r.attacker.SendAs(t, lab.Packet{Src: netip.MustParseAddrPort(c.from), Dst: r.port(546)}, nil)
			r.attacker.Capture(t).Packets(t) // waits until the datagram has arrived
			if c.passes {
				seen++
			}
			if out := r.server.Shell(t, "nft list counter ip6 seen dhcp"); !strings.Contains(out, fmt.Sprintf("packets %d ", seen)) {
				t.Fatalf("after the datagram from %s, want %d datagrams that passed:\n%s", c.from, seen, out)
			}
		}
	})
}
