package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

// sent returns what TCP and UDP left the client up to its first SYN to port 22,
// and the addresses that all of it left from. The kernel's own neighbour and
// multicast messages are neither.
func sentByClient(packets []lab.Packet) (story []string, from []netip.Addr) {
	opened := false
	for _, p := range packets {
		if !p.Out || p.Proto != unix.IPPROTO_TCP && p.Proto != unix.IPPROTO_UDP {
			continue
		}
		if !slices.Contains(from, p.Src.Addr()) {
			from = append(from, p.Src.Addr())
		}
		if opened {
			continue
		}
		proto := "udp"
		if p.Proto == unix.IPPROTO_TCP {
			proto = "tcp " + p.Flags.String()
		}
		story = append(story, fmt.Sprintf("%d %s %d bytes", p.Dst.Port(), proto, len(p.Payload)))
		opened = p.Dst.Port() == 22
	}
	return story, from
}

// TestClientSendsOnlyKnocksBeforeItsSYN captures a whole session: the knocks in order, one packet each
// and nothing else, before the SYN to the service, all from one address. The
// server drops at closed ports, so that nothing but us keeps a SYN from being
// repeated.
func TestClientSendsOnlyKnocksBeforeItsSYN(t *testing.T) {
	t.Parallel()
	for _, bound := range []bool{false, true} {
		t.Run(fmt.Sprintf("bound=%v", bound), func(t *testing.T) {
			eachOf(t, []lab.Firewall{nftables}, lab.Families, func(t *testing.T, f lab.Firewall, family lab.Family) {
				const knocks = "Sequence 7001/udp 8003/tcp 9005/tcp 4000/udp"
				r := newRig(t, f, family, knocks)
				want := r.client.Addr(family)
				if bound {
					want = r.client.Source(family, 7)
					r.addAddr(t, want)
					r.profile = r.vpsProfile(t, "BindAddress "+want.String(), knocks)
				}
				r.setFDPass(t, false) // so that portknock stays
				r.emitRules(t, "--policy", "drop")
				r.runHeaderLine(t, "load")
				capture := r.client.Capture(t)
				r.ssh(t, "sleep 1.5") // longer than the second after which Linux repeats a SYN
				packets := capture.Packets(t)
				story, from := sentByClient(packets)
				if want := []string{
					"7001 udp 0 bytes", "8003 tcp SYN 0 bytes", "9005 tcp SYN 0 bytes", "4000 udp 0 bytes", "22 tcp SYN 0 bytes",
				}; !slices.Equal(story, want) {
					t.Errorf("on the wire:\n%q\nwant:\n%q", story, want)
				}
				if len(from) != 1 || from[0] != want {
					t.Errorf("from %v, want %v", from, want)
				}
				began := slices.IndexFunc(packets, func(p lab.Packet) bool { return p.Dst.Port() == 7001 })
				late := packets[max(began, 0)].Time.Add(time.Second)
				for _, p := range packets {
					if p.Out && p.Dst.Port() != 22 && p.Dst.Port() != 0 && p.Time.After(late) {
						t.Errorf("a second later: %v", p)
					}
				}
			})
		})
	}
}

