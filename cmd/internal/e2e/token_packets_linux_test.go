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
	"golang.org/x/sys/unix"
)

// TestTokenOpensOnlyFromValidUDPPackets: which packets that contain a token open the port.
func TestTokenOpensOnlyFromValidUDPPackets(t *testing.T) {
	type packed struct {
		opens bool
		as    lab.Reshape
	}
	both := map[string]packed{
		"two fragments":      {true, lab.Fragments(8)},
		"three fragments":    {true, lab.Fragments(8, 16)},
		"UDP-Lite":           {false, lab.As(unix.IPPROTO_UDPLITE)},
		"a SYN":              {false, lab.As(unix.IPPROTO_TCP)},
		"a length too short": {false, lab.Patch(4, 0, 23)},
		"a length too long":  {false, lab.Patch(4, 0, 25)},
		"cut":                {false, lab.Cut(23)},
		"in IPv4":            {false, lab.Inside(unix.IPPROTO_IPIP)},
		"in GRE":             {false, lab.Inside(unix.IPPROTO_GRE, 0, 0, 8, 0)},
	}
	of := func(f lab.Firewall, family lab.Family) map[string]packed {
		if family == lab.IPv4 {
			return map[string]packed{
				"options":               {true, lab.Options(1, 1, 1, 0)},
				"options and fragments": {true, lab.Options(1, 1, 1, 0).Then(lab.Fragments(16))},
				"no checksum":           {true, lab.Patch(6, 0, 0)},
				"an error about it":     {false, lab.Inside(unix.IPPROTO_ICMP, 3, 3, 0, 0, 0, 0, 0, 0)},
			}
		}
		return map[string]packed{
			"one fragment":        {true, lab.Fragments()},
			"hop by hop":          {format(f) == "nftables", lab.Extension(unix.IPPROTO_HOPOPTS, padding...)},
			"destination options": {format(f) == "nftables", lab.Extension(unix.IPPROTO_DSTOPTS, padding...)},
			"an error about it":   {false, lab.Inside(unix.IPPROTO_ICMPV6, 1, 4, 0, 0, 0, 0, 0, 0)},
		}
	}
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r, s := newTokenRig(t, f, family, "TokensPerWindow 64", "OpenFor 5m")
		s.Tokens = 64
		fresh := r.familyTokens(t, s, time.Now())
		for _, table := range []map[string]packed{both, of(f, family)} {
			for name, p := range table {
				from := r.freshAddr()
				r.client.SendAs(t, lab.Packet{Src: netip.AddrPortFrom(from, 0), Dst: r.port(s.Port), Payload: fresh[0].Payload}, p.as)
				if got := r.admits(t, from); got != p.opens {
					t.Errorf("%s opens: %v", name, got)
				}
				if p.opens {
					fresh = fresh[1:]
				}
			}
		}
	})
}

// fixed is a schedule of these tokens for ever.
type fixed struct {
	period time.Duration
	tokens [][]byte
}

func (s fixed) At(t time.Time) (all []knock.Sequence, w knock.Window, err error) {
	for _, token := range s.tokens {
		all = append(all, knock.Sequence{{Transport: knock.UDP, Port: 62202, Payload: token}})
	}
	return all, knock.WindowAt(t, s.period), nil
}

// TestTokenMayContainAnyBytes: no byte of a token means anything to a firewall. A token that two
// windows share is spent once.
func TestTokenMayContainAnyBytes(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		g := alternatingGuard("odd of two", nil, nil)
		s := fixed{period: g.Schedule.(alternating).period}
		for _, text := range []string{"\x00", "\xff", "\x00\x00\x00\x00\x01", "\x01", "\x80", "0x", "\"&&;", "\n\x00"} {
			token := append([]byte(text), make([]byte, knock.TokenSize-len(text))...)
			if text == "\xff" {
				token = []byte(strings.Repeat(text, knock.TokenSize))
			}
			s.tokens = append(s.tokens, token, append([]byte{0}, token[:15]...)) // one for each family
			s.tokens[len(s.tokens)-1][15] ^= 0x55
		}
		g.Schedule = s
		loadGuard(t, r.server, f, g, 2*time.Hour)
		stranger := r.freshAddr()
		for i, step := range r.familyTokens(t, s, time.Now()) {
			if !r.admits(t, r.freshAddr(), step) {
				t.Errorf("token %d, %x, does not open", i, step.Payload)
			}
			if format(f) == "nftables" && r.admits(t, stranger, step) {
				t.Errorf("token %d, %x, opens twice", i, step.Payload)
			}
		}
	})
}

// TestGuessedTokensOpenNothing sends what an attacker can: guesses. The bench sends a million.
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
			t.Error("after the flood a token does not open")
		}
	})
}

// TestTokenSentByManyAtOnceAdmitsAtMostOne: of many addresses that send one token at the same moment, to
// different processors, one is let in; by iptables it may be none.
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
		r.server.Shell(t, "echo 0 >"+steering) // a probe waits for what comes in order
		for token := range tokens {
			in := 0
			for i, h := range hosts {
				for _, from := range senders[token][i] {
					if h.ProbeFrom(t, from, r.port(22)) == lab.Open {
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
