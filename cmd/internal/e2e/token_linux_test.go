package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// TestTokenServesOnlyItsFirstAddress: a token opens the port only for the address that
// sent it first. A packet that differs from a token in one bit opens nothing.
func TestTokenServesOnlyItsFirstAddress(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := periodWithNowAt(t, middle)
		settings, s := tokens(t, period, 2*time.Minute)
		// OpenFor is long enough for a busy machine to knock and to probe the port.
		r := newRig(t, f, family, append(settings, "OpenFor 5s")...)
		r.runHeaderLine(t, "test")
		r.runHeaderLine(t, "load")
		r.expect(t, r.client, lab.Dropped)
		now := time.Now()
		valid := r.familyTokens(t, s, now)

		var wrong []knock.Step
		for bit := range 8 * knock.TokenSize {
			flipped := valid[0]
			flipped.Payload = slices.Clone(flipped.Payload)
			flipped.Payload[bit/8] ^= 1 << (bit % 8)
			wrong = append(wrong, flipped)
		}
		token := valid[0].Payload
		for _, payload := range [][]byte{
			nil, token[:15], slices.Concat(token, []byte{0}), slices.Concat(token, token), slices.Concat([]byte{0}, token),
			make([]byte, 16), make([]byte, 1400),
		} {
			wrong = append(wrong, knock.Step{Transport: knock.UDP, Port: s.Port, Payload: payload})
		}
		elsewhere := valid[0]
		elsewhere.Port++
		wrong = append(wrong, elsewhere, knock.Step{Port: s.Port}) // a SYN
		for _, other := range []time.Time{now.Add(-period), now.Add(period), now.Add(-2 * period)} {
			wrong = append(wrong, stepsAt(t, s, other)...)
		}
		first, second := r.freshAddr(), r.freshAddr()
		for i, step := range wrong {
			if i%40 == 0 && r.admits(t, first) { // probe often, so that a failure tells which packets open
				t.Fatal("port 22 is open after wrong packet number ", i)
			}
			r.client.KnockFrom(t, first, r.addr(), step)
		}
		if r.admits(t, first) {
			t.Fatal("one of the last wrong packets opens port 22")
		}
		for i, step := range []struct {
			from  netip.Addr
			token int
			want  bool
		}{{first, 0, true}, {second, 0, false}, {second, 3, true}, {first, 0, true}, {r.freshAddr(), 3, false}} {
			if got := r.admits(t, step.from, valid[step.token]); got != step.want {
				t.Errorf("step %d: token %d from %v opens port 22: %v", i, step.token, step.from, got)
			}
		}
		// The opening ends after OpenFor, but the token stays valid.
		lab.Await(t, 40*time.Second, func() string { // a test cannot fake the kernel's clock
			if r.admits(t, first) {
				return "port 22 is still open long after OpenFor"
			}
			return ""
		})
		if !r.admits(t, first, valid[0]) {
			t.Error("after OpenFor, a token does not open port 22 for the address that used it")
		}
		if r.admits(t, r.freshAddr(), valid[0]) {
			t.Error("after OpenFor, a token opens port 22 for another address")
		}
		r.login(t)
		transfer(t, r)
		r.runHeaderLine(t, "unload")
		r.expect(t, r.attacker, lab.Open)
	})
}

// TestNeighborTokensOpenOnlyWithinSkew: a token of the previous or next window opens the
// port only within Skew of the boundary to that window.
func TestNeighborTokensOpenOnlyWithinSkew(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, tt := range []struct {
			place        place
			skew         time.Duration
			before, next bool // the tokens of the previous, or next, window open
		}{
			{place: early, skew: 2 * time.Minute, before: true},
			{place: early, skew: 0},
			{place: late, skew: 2 * time.Minute, next: true},
			{place: late, skew: 0},
		} {
			period := periodWithNowAt(t, tt.place)
			settings, s := tokens(t, period, tt.skew)
			r := newGuardedRig(t, f, family, settings...)
			now := time.Now()
			for _, other := range []struct {
				by   time.Duration
				want bool
			}{{-period, tt.before}, {period, tt.next}, {-2 * period, false}, {2 * period, false}, {0, true}} {
				if got := r.admits(t, r.freshAddr(), stepsAt(t, s, now.Add(other.by))...); got != other.want {
					t.Errorf("period %v, skew %v, %v after the window's start: the tokens of %v later open: %v", period, tt.skew,
						now.Sub(knock.WindowAt(now, period).Start), other.by, got)
				}
			}
		}
	})
}