// TestRotatingClientSendsPrintedSequences: the knocks that leave are those that portknock sequence
// says, for round after round. Within Skew of the window's start they take turns
// with the window's before; nothing else is sent, least of all the next one's.
func TestRotatingClientSendsPrintedSequences(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings []string
		hourly   bool // the windows are hours; else the present is early in a window
		skew     bool // so large that the window before is valid
		proto    uint8
		turns    int
	}{
		{name: "udp", skew: true, proto: unix.IPPROTO_UDP, turns: 2},
		{name: "derived", settings: []string{"DeriveHostKey yes"}, skew: true, proto: unix.IPPROTO_UDP, turns: 2},
		{name: "no skew", proto: unix.IPPROTO_UDP, turns: 1},
		{
			name:     "tcp",
			settings: []string{"Protocol tcp", "PortRange 10000-10099", "Knocks 7"},
			skew:     true,
			proto:    unix.IPPROTO_TCP,
			turns:    2,
		}, {
			name:     "md5-hourly",
			settings: append(hourlySettings(t), "Skew 0"),
			hourly:   true,
			proto:    unix.IPPROTO_TCP,
			turns:    1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := lab.New(t)
			shift, settings := shiftVariable+"=0s", tt.settings
			if tt.hourly {
				halfPast := time.Now().Truncate(time.Hour).Add(30 * time.Minute)
				shift = shiftVariable + "=" + time.Until(halfPast).String()
			} else {
				period, skew := periodWithNowAt(t, early), time.Duration(0)
				if tt.skew {
					skew = period/2 - time.Second
				}
				_, timing := schedule(t, period, skew)
				settings = slices.Concat(timing, []string{"Scheme rotating"}, settings)
			}
			profile := vpsProfile(t, append(settings, "HostName "+n.Server.Addr(lab.IPv4).String(), "ConnectTimeout 2")...)
			said := n.Client.Run(t, "env", shift, "portknock", "sequence", "-c", profile, "vps")
			capture := n.Client.Capture(t)
			if _, err := n.Client.Try("env", shift, "portknock", "-c", profile, "vps", "22"); err == nil {
				t.Fatal("a port without a service has opened")
			}
			if again := n.Client.Run(t, "env", shift, "portknock", "sequence", "-c", profile, "vps"); again != said {
				t.Fatal("a new window has begun meanwhile")
			}
			var turns [][]string
			for line := range strings.Lines(said) {
				sequence, _, _ := strings.Cut(line, "  (")
				turns = append(turns, strings.Fields(sequence))
			}
			if len(turns) != tt.turns {
				t.Fatalf("%d sequences, want %d:\n%s", len(turns), tt.turns, said)
			}
			var sent []string
			for _, p := range capture.Packets(t) {
				if p.Out && p.Proto == tt.proto && p.Dst.Port() != 22 {
					name := map[uint8]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp"}[p.Proto]
					sent = append(sent, fmt.Sprintf("%d/%s", p.Dst.Port(), name))
				}
			}
			knocks, rounds := len(turns[0]), 0
			for ; len(sent) >= knocks; rounds++ {
				if want := turns[rounds%len(turns)]; !slices.Equal(sent[:knocks], want) {
					t.Fatalf("round %d: sent %v, want %v", rounds, sent[:knocks], want)
				}
				sent = sent[knocks:]
			}
			if rounds < 2 {
				t.Errorf("only %d rounds", rounds)
			}
		})
	}
}

// TestFamilySettingsChooseAddress: a name with addresses of both families, and the ways to choose.
func TestFamilySettingsChooseAddress(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nft", "ssh", "sshd")
	n := lab.New(t)
	n.Server.SSHD(t, []uint16{22})
	nameServer(t, n.Client, "server.example", n.Server)
	for _, tt := range []struct {
		flags    []string
		settings string
		want     lab.Family
	}{
		{[]string{"-4"}, "", lab.IPv4},
		{[]string{"-6"}, "", lab.IPv6},
		{nil, "AddressFamily inet", lab.IPv4},
		{nil, "AddressFamily inet6", lab.IPv6},
		{[]string{"-6"}, "AddressFamily inet", lab.IPv6},
		{[]string{"-o", "AddressFamily=inet"}, "AddressFamily inet6", lab.IPv4},
		{nil, "BindAddress " + n.Client.Source(lab.IPv4, 9).String() + "\nAddressFamily inet", lab.IPv4},
		{nil, "BindInterface eth0\nAddressFamily inet6", lab.IPv6},
	} {
		profile := lab.File(t, "config", "Host server.example", twoKnocks, tt.settings)
		capture := n.Client.Capture(t)
		args := append(append([]string{"knock", "--wait", "-c", profile}, tt.flags...), "server.example", "22")
		n.Client.Run(t, "portknock", args...)
		_, from := sentByClient(capture.Packets(t))
		capture.Close()
		if len(from) != 1 || from[0].Is4() != (tt.want == lab.IPv4) {
			t.Errorf("%q with %q: packets from %v, want %v", tt.flags, tt.settings, from, tt.want)
		}
	}
}
