package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// tokens returns the settings of a profile with this period and skew, and its
// schedule.
func tokens(t testing.TB, period, skew time.Duration) (settings []string, s knock.Token) {
	t.Helper()
	key, err := knock.ParseKey(windowKey)
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"Scheme token", "KeyFile " + secret(t, "key", windowKey),
		fmt.Sprintf("Period %d", period/time.Second), fmt.Sprintf("Skew %d", skew/time.Second),
	}, knock.Token{Key: key, Port: 62202, Period: period, Tokens: 8}
}

// at returns the tokens of a moment, as steps.
func at(t testing.TB, s knock.Schedule, when time.Time) []knock.Step {
	t.Helper()
	seqs, _, err := s.At(when)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(seqs...)
}

// own returns the tokens of a moment that a family begins with: every other one.
// iptables takes no others from it.
func (r *rig) own(t testing.TB, s knock.Schedule, when time.Time) (own []knock.Step) {
	t.Helper()
	for n, step := range at(t, s, when) {
		if knock.IsTokenOf(r.family == lab.IPv6, n) {
			own = append(own, step)
		}
	}
	return own
}

// admits sends packets from an address and reports whether it is let in then.
func (r *rig) admits(t testing.TB, from netip.Addr, steps ...knock.Step) bool {
	t.Helper()
	r.Client.KnockFrom(t, from, r.Server.Addr(r.family), steps...)
	return r.Client.ProbeFrom(t, from, addrPort(r, 22)) == lab.Open
}

// TestToken: a token serves the address that sent it first, and no other; what is
// not one to the last bit serves nobody.
func TestToken(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := standing(t, middle)
		settings, s := tokens(t, period, 2*time.Minute)
		// Long enough for a busy machine to knock and look within it.
		r := newRig(t, f, family, append(settings, "OpenFor 5s")...)
		header(t, r.Server, r.rules, "check")
		header(t, r.Server, r.rules, "load")
		r.expect(t, r.Client, lab.Dropped)
		now := time.Now()
		valid := r.own(t, s, now)

		var wrong []knock.Step
		for bit := range 8 * knock.TokenSize {
			flipped := valid[0]
			flipped.Payload = slices.Clone(flipped.Payload)
			flipped.Payload[bit/8] ^= 1 << (bit % 8)
			wrong = append(wrong, flipped)
		}
		for _, payload := range [][]byte{
			nil, valid[0].Payload[:15], append(slices.Clone(valid[0].Payload), 0), append(slices.Clone(valid[0].Payload), valid[0].Payload...),
			append([]byte{0}, valid[0].Payload...), make([]byte, 16), make([]byte, 1400),
		} {
			wrong = append(wrong, knock.Step{Transport: knock.UDP, Port: s.Port, Payload: payload})
		}
		elsewhere := valid[0]
		elsewhere.Port++
		wrong = append(wrong, elsewhere, knock.Step{Port: s.Port}) // a SYN
		for _, other := range []time.Time{now.Add(-period), now.Add(period), now.Add(-2 * period)} {
			wrong = append(wrong, at(t, s, other)...)
		}
		first, second := r.visitor(), r.visitor()
		for i, step := range wrong {
			if i%40 == 0 && r.admits(t, first) { // or a failure would not say which
				t.Fatal("one of the packets before opens: ", i)
			}
			r.Client.KnockFrom(t, first, r.Server.Addr(family), step)
		}
		if r.admits(t, first) {
			t.Fatal("one of the last packets opens")
		}
		for i, step := range []struct {
			from  netip.Addr
			token int
			want  bool
		}{{first, 0, true}, {second, 0, false}, {second, 3, true}, {first, 0, true}, {r.visitor(), 3, false}} {
			if got := r.admits(t, step.from, valid[step.token]); got != step.want {
				t.Errorf("step %d: token %d from %v opens: %v", i, step.token, step.from, got)
			}
		}
		// An opening ends, a token goes on.
		for r.admits(t, first) {
			if time.Since(now) > 40*time.Second {
				t.Fatal("open long after OpenFor")
			}
			time.Sleep(50 * time.Millisecond) // the kernel's clock cannot be faked
		}
		if !r.admits(t, first, valid[0]) {
			t.Error("after OpenFor a token no longer serves its owner")
		}
		if r.admits(t, r.visitor(), valid[0]) {
			t.Error("after OpenFor a token has another owner")
		}
		if got := r.ssh(t, "echo in"); got != "in\n" {
			t.Errorf("ssh prints %q", got)
		}
		transfer(t, r)
		header(t, r.Server, r.rules, "watch")
		header(t, r.Server, r.rules, "undo")
		r.expect(t, r.Attacker, lab.Open)
	})
}