// TestEachWindowsTokenOpensOnce: the first token of each of six windows opens the port for
// one address. A spent token of one window does not block a token of another window, although
// the rules use the same sets or lists of spent tokens for several windows.
func TestEachWindowsTokenOpensOnce(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		settings, s := tokens(t, 2*time.Second, 0)
		r.load(t, settings, "--horizon", "2m")
		late := time.Now().Add(time.Minute)
		for seen := 0; seen < 6; {
			sleepInto(knock.WindowAt(time.Now(), s.Period).End)
			began := time.Now()
			token := r.familyTokens(t, s, began)[0]
			first, again := r.admits(t, r.freshAddr(), token), r.admits(t, r.freshAddr(), token)
			if window := knock.WindowAt(began, s.Period); time.Now().After(window.End) {
				if began.After(late) {
					t.Fatal("on this machine, two tokens take longer than a window")
				}
				continue // the token may have arrived after its window
			} else if !first || again {
				t.Errorf("in the window from %v the token opens: %v, and for a second address: %v", window.Start, first, again)
			}
			seen++
		}
	})
}

// TestReloadKeepsSpentTokensAndOpenings: a spent token stays spent, and an admitted address
// stays admitted, when new rules are loaded. The new rules have another horizon or another
// scheme.
func TestReloadKeepsSpentTokensAndOpenings(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := periodWithNowAt(t, middle)
		settings, s := tokens(t, period, time.Minute)
		settings = append(settings, "OpenFor 5m")
		r := newRig(t, f, family, settings...)
		other, _ := rotating(t, period, time.Minute)
		static := []string{threeKnocks}
		r.runHeaderLine(t, "load")
		valid := r.familyTokens(t, s, time.Now())
		first, second := r.freshAddr(), r.freshAddr()
		if !r.admits(t, first, valid[0]) {
			t.Fatal("a token does not open port 22")
		}
		for i, settings := range [][]string{settings, settings, other, settings, static, settings} {
			r.profile = vpsProfile(t, settings...)
			r.emitRules(t, "--horizon", fmt.Sprintf("%dh", i+1))
			r.runHeaderLine(t, "test")
			r.runHeaderLine(t, "load")
			if !r.admits(t, first) {
				t.Errorf("load %d closes port 22 to an admitted address", i)
			}
			if r.admits(t, second, valid[0]) {
				t.Errorf("after load %d, a spent token opens port 22 for another address", i)
			}
		}
		if !r.admits(t, second, valid[1]) {
			t.Error("a fresh token does not open port 22")
		}
	})
}

// TestNextRoundReplacesLostToken: if a token is lost, ssh still connects, because the next
// round sends another token.
func TestNextRoundReplacesLostToken(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family)
		// The quota of 70 bytes drops one packet of either family, but not two.
		r.server.Run(t, "nft", fmt.Sprintf("add table inet hole; add chain inet hole in { type filter hook prerouting priority -400; };"+
			"add rule inet hole in udp dport %d quota until 70 bytes counter drop", s.Port))
		r.login(t)
		if listing := r.server.Run(t, "nft", "list", "table", "inet", "hole"); !strings.Contains(listing, "counter packets 1 ") {
			t.Errorf("the number of lost tokens is not 1:\n%s", listing)
		}
	})
}

// TestEachNewAddressSpendsOneToken: in one window, each token opens the port for one more
// client address. An address that knocks again spends no other token. If all tokens are
// spent, portknock prints a hint with the limit and with the end of the window.
func TestEachNewAddressSpendsOneToken(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, _ := newTokenRig(t, f, family, "TokensPerWindow 4", "ConnectTimeout 4", "OpenFor 1s")
		from := func(n uint16) (string, error) {
			addr := r.client.Source(family, n)
			r.addAddr(t, addr)
			return r.client.Try("portknock", "knock", "--wait", "-c", r.profile, "-o", "BindAddress="+addr.String(), "vps", "22")
		}
		addresses := uint16(4)
		if format(f) == "iptables" {
			addresses /= 2 // half of the tokens are for the other family
		}
		for _, n := range []uint16{1, 2, 3, 4, 1, 1, 4} {
			if n > addresses {
				continue
			}
			if output, err := from(n); err != nil {
				t.Errorf("address %d: %v\n%s", n, err, output)
			}
		}
		if output, err := from(addresses + 1); err == nil || !strings.Contains(output, "the tokens of a window serve at most 4 addresses") {
			t.Errorf("the address after the last token gets %v, want the error for too many addresses:\n%s", err, output)
		}
	})
}

