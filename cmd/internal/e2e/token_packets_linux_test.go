package e2e

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
	"golang.org/x/sys/unix"
)

// TestTokenOpensOnlyFromValidUDPPackets: a token in a valid UDP packet opens the port, also
// in fragments. A token in another packet does not. With iptables, a token behind an IPv6
// extension header does not open the port either.
func TestTokenOpensOnlyFromValidUDPPackets(t *testing.T) {
	type packed struct {
		opens bool
		as    lab.Reshape
	}
	bothFamilies := map[string]packed{
		"two fragments":      {true, lab.Fragments(8)},
		"three fragments":    {true, lab.Fragments(8, 16)},
		"UDP-Lite":           {false, lab.As(unix.IPPROTO_UDPLITE)},
		"a TCP packet":       {false, lab.As(unix.IPPROTO_TCP)},
		"a length too short": {false, lab.Patch(4, 0, 23)},
		"a length too long":  {false, lab.Patch(4, 0, 25)},
		"cut short":          {false, lab.Cut(23)},
		"inside IPv4":        {false, lab.Inside(unix.IPPROTO_IPIP)},
		"inside GRE":         {false, lab.Inside(unix.IPPROTO_GRE, 0, 0, 8, 0)},
	}
	byFamily := func(f lab.Firewall, family lab.Family) map[string]packed {
		if family == lab.IPv4 {
			return map[string]packed{
				"options":               {true, lab.Options(1, 1, 1, 0)},
				"options and fragments": {true, lab.Options(1, 1, 1, 0).Then(lab.Fragments(16))},
				"no checksum":           {true, lab.Patch(6, 0, 0)},
				"quoted in ICMP error":  {false, lab.Inside(unix.IPPROTO_ICMP, 3, 3, 0, 0, 0, 0, 0, 0)},
			}
		}
		return map[string]packed{
			"one fragment":         {true, lab.Fragments()},
			"hop by hop":           {format(f) == "nftables", lab.Extension(unix.IPPROTO_HOPOPTS, padding...)},
			"destination options":  {format(f) == "nftables", lab.Extension(unix.IPPROTO_DSTOPTS, padding...)},
			"quoted in ICMP error": {false, lab.Inside(unix.IPPROTO_ICMPV6, 1, 4, 0, 0, 0, 0, 0, 0)},
		}
	}
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family, "TokensPerWindow 64", "OpenFor 5m")
		s.Tokens = 64
		fresh := r.familyTokens(t, s, time.Now())
		for _, table := range []map[string]packed{bothFamilies, byFamily(f, family)} {
			for name, p := range table {
				from := r.freshAddr()
				r.client.SendAs(t, lab.Packet{Src: netip.AddrPortFrom(from, 0), Dst: r.port(s.Port), Payload: fresh[0].Payload}, p.as)
				if got := r.admits(t, from); got != p.opens {
					t.Errorf("a token in this packet (%s) opens port 22: %v", name, got)
				}
				if p.opens {
					fresh = fresh[1:]
				}
			}
		}
	})
}

// fixedTokens is a schedule that has the same tokens in every window.
type fixedTokens struct {
	period time.Duration
	tokens [][]byte
}

// At returns the tokens, and the window that contains t.
func (s fixedTokens) At(t time.Time) (all []knock.Sequence, w knock.Window, err error) {
	for _, token := range s.tokens {
		all = append(all, knock.Sequence{{Transport: knock.UDP, Port: 62202, Payload: token}})
	}
	return all, knock.WindowAt(t, s.period), nil
}

// TestTokenMayContainAnyBytes: a token opens the port whatever bytes it contains. With
// nftables, a token that belongs to two windows opens for one address only.
func TestTokenMayContainAnyBytes(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		g := alternatingGuard("odd of two", nil, nil)
		s := fixedTokens{period: g.Schedule.(alternating).period}
		for _, text := range []string{"\x00", "\xff", "\x00\x00\x00\x00\x01", "\x01", "\x80", "0x", "\"&&;", "\n\x00"} {
			token := append([]byte(text), make([]byte, knock.TokenSize-len(text))...)
			if text == "\xff" {
				token = []byte(strings.Repeat(text, knock.TokenSize))
			}
			s.tokens = append(s.tokens, token, append([]byte{0}, token[:15]...)) // two tokens, one for each family
			s.tokens[len(s.tokens)-1][15] ^= 0x55
		}
		g.Schedule = s
		loadGuard(t, r.server, f, g, rules.Options{})
		second := r.freshAddr()
		for i, step := range r.familyTokens(t, s, time.Now()) {
			if !r.admits(t, r.freshAddr(), step) {
				t.Errorf("token %d, %x, does not open port 22", i, step.Payload)
			}
			if format(f) == "nftables" && r.admits(t, second, step) {
				t.Errorf("token %d, %x, opens port 22 for a second address", i, step.Payload)
			}
		}
	})
}

// TestGuessedTokensOpenNothing: 20,000 random guesses of an attacker open nothing, and then
// a token opens the port. The bench sends a million guesses.
func TestGuessedTokensOpenNothing(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family)
		from := netip.AddrPortFrom(r.attacker.Addr(family), 10000)
		random := rand.New(rand.NewPCG(1, 2))
		r.attacker.Flood(t, 20_000, func(int) lab.Packet {
			guess := make([]byte, knock.TokenSize)
			for i := range guess {
				guess[i] = byte(random.Uint32())
			}
			return lab.Packet{Src: from, Dst: r.port(s.Port), Payload: guess}
		})
		r.expect(t, r.attacker, lab.Dropped)
		if !r.admits(t, r.freshAddr(), r.familyTokens(t, s, time.Now())[0]) {
			t.Error("after the flood, a token does not open port 22")
		}
	})
}

// TestTokenSentByManyAtOnceAdmitsAtMostOne: many addresses send one token at the same
// moment, and different processors of the server receive the packets. The guard admits one
// of these addresses. With iptables it may admit none.
func TestTokenSentByManyAtOnceAdmitsAtMostOne(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family, "TokensPerWindow 64", "OpenFor 5m")
		s.Tokens = 64
		const steering = "/sys/class/net/eth0/queues/rx-0/rps_cpus"
		r.server.Shell(t, "printf %x $(( (1 << $(nproc)) - 1 )) >"+steering)
		hosts := []*lab.Host{r.client, r.attacker}
		tokens := r.familyTokens(t, s, time.Now())
		senders := make([][2][4]netip.Addr, len(tokens))
		for token, step := range tokens {
			var all sync.WaitGroup
			for i, h := range hosts {
				var packets []lab.Packet
				for j := range senders[token][i] {
					r.freshAddrs++
					from := h.Source(family, r.freshAddrs)
					senders[token][i][j] = from
					packets = append(packets, lab.Packet{Src: netip.AddrPortFrom(from, 10000), Dst: r.port(s.Port), Payload: step.Payload})
				}
				all.Go(func() { h.Send(t, packets...) })
			}
			all.Wait()
		}
		r.server.Shell(t, "echo 0 >"+steering) // a probe needs packets in order
		for token := range tokens {
			admitted := 0
			for i, h := range hosts {
				for _, from := range senders[token][i] {
					if h.ProbeFrom(t, from, r.port(22)) == lab.Open {
						admitted++
					}
				}
			}
			if admitted > 1 || admitted == 0 && format(f) == "nftables" {
				t.Errorf("token %d has admitted %d addresses", token, admitted)
			}
		}
	})
}