// TestTokenWindows: a neighbour's token opens within Skew of the boundary between
// them only.
func TestTokenWindows(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, tt := range []struct {
			place        place
			skew         time.Duration
			before, next bool
		}{{early, 2 * time.Minute, true, false}, {early, 0, false, false}, {late, 2 * time.Minute, false, true}, {late, 0, false, false}} {
			period := standing(t, tt.place)
			settings, s := tokens(t, period, tt.skew)
			r := newRig(t, f, family, settings...)
			header(t, r.Server, r.rules, "load")
			now := time.Now()
			for _, other := range []struct {
				by   time.Duration
				want bool
			}{{-period, tt.before}, {period, tt.next}, {-2 * period, false}, {2 * period, false}, {0, true}} {
				if got := r.admits(t, r.visitor(), at(t, s, now.Add(other.by))...); got != other.want {
					t.Errorf("period %v, skew %v, %v into it: the tokens of %v later open: %v", period, tt.skew,
						now.Sub(knock.WindowAt(now, period).Start), other.by, got)
				}
			}
		}
	})
}

// TestTokenReload: what is spent stays spent over new rules, of another time or
// another scheme. What was open stays open.
func TestTokenReload(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := standing(t, middle)
		settings, s := tokens(t, period, time.Minute)
		settings = append(settings, "OpenFor 5m")
		r := newRig(t, f, family, settings...)
		other, _ := rotating(t, period, time.Minute)
		fixed := []string{"Sequence 7001/udp 8003/tcp 9005/udp"}
		header(t, r.Server, r.rules, "load")
		valid := r.own(t, s, time.Now())
		first, stranger := r.visitor(), r.visitor()
		if !r.admits(t, first, valid[0]) {
			t.Fatal("a token does not open")
		}
		for i, settings := range [][]string{settings, settings, other, settings, fixed, settings} {
			profile := secret(t, "config", append([]string{"Host vps"}, settings...)...)
			rules := emit(t, r.Server, f, profile, "--horizon", fmt.Sprintf("%dh", i+1))
			header(t, r.Server, rules, "check")
			header(t, r.Server, rules, "load")
			if !r.admits(t, first) {
				t.Errorf("load %d closes to who was in", i)
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

// TestTokenLost: a token that does not arrive is made up for by the next round.
func TestTokenLost(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokens(t, standing(t, middle), time.Minute)
		r := newRig(t, f, family, settings...)
		header(t, r.Server, r.rules, "load")
		// One packet, of either family, but not two.
		r.Server.Run(t, "nft", fmt.Sprintf("add table inet hole; add chain inet hole in { type filter hook prerouting priority -400; };"+
			"add rule inet hole in udp dport %d quota until 70 bytes counter drop", s.Port))
		if got := r.ssh(t, "echo in"); got != "in\n" {
			t.Errorf("ssh prints %q", got)
		}
		if said := r.Server.Run(t, "nft", "list", "table", "inet", "hole"); !strings.Contains(said, "counter packets 1 ") {
			t.Errorf("not one token was lost:\n%s", said)
		}
	})
}

// TestTokenNetworks: each of a window's tokens serves one more network; a network
// that comes again needs none, and one too many is told of the next window.
func TestTokenNetworks(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, _ := tokens(t, standing(t, middle), time.Minute)
		r := newRig(t, f, family, append(settings, "TokensPerWindow 4", "ConnectTimeout 4", "OpenFor 1s")...)
		header(t, r.Server, r.rules, "load")
		from := func(n uint16) (string, error) {
			addr := r.Client.Source(family, n).String()
			r.Client.Shell(t, "ip addr replace "+addr+" dev eth0 $(echo "+addr+" | grep -q : && echo nodad)")
			return r.Client.Try("portknock", "knock", "--wait", "-c", r.profile, "-o", "BindAddress="+addr, "vps", "22")
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
		if said, err := from(networks + 1); err == nil || !strings.Contains(said, "which serves 4 addresses, no more") {
			t.Errorf("one network too many: %v\n%s", err, said)
		}
	})
}