// TestEachFamilySpendsItsOwnToken: a client that knocks with IPv4 and IPv6 at once spends
// two tokens. A token that is spent with one family is spent for the other too.
func TestEachFamilySpendsItsOwnToken(t *testing.T) {
	eachOf(t, kernelFirewalls(), onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family)
		nameServer(t, r.client, "vps", r.server)
		r.client.Run(t, "portknock", "knock", "-c", r.profile, "-o", "HostName=vps", "vps")
		for _, r.family = range lab.Families {
			r.expect(t, r.client, lab.Open)
		}
		for n, step := range stepsAt(t, s, time.Now()) {
			admitted := 0
			for _, r.family = range lab.Families {
				if r.admits(t, r.freshAddr(), step) {
					admitted++
				}
			}
			if admitted > 1 {
				t.Errorf("token %d opens port 22 with both families", n)
			}
		}
	})
}

// TestAddressesOfANameGetDifferentTokens: the server's name has two addresses. In all
// rounds, each address gets other tokens, and always begins with the same one. A login at
// either address works.
func TestAddressesOfANameGetDifferentTokens(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family)
		addrs := r.secondAddr(t)
		// Nothing listens on port 23 of the server, so all tokens are sent, some of them twice.
		all, _ := r.sentTokens(t, s, addrs, "23", "-o", "ConnectTimeout=4")
		for _, token := range all[addrs[0]] {
			if slices.Contains(all[addrs[1]], token) {
				t.Errorf("both addresses got the token %x", token)
			}
		}
		for _, addr := range addrs {
			if len(all[addr]) < 4 {
				t.Fatalf("address %v got only %d tokens", addr, len(all[addr]))
			}
			if state := r.client.Probe(t, netip.AddrPortFrom(addr, 22)); state != lab.Open {
				t.Errorf("port 22 of %v is %v, want open", addr, state)
			}
		}
		for range 2 {
			again, _ := r.sentTokens(t, s, addrs)
			for to, tokens := range again {
				if tokens[0] != all[to][0] {
					t.Errorf("address %v began with another token at the next login", to)
				}
			}
			if len(again) == 0 {
				t.Error("the next login sent no token")
			}
			slices.Reverse(addrs)
		}
	})
}

// TestAddressWithoutTokenIsDialed: the server's name has two addresses, but a window has only
// one token. The client sends it to one address, and only dials the other.
func TestAddressWithoutTokenIsDialed(t *testing.T) {
	eachOf(t, []lab.Firewall{nftables}, lab.Families, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family, "TokensPerWindow 1")
		tokens, dialed := r.sentTokens(t, s, r.secondAddr(t), "23", "-o", "ConnectTimeout=1")
		if len(tokens) != 1 || len(dialed) != 2 {
			t.Errorf("the addresses with tokens are %q, those with SYNs %v; want one and two", tokens, dialed)
		}
	})
}

// secondAddr gives the server another address, and returns both.
func (r *rig) secondAddr(t testing.TB) []netip.Addr {
	t.Helper()
	more := r.server.Source(r.family, 1)
	r.server.Shell(t, fmt.Sprintf("ip addr replace %v dev eth0 %s", more, map[lab.Family]string{lab.IPv6: "nodad"}[r.family]))
	return []netip.Addr{r.addr(), more}
}

// sentTokens makes portknock knock at a name with these addresses, with more arguments. It
// returns the tokens that the client has sent to each address, and the addresses that it has
// dialed. Only without arguments, the command must succeed.
func (r *rig) sentTokens(t testing.TB, s knock.Token, addrs []netip.Addr, args ...string) (tokens map[netip.Addr][]string, dialed map[netip.Addr]bool) {
	t.Helper()
	var lines []string
	for _, addr := range addrs {
		lines = append(lines, addr.String()+" vps")
	}
	r.client.Run(t, "mount", "--bind", lab.File(t, "hosts", lines...), "/etc/hosts")
	capture := r.client.Capture(t)
	defer capture.Close()
	out, err := r.client.Try("portknock", append([]string{"knock", "--wait", "-c", r.profile, "-o", "HostName=vps", "vps"}, args...)...)
	if (err == nil) != (len(args) == 0) {
		t.Errorf("knock %q returns the error %v:\n%s", args, err, out)
	}
	tokens, dialed = map[netip.Addr][]string{}, map[netip.Addr]bool{}
	for _, p := range capture.Packets(t) {
		switch to := p.Dst.Addr(); {
		case !p.Out:
		case p.Dst.Port() == s.Port:
			tokens[to] = append(tokens[to], string(p.Payload))
		case p.Flags == lab.SYN:
			dialed[to] = true
		}
	}
	return tokens, dialed
}

