package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// These tests show limits that SECURITY.md names. If one fails because the rules have become
// better, change SECURITY.md too.

// TestForgedDatagramsReachOnlyUDPPorts: an attacker who forges an admitted address can send
// datagrams to a guarded UDP port. He cannot use a TCP port, because the answers go to the
// admitted address.
func TestForgedDatagramsReachOnlyUDPPorts(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newGuardedRig(t, f, family, twoKnocks, "OpenPorts 22/tcp 5000/udp", "OpenFor 5m")
		service := lab.Socket(t, r.server, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":5000") })
		local := r.server.Dial(t, "udp", "127.0.0.1:5000")
		forge := func(name string) string {
			src := netip.AddrPortFrom(r.client.Addr(family), 6666)
			r.attacker.Send(t, lab.Packet{Src: src, Dst: r.port(5000), Payload: []byte(name)})
			r.attacker.Capture(t).Packets(t) // waits until the datagram has arrived
			return datagrams(t, service, local)
		}
		if got := forge("before the knocks"); got != "" {
			t.Errorf("before the knocks, the service receives %q", got)
		}
		r.knockAndWait(t, r.client)
		if got := forge("forged"); got != "forged" {
			t.Errorf("after the knocks, the service receives %q, want the forged datagram", got)
		}
		seen := r.attacker.Capture(t)
		answered := r.client.Capture(t)
		r.attacker.Send(t, lab.Packet{Src: netip.AddrPortFrom(r.client.Addr(family), 6667), Dst: r.port(22), Flags: lab.SYN})
		isAnswer := func(packets []lab.Packet) (n int) {
			for _, p := range packets {
				if p.Src == r.port(22) && p.Dst.Port() == 6667 {
					n++
				}
			}
			return n
		}
		if n := isAnswer(seen.Packets(t)); n > 0 {
			t.Errorf("the attacker receives %d answers to a forged SYN", n)
		}
		if n := isAnswer(answered.Packets(t)); n == 0 {
			t.Error("the owner of the forged address receives no answer to the SYN")
		}
	})
}

// TestForgedSequencesFillOpenings: an attacker who has seen a static sequence sends it from
// many forged addresses. The sets of nftables then admit no other address, and keep those that
// they have. The lists of iptables forget the addresses that were admitted first. Sessions go
// on with both.
func TestForgedSequencesFillOpenings(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newGuardedRig(t, f, family, "Sequence 7001/udp 8003/udp 9005/udp", "OpenFor 5m")
		session := r.openEcho(t, "vps")
		knocks := sequence("7001/udp 8003/udp 9005/udp")
		forged, admitted, next := 66_000, lab.Open, false
		if format(f) == "iptables" {
			forged, admitted, next = 100, lab.Dropped, true
		}
		hosts := []*lab.Host{r.attacker, r.client} // one host alone has too few addresses
		flood := func() {
			r.attacker.Flood(t, forged*len(knocks), func(i int) lab.Packet {
				n := i / len(knocks)
				from := hosts[n/60_000].Source(family, uint16(n%60_000+1000))
				return lab.Packet{Src: netip.AddrPortFrom(from, 10000), Dst: r.port(knocks[i%len(knocks)].Port)}
			})
		}
		flood()
		// The kernel removes the elements of finished stages from the sets some time later. Until
		// then these sets can be full, and a part of the forged sequences does not count.
		for try := 1; try < 5 && r.admits(t, r.freshAddr(), knocks...) != next; try++ {
			flood()
		}
		session.say(t, "after the flood")
		if got := r.client.Probe(t, r.port(22)); got != admitted {
			t.Errorf("after %d forged sequences, port 22 is %v for an admitted address, want %v", forged, got, admitted)
		}
		if got := r.admits(t, r.freshAddr(), knocks...); got != next {
			t.Errorf("after %d forged sequences, another address is admitted: %v, want %v", forged, got, next)
		}
	})
}

// TestTokenSentToOtherHostOpensServer: if a name leads to an attacker's address, the client
// sends its token there, and the attacker can use the token. With DeriveHostKey, the token
// opens no other server.
func TestTokenSentToOtherHostOpensServer(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokensOn(t, 22)
		r := newRig(t, f, family, append(settings, "DeriveHostKey yes")...)
		nameServer(t, r.client, "vps", r.attacker) // the wrong answer
		capture := r.attacker.Capture(t)
		r.client.Run(t, "portknock", "knock", "-c", r.profile, "-o", "HostName=vps", "-o", fmt.Sprintf("AddressFamily=inet%s",
			map[lab.Family]string{lab.IPv4: "", lab.IPv6: "6"}[family]), "vps")
		var token knock.Step
		for _, p := range capture.Packets(t) {
			if !p.Out && p.Dst.Port() == s.Port {
				token = knock.Step{Transport: knock.UDP, Port: s.Port, Payload: p.Payload}
			}
		}
		if len(token.Payload) != knock.TokenSize {
			t.Fatalf("the attacker receives %d bytes, want a token", len(token.Payload))
		}
		for _, name := range []string{"other", "vps"} {
			config := lab.File(t, "config", append([]string{"Host " + name, "DeriveHostKey yes"}, settings...)...)
			rules := emitRulesFor(t, r.server, f, config, name)
			runHeaderLine(t, r.server, rules, "load")
			r.attacker.Knock(t, r.addr(), token)
			want := map[string]lab.State{"other": lab.Dropped, "vps": lab.Open}[name]
			if got := r.attacker.Probe(t, r.port(22)); got != want {
				t.Errorf("with the token for vps, port 22 of server %s is %v, want %v", name, got, want)
			}
			runHeaderLine(t, r.server, rules, "unload")
		}
	})
}

