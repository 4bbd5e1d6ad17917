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

// TestTokenServesOnlyItsFirstAddress: a token serves only the address that sent it first. A packet that differs
// from a token in one bit opens nothing.
func TestTokenServesOnlyItsFirstAddress(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := periodWithNowAt(t, middle)
		settings, s := tokens(t, period, 2*time.Minute)
		// Long enough for a busy machine to knock and look within it.
		r := newRig(t, f, family, append(settings, "OpenFor 5s")...)
		r.runHeaderLine(t, "check")
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
			if i%40 == 0 && r.admits(t, first) { // or a failure would not say which
				t.Fatal("one of the packets before opens: ", i)
			}
			r.client.KnockFrom(t, first, r.addr(), step)
		}
		if r.admits(t, first) {
			t.Fatal("one of the last packets opens")
		}
		for i, step := range []struct {
			from  netip.Addr
			token int
			want  bool
		}{{first, 0, true}, {second, 0, false}, {second, 3, true}, {first, 0, true}, {r.freshAddr(), 3, false}} {
			if got := r.admits(t, step.from, valid[step.token]); got != step.want {
				t.Errorf("step %d: token %d from %v opens: %v", i, step.token, step.from, got)
			}
		}
		// An opening ends, a token goes on.
		lab.Await(t, 40*time.Second, func() string { // the kernel's clock cannot be faked
			if r.admits(t, first) {
				return "open long after OpenFor"
			}
			return ""
		})
		if !r.admits(t, first, valid[0]) {
			t.Error("after OpenFor a token no longer serves its owner")
		}
		if r.admits(t, r.freshAddr(), valid[0]) {
			t.Error("after OpenFor a token has another owner")
		}
		r.login(t)
		transfer(t, r)
		r.runHeaderLine(t, "watch")
		r.runHeaderLine(t, "undo")
		r.expect(t, r.attacker, lab.Open)
	})
}

// TestNeighborTokensOpenOnlyWithinSkew: a neighbour's token opens within Skew of the boundary between
// them only.
func TestNeighborTokensOpenOnlyWithinSkew(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, tt := range []struct {
			place        place
			skew         time.Duration
			before, next bool // which of the neighbours' tokens open
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
					t.Errorf("period %v, skew %v, %v into it: the tokens of %v later open: %v", period, tt.skew,
						now.Sub(knock.WindowAt(now, period).Start), other.by, got)
				}
			}
		}
	})
}

// TestEachWindowsTokenOpensOnce: a token that is spent in one window is fresh in another,
// also where two windows share a set of spent tokens.
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
					t.Fatal("this takes longer than a window")
				}
				continue // its token may have come too late
			} else if !first || again {
				t.Errorf("in the window from %v a token opens: %v, from elsewhere: %v", window.Start, first, again)
			}
			seen++
		}
	})
}

// TestReloadKeepsSpentTokensAndOpenings: what is spent stays spent over new rules, of another time or
// another scheme. What was open stays open.
func TestReloadKeepsSpentTokensAndOpenings(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := periodWithNowAt(t, middle)
		settings, s := tokens(t, period, time.Minute)
		settings = append(settings, "OpenFor 5m")
		r := newRig(t, f, family, settings...)
		other, _ := rotating(t, period, time.Minute)
		fixed := []string{threeKnocks}
		r.runHeaderLine(t, "load")
		valid := r.familyTokens(t, s, time.Now())
		first, stranger := r.freshAddr(), r.freshAddr()
		if !r.admits(t, first, valid[0]) {
			t.Fatal("a token does not open")
		}
		for i, settings := range [][]string{settings, settings, other, settings, fixed, settings} {
			r.profile = vpsProfile(t, settings...)
			r.emitRules(t, "--horizon", fmt.Sprintf("%dh", i+1))
			r.runHeaderLine(t, "check")
			r.runHeaderLine(t, "load")
			if !r.admits(t, first) {
				t.Errorf("load %d closes the port to an admitted address", i)
			}
			if r.admits(t, stranger, valid[0]) {
				t.Errorf("load %d revives a token", i)
			}
		}
		if !r.admits(t, stranger, valid[1]) {
			t.Error("a fresh token does not open")
		}
	})
}

// TestNextRoundReplacesLostToken: a token that does not arrive is made up for by the next round.
func TestNextRoundReplacesLostToken(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family)
		// One packet, of either family, but not two.
		r.server.Run(t, "nft", fmt.Sprintf("add table inet hole; add chain inet hole in { type filter hook prerouting priority -400; };"+
			"add rule inet hole in udp dport %d quota until 70 bytes counter drop", s.Port))
		r.login(t)
		if said := r.server.Run(t, "nft", "list", "table", "inet", "hole"); !strings.Contains(said, "counter packets 1 ") {
			t.Errorf("not one token was lost:\n%s", said)
		}
	})
}

// TestEachNewAddressSpendsOneToken: each of a window's tokens serves one more network; a network
// that comes again needs none, and one too many is told of the next window.
func TestEachNewAddressSpendsOneToken(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, _ := newTokenRig(t, f, family, "TokensPerWindow 4", "ConnectTimeout 4", "OpenFor 1s")
		from := func(n uint16) (string, error) {
			addr := r.client.Source(family, n)
			r.addAddr(t, addr)
			return r.client.Try("portknock", "knock", "--wait", "-c", r.profile, "-o", "BindAddress="+addr.String(), "vps", "22")
		}
		networks := uint16(4)
		if format(f) == "iptables" {
			networks /= 2 // the others are for the other family
		}
		for _, n := range []uint16{1, 2, 3, 4, 1, 1, 4} {
			if n > networks {
				continue
			}
			if said, err := from(n); err != nil {
				t.Errorf("network %d: %v\n%s", n, err, said)
			}
		}
		if said, err := from(networks + 1); err == nil || !strings.Contains(said, "the tokens of a window serve at most 4 addresses") {
			t.Errorf("one network too many: %v\n%s", err, said)
		}
	})
}

// TestEachFamilySpendsItsOwnToken: a client that knocks by both families at once spends two tokens.
// A token spent by one of them is spent for the other.
func TestEachFamilySpendsItsOwnToken(t *testing.T) {
	eachOf(t, kernelFirewalls(), onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family)
		nameServer(t, r.client, "vps", r.server)
		r.client.Run(t, "portknock", "knock", "-c", r.profile, "-o", "HostName=vps", "vps")
		for _, r.family = range lab.Families {
			r.expect(t, r.client, lab.Open)
		}
		for n, step := range stepsAt(t, s, time.Now()) {
			in := 0
			for _, r.family = range lab.Families {
				if r.admits(t, r.freshAddr(), step) {
					in++
				}
			}
			if in > 1 {
				t.Errorf("token %d opens by both families", n)
			}
		}
	})
}

// TestTokenAtLiveServiceOpens: a token may go to the port of a live service, which others
// go on using, and which sees the token unless it is consumed.
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
				t.Errorf("consume %v: the token does not open", consume)
			}
			got := hears()
			if !consume && got != string(valid[i].Payload) {
				t.Errorf("the service hears %q, not the token", got)
			}
			if !consume {
				got = hears()
			}
			if got != string(hello.Payload) {
				t.Errorf("consume %v: the service hears %q", consume, got)
			}
		}
	})
}

// TestProfilesMayShareTokenPort: profiles that share a token port do not stand in each
// other's way.
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
				t.Errorf("to the token of %s port 8080 is %v", name, got)
			}
		}
		if s.Key = master; r.admits(t, r.freshAddr(), stepsAt(t, s, time.Now())...) {
			t.Error("a token of the master key opens")
		}
	})
}