// TestAttackerAmongAddressesOfANameCannotLockOut: one address of the server's name is that
// of an attacker. He spends each token that he gets at the server at once. The port opens
// for him, as SECURITY.md says, and the client still connects.
func TestAttackerAmongAddressesOfANameCannotLockOut(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family)
		nameHosts(t, r.client, "vps", family, r.attacker, r.server)
		thief := lab.Socket(t, r.attacker, func() (*net.UDPConn, error) { return net.ListenUDP("udp", &net.UDPAddr{Port: int(s.Port)}) })
		server := net.UDPAddrFromAddrPort(r.port(s.Port))
		go func() {
			token := make([]byte, knock.TokenSize)
			for {
				if _, _, err := thief.ReadFrom(token); err != nil {
					return
				}
				thief.WriteTo(token, server)
			}
		}()
		if output, err := r.client.Try("portknock", "knock", "--wait", "-v", "-c", r.profile, "-o", "HostName=vps", "vps"); err != nil {
			t.Errorf("the client cannot connect: %v\n%s", err, output)
		}
		r.expect(t, r.client, lab.Open)
		r.expect(t, r.attacker, lab.Open) // if the port is not open, he did not get a token before the server
	})
}

// TestTokenAtLiveServiceOpens: a token may go to a port on which a service listens. Other
// clients can still use the service. The service receives the token, unless --consume is
// set.
func TestTokenAtLiveServiceOpens(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokens(t, periodWithNowAt(t, middle), time.Minute)
		s.Port = 443
		r := newRig(t, f, family, append(settings, "TokenPort 443")...)
		service := lab.Socket(t, r.server, func() (*net.UDPConn, error) { return net.ListenUDP("udp", &net.UDPAddr{Port: 443}) })
		hears := func() string {
			buf := make([]byte, 2000)
			if err := service.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, _, err := service.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			return string(buf[:n])
		}
		valid := r.familyTokens(t, s, time.Now())
		hello := knock.Step{Transport: knock.UDP, Port: 443, Payload: []byte("sixteen letters!")}
		for i, consume := range []bool{false, true} {
			flags := []string{}
			if consume {
				flags = append(flags, "--consume")
			}
			runHeaderLine(t, r.server, emitRules(t, r.server, f, r.profile, flags...), "load")
			visitor := r.freshAddr()
			if !r.admits(t, visitor, valid[i], hello) {
				t.Errorf("consume %v: the token does not open port 22", consume)
			}
			got := hears()
			if !consume && got != string(valid[i].Payload) {
				t.Errorf("the service receives %q, not the token", got)
			}
			if !consume {
				got = hears()
			}
			if got != string(hello.Payload) {
				t.Errorf("consume %v: the service receives %q, want the other packet", consume, got)
			}
		}
	})
}

// TestProfilesMayShareTokenPort: two profiles with the same TokenPort work at the same
// time. A token of one profile opens only this profile's ports.
func TestProfilesMayShareTokenPort(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokens(t, periodWithNowAt(t, middle), time.Minute)
		settings = append(settings, "DeriveHostKey yes")
		settings = append(append(settings, "Host web", "OpenPorts 22 8080"), settings...)
		r := newRig(t, f, family, settings...)
		r.server.Listen(t, 8080)
		r.emitRules(t, "web")
		r.runHeaderLine(t, "load")
		master := s.Key
		for _, name := range []string{"vps", "web"} {
			s.Key = master.Derive(name)
			visitor := r.freshAddr()
			if !r.admits(t, visitor, r.familyTokens(t, s, time.Now())[0]) {
				t.Errorf("the token of %s does not open port 22", name)
			}
			if got := r.client.ProbeFrom(t, visitor, r.port(8080)); (got == lab.Open) != (name == "web") {
				t.Errorf("after the token of %s, port 8080 is %v", name, got)
			}
		}
		if s.Key = master; r.admits(t, r.freshAddr(), stepsAt(t, s, time.Now())...) {
			t.Error("a token of the master key opens port 22")
		}
	})
}