// TestUnloadForgetsSpentTokens: a spent token opens the port again after the rules of all
// profiles were removed and loaded again, as at a restart.
func TestUnloadForgetsSpentTokens(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokensOn(t, 22)
		r := newGuardedRig(t, f, family, settings...)
		token := r.familyTokens(t, s, time.Now())[0]
		if !r.admits(t, r.freshAddr(), token) {
			t.Fatal("a token does not open port 22")
		}
		removals := []func(){func() { r.runHeaderLine(t, "unload") }, func() { r.server.Run(t, "nft", "flush", "ruleset") }}
		if f.Name == "iptables-legacy" {
			removals = removals[:1] // nft does not show these rules
		}
		for i, remove := range removals {
			if r.admits(t, r.freshAddr(), token) {
				t.Errorf("a spent token opens port 22 before removal %d", i)
			}
			remove()
			r.runHeaderLine(t, "load")
			if !r.admits(t, r.freshAddr(), token) {
				t.Errorf("a spent token does not open port 22 after removal %d", i)
			}
		}
	})
}

// TestForgedDatagramsFillConnectionTable: after a load, the kernel tracks each datagram that
// the rules do not drop as a connection of its own.
func TestForgedDatagramsFillConnectionTable(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 22/tcp 5000/udp")
		const sent = 5000
		r.server.Shell(t, "echo 600 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout") // the test may be slow
		tracked := func(port uint16) int {
			count := func() int {
				n, err := strconv.Atoi(strings.TrimSpace(r.server.Shell(t, "cat /proc/sys/net/netfilter/nf_conntrack_count")))
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			before := count()
			r.attacker.Flood(t, sent, func(i int) lab.Packet {
				return lab.Packet{Src: netip.AddrPortFrom(r.client.Source(family, uint16(i+1)), 9), Dst: r.port(port)}
			})
			r.attacker.Capture(t).Packets(t) // waits until the datagrams have arrived
			return count() - before
		}
		if n := tracked(4000); n != 0 {
			t.Errorf("without rules, %d datagrams make %d entries", sent, n)
		}
		r.runHeaderLine(t, "load")
		if n := tracked(4001); n != sent {
			t.Errorf("with the guard, %d datagrams to another port make %d entries", sent, n)
		}
		if n := tracked(5000); n > 0 {
			t.Errorf("with the guard, %d datagrams to a guarded port make %d entries", sent, n)
		}
		r.emitRules(t, "--policy", "drop", "--allow", "80/udp")
		r.runHeaderLine(t, "load")
		if n := tracked(4002); n > 0 {
			t.Errorf("with the drop policy, %d datagrams to a closed port make %d entries", sent, n)
		}
		if n := tracked(80); n != sent {
			t.Errorf("with the drop policy, %d datagrams to an allowed port make %d entries", sent, n)
		}
	})
}

// TestACKShowsServiceAtRoutedAddress: at an IPv4 address that is local only by another routing
// table, the kernel rejects a lone ACK only if a service listens. The guard and the drop policy
// do not change that.
func TestACKShowsServiceAtRoutedAddress(t *testing.T) {
	eachOf(t, lab.Firewalls, onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 22/tcp 2200/tcp 2201/tcp")
		beyond := r.routeByTable(t)
		listenTransparently(t, r.server, family, 2200)
		for _, policy := range []string{"guard", "drop"} {
			r.emitRules(t, "--policy", policy)
			r.runHeaderLine(t, "load")
			for _, tt := range []struct {
				at   netip.AddrPort
				want lab.State
			}{
				{netip.AddrPortFrom(beyond, 2200), lab.Refused}, {netip.AddrPortFrom(beyond, 2201), lab.Dropped},
				{r.port(2200), lab.Refused}, {r.port(2201), lab.Refused},
			} {
				if got := r.attacker.ProbeAs(t, lab.Packet{Dst: tt.at, Flags: lab.ACK}, nil); got != tt.want {
					t.Errorf("policy %s: a lone ACK to %v is %v, want %v", policy, tt.at, got, tt.want)
				}
			}
		}
	})
}