// TestTokenFamilies: one who comes by both families at once spends two tokens. A
// token spent by one of them is spent for the other.
func TestTokenFamilies(t *testing.T) {
	for _, f := range lab.Firewalls {
		if f.Async {
			continue
		}
		settings, s := tokens(t, standing(t, middle), time.Minute)
		r := newRig(t, f, lab.IPv4, settings...)
		header(t, r.Server, r.rules, "load")
		hosts := secret(t, "hosts", r.Server.Addr(lab.IPv6).String()+" vps", r.Server.Addr(lab.IPv4).String()+" vps")
		r.Client.Shell(t, "mount --bind "+hosts+" /etc/hosts")
		profile := secret(t, "config", append([]string{"Host vps"}, settings...)...)
		r.Client.Run(t, "portknock", "knock", "-c", profile, "vps")
		for _, family := range lab.Families {
			if got := r.Client.Probe(t, netip.AddrPortFrom(r.Server.Addr(family), 22)); got != lab.Open {
				t.Errorf("%s: by %v the port is %v", f.Name, family, got)
			}
		}
		for n, step := range at(t, s, time.Now()) {
			in := 0
			for _, family := range lab.Families {
				r.family = family
				if r.admits(t, r.visitor(), step) {
					in++
				}
			}
			if in > 1 {
				t.Errorf("%s: token %d opens by both families", f.Name, n)
			}
		}
	}
}

