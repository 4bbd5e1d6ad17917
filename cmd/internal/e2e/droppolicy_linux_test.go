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

// TestAllowNamesPortAfterNAT: if NAT leads one port to another, --allow must name the other
// port. It then opens both.
func TestAllowNamesPortAfterNAT(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		r.redirect(t)
		r.server.Listen(t, 8080)
		for allowed, want := range map[string]lab.State{"8443": lab.Dropped, "8080": lab.Open} {
			r.emitRules(t, "--policy", "drop", "--allow", allowed)
			r.runHeaderLine(t, "load")
			r.expectPaths(t, "with --allow "+allowed, r.client, want, 8080, 8443)
		}
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

// TestDropPolicyAndOtherPrograms: what --policy drop does to programs that administrators
// use. SECURITY.md has the same list.
func TestDropPolicyAndOtherPrograms(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "ping", "busybox")
		r := newRig(t, f, family, twoKnocks)
		r.emitRules(t, "--policy", "drop", "--allow", "80/udp")
		r.runHeaderLine(t, "load")
		client, server := r.client.Addr(family).String(), r.addr().String()
		ip, traceroute, multicast, prefix := "ip", "traceroute", "224.0.0.251", "198.51.100.0/24"
		if family == lab.IPv6 {
			ip, traceroute, multicast, prefix = "ip -6", "traceroute6", "ff02::fb", "2001:db8:77::/64"
		}
		beyond := netip.MustParsePrefix(prefix).Addr().Next().String()

		t.Run("neighbors", func(t *testing.T) {
			for _, h := range []*lab.Host{r.server, r.client} {
				h.Shell(t, ip+" neigh flush dev eth0 nud permanent")
			}
			r.client.Run(t, "ping", "-c1", "-W5", server)
			r.server.Run(t, "ping", "-c1", "-W5", client)
		})
		t.Run("path MTU", func(t *testing.T) {
			r.client.Shell(t, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; "+
				ip+" route add "+prefix+" via "+r.attacker.Addr(family).String()+" mtu 1300")
			r.server.Shell(t, ip+" route add "+prefix+" via "+client)
			out, _ := r.server.Try("ping", "-c1", "-W5", "-M", "do", "-s", "1400", beyond)
			if !strings.Contains(out, "1300") {
				t.Errorf("ping does not learn the path MTU:\n%s", out)
			}
		})
		t.Run("traceroute from the server", func(t *testing.T) {
			out := r.server.Run(t, "busybox", traceroute, "-n", "-m1", "-q1", "-w5", beyond)
			if strings.Count(out, client) == 0 {
				t.Errorf("traceroute does not find the first router %s:\n%s", client, out)
			}
		})
		t.Run("traceroute to the server", func(t *testing.T) {
			for _, loaded := range []bool{true, false} {
				wait := "-w1"
				if !loaded {
					r.runHeaderLine(t, "unload")
					wait = "-w9"
				}
				out := r.client.Run(t, "busybox", traceroute, "-n", "-m1", "-q1", wait, server)
				if strings.Contains(out, "*") != loaded {
					t.Errorf("rules loaded: %v, traceroute prints\n%s", loaded, out)
				}
			}
			r.runHeaderLine(t, "load")
		})
		t.Run("answers to the server", func(t *testing.T) {
			echoDatagrams(t, r.client, 53)
			c := lab.Socket(t, r.server, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":51820") })
			to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.client.Addr(family), 53))
			if _, err := c.WriteTo([]byte("query"), to); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, _, err := c.ReadFrom(make([]byte, 100)); err != nil {
				t.Errorf("the server does not receive the answer to its datagram: %v", err)
			}
			local := r.server.Dial(t, "udp", "127.0.0.1:51820")
			for from, want := range map[uint16]string{53: "from 53", 54: ""} {
				r.client.Send(t, lab.Packet{Src: netip.AddrPortFrom(r.client.Addr(family), from), Dst: r.port(51820),
					Payload: fmt.Appendf(nil, "from %d", from)})
				r.client.Capture(t).Packets(t) // waits until the datagram has arrived
				if got := datagrams(t, c, local); got != want {
					t.Errorf("after a datagram from port %d, the server receives %q, want %q", from, got, want)
				}
			}
		})
		t.Run("multicast", func(t *testing.T) {
			for port, want := range map[uint16]string{5353: "", 80: "query"} {
				service := lab.Socket(t, r.server, func() (net.PacketConn, error) {
					eth0, err := net.InterfaceByName("eth0")
					if err != nil {
						return nil, err
					}
					return net.ListenMulticastUDP(map[lab.Family]string{lab.IPv4: "udp4", lab.IPv6: "udp6"}[family], eth0,
						net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(multicast), port)))
				})
				local := r.server.Dial(t, "udp", fmt.Sprintf("%s:%d", map[lab.Family]string{lab.IPv4: "127.0.0.1", lab.IPv6: "[::1]"}[family], port))
				r.client.SendAs(t, lab.Packet{Dst: netip.AddrPortFrom(netip.MustParseAddr(multicast), port), Payload: []byte("query")}, nil)
				r.client.Capture(t).Packets(t) // waits until the datagram has arrived
				if got := datagrams(t, service, local); got != want {
					t.Errorf("a service at port %d receives %q, want %q", port, got, want)
				}
			}
			asker := lab.Socket(t, r.server, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":6000") })
			local := r.server.Dial(t, "udp", "127.0.0.1:6000")
			r.server.SendAs(t, lab.Packet{Src: r.port(6000), Dst: netip.AddrPortFrom(netip.MustParseAddr(multicast), 5353), Payload: []byte("query")}, nil)
			r.client.Send(t, lab.Packet{Src: netip.AddrPortFrom(r.client.Addr(family), 5353), Dst: r.port(6000), Payload: []byte("answer")})
			r.client.Capture(t).Packets(t) // waits until the datagrams have arrived
			if got := datagrams(t, asker, local); got != "" {
				t.Errorf("after a multicast query, the server receives %q, want nothing", got)
			}
		})
	})
}