// TestTokenTurns: what is spent in one window is fresh in another, also where they
// share what they remember it in.
func TestTokenTurns(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		settings, s := tokens(t, 2*time.Second, 0)
		r.load(t, settings, "--horizon", "2m")
		late := time.Now().Add(time.Minute)
		for seen := 0; seen < 6; {
			time.Sleep(time.Until(knock.WindowAt(time.Now(), s.Period).End.Add(100 * time.Millisecond))) // the kernel's clock cannot be faked
			began := time.Now()
			token := r.own(t, s, began)[0]
			first, again := r.admits(t, r.visitor(), token), r.admits(t, r.visitor(), token)
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

// TestTokenAtAService: a token may go to the port of a live service, which others
// go on using, and which sees the token unless it is consumed.
func TestTokenAtAService(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokens(t, standing(t, middle), time.Minute)
		s.Port = 443
		r := newRig(t, f, family, append(settings, "TokenPort 443")...)
		var service *net.UDPConn
		r.Server.Do(func() { service, _ = net.ListenUDP("udp", &net.UDPAddr{Port: 443}) })
		if service == nil {
			t.Fatal("no service")
		}
		t.Cleanup(func() { service.Close() })
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
		valid := r.own(t, s, time.Now())
		hello := knock.Step{Transport: knock.UDP, Port: 443, Payload: []byte("sixteen letters!")}
		for i, consume := range []bool{false, true} {
			flags := []string{}
			if consume {
				flags = append(flags, "--consume")
			}
			header(t, r.Server, emit(t, r.Server, f, r.profile, flags...), "load")
			visitor := r.visitor()
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

// TestTokensOfSeveral: profiles that share a token port do not stand in each
// other's way.
func TestTokensOfSeveral(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokens(t, standing(t, middle), time.Minute)
		settings = append(settings, "DeriveHostKey yes")
		settings = append(append(settings, "Host web", "OpenPorts 22 8080"), settings...)
		r := newRig(t, f, family, settings...)
		r.Server.Listen(t, 8080)
		r.rules = emit(t, r.Server, f, r.profile, "web")
		header(t, r.Server, r.rules, "load")
		master := s.Key
		for _, name := range []string{"vps", "web"} {
			s.Key = master.Derive(name)
			visitor := r.visitor()
			if !r.admits(t, visitor, r.own(t, s, time.Now())[0]) {
				t.Errorf("the token of %s does not open port 22", name)
			}
			if got := r.Client.ProbeFrom(t, visitor, addrPort(r, 8080)); (got == lab.Open) != (name == "web") {
				t.Errorf("to the token of %s port 8080 is %v", name, got)
			}
		}
		if s.Key = master; r.admits(t, r.visitor(), at(t, s, time.Now())...) {
			t.Error("a token of the master key opens")
		}
	})
}

// TestRandomTokens sends what an attacker can: guesses. The bench sends a million.
func TestRandomTokens(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokens(t, standing(t, middle), time.Minute)
		r := newRig(t, f, family, settings...)
		header(t, r.Server, r.rules, "load")
		from := r.Attacker.Addr(family)
		to := netip.AddrPortFrom(r.Server.Addr(family), s.Port)
		random := rand.New(rand.NewPCG(1, 2))
		r.Attacker.Flood(t, 20_000, func(int) lab.Packet {
			guess := make([]byte, knock.TokenSize)
			for i := range guess {
				guess[i] = byte(random.Uint32())
			}
			return lab.Packet{Src: netip.AddrPortFrom(from, 10000), Dst: to, Payload: guess}
		})
		r.expect(t, r.Attacker, lab.Dropped)
		if !r.admits(t, r.visitor(), r.own(t, s, time.Now())[0]) {
			t.Error("after the flood a token does not open")
		}
	})
}

// TestTokenAtOnce: of many addresses that send one token at the same moment, to
// different processors, one is let in; by iptables it may be none.
func TestTokenAtOnce(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokens(t, standing(t, middle), time.Minute)
		s.Tokens = 64
		r := newRig(t, f, family, append(settings, "TokensPerWindow 64", "OpenFor 5m")...)
		header(t, r.Server, r.rules, "load")
		const steering = "/sys/class/net/eth0/queues/rx-0/rps_cpus"
		r.Server.Shell(t, "printf %x $(( (1 << $(nproc)) - 1 )) >"+steering)
		hosts := []*lab.Host{r.Client, r.Attacker}
		tokens := r.own(t, s, time.Now())
		visitors := make([][2][4]netip.Addr, len(tokens))
		for token, step := range tokens {
			var all sync.WaitGroup
			for i, h := range hosts {
				var packets []lab.Packet
				for j := range visitors[token][i] {
					r.visitors++
					from := h.Source(family, r.visitors)
					visitors[token][i][j] = from
					packets = append(packets, lab.Packet{Src: netip.AddrPortFrom(from, 10000),
						Dst: netip.AddrPortFrom(r.Server.Addr(family), s.Port), Payload: step.Payload})
				}
				all.Go(func() { h.Send(t, packets...) })
			}
			all.Wait()
		}
		r.Server.Shell(t, "echo 0 >"+steering) // a probe waits for what comes in order
		for token := range tokens {
			in := 0
			for i, h := range hosts {
				for _, from := range visitors[token][i] {
					if h.ProbeFrom(t, from, addrPort(r, 22)) == lab.Open {
						in++
					}
				}
			}
			if in > 1 || in == 0 && format(f) == "nftables" {
				t.Errorf("token %d has let %d in", token, in)
			}
		}
	})
}