// TestDropPolicyPassesRouterAdvertisement: a server with the drop policy learns its default
// route from a router advertisement.
func TestDropPolicyPassesRouterAdvertisement(t *testing.T) {
	eachOf(t, lab.Firewalls, []lab.Family{lab.IPv6}, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		r.emitRules(t, "--policy", "drop")
		r.runHeaderLine(t, "load")
		r.client.Shell(t, "ip addr add fe80::2/64 dev eth0 nodad")
		r.client.Do(func() {
			// hop limit 64, router lifetime 1800 s, and no prefix; the kernel adds the checksum
			advertisement := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
			if err == nil {
				defer unix.Close(fd)
				err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
			}
			var eth0 *net.Interface
			if err == nil {
				eth0, err = net.InterfaceByName("eth0")
			}
			if err == nil {
				to := &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(eth0.Index)}
				err = unix.Sendto(fd, advertisement, 0, to)
			}
			if err != nil {
				t.Error(err)
			}
		})
		r.client.Capture(t).Packets(t) // waits until the advertisement has arrived
		if routes := r.server.Shell(t, "ip -6 route show default"); !strings.Contains(routes, "via fe80::2 ") {
			t.Errorf("the server's default routes are %q, want one via fe80::2", routes)
		}
	})
}

// TestDropPolicyPassesDHCPClient: a server with the drop policy gets an address by DHCP, and
// renews the lease. A datagram to the DHCP client passes only from the port of DHCP servers.
func TestDropPolicyPassesDHCPClient(t *testing.T) {
	eachOf(t, lab.Firewalls, onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "busybox")
		r := newRig(t, f, family, twoKnocks)
		r.emitRules(t, "--policy", "drop")
		r.runHeaderLine(t, "load")
		service := lab.Socket(t, r.server, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":68") })
		local := r.server.Dial(t, "udp", "127.0.0.1:68")
		for _, from := range []uint16{66, 67} {
			r.client.SendAs(t, lab.Packet{Src: netip.AddrPortFrom(r.client.Addr(family), from),
				Dst: netip.MustParseAddrPort("255.255.255.255:68"), Payload: fmt.Appendf(nil, "from %d", from)}, nil)
		}
		r.client.Capture(t).Packets(t) // waits until the datagrams have arrived
		if got := datagrams(t, service, local); got != "from 67" {
			t.Errorf("the port of the DHCP client receives %q, want a datagram from port 67 only", got)
		}
		_ = service.Close()
		dir := t.TempDir()
		r.client.Daemon(t, "busybox", "udhcpd", "-f", "-I", r.client.Addr(family).String(), lab.File(t, "udhcpd.conf",
			"interface eth0", "start 192.0.2.50", "end 192.0.2.50", "lease_file "+dir+"/leases", "pidfile "+dir+"/pid"))
		script := lab.File(t, "script", "#!/bin/sh", `[ -z "$ip" ] || ip addr replace $ip/24 dev eth0`)
		r.server.Run(t, "chmod", "+x", script)
		lease := r.server.Daemon(t, "busybox", "udhcpc", "-f", "-i", "eth0", "-s", script)
		lease.Log.Await(t, "lease of 192.0.2.50 obtained", 1)
		// The client renews the lease through an ordinary socket. It received the first answers
		// from the device, before any rule.
		if err := lease.Process.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		lease.Log.Await(t, "lease of 192.0.2.50 obtained", 2)
	})
}
