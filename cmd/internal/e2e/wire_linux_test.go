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

// sentByClient returns a line for each TCP and UDP packet that the client sent, up to its
// first packet to port 22. It also returns the source addresses of all these packets and
// the later ones. It leaves out other packets, such as the kernel's neighbor and multicast
// messages.
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

// TestClientSendsOnlyKnocksBeforeItsSYN: before the SYN to the service, the client sends
// only the knocks, in order, each as one packet. All packets have one source address. The
// server drops packets to closed ports, so a SYN is repeated unless portknock prevents it.
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
				r.setFDPass(t, false) // portknock runs until the session ends
				r.emitRules(t, "--policy", "drop")
				r.runHeaderLine(t, "load")
				capture := r.client.Capture(t)
				r.ssh(t, "sleep 1.5") // longer than 1 s, after which Linux repeats a SYN
				packets := capture.Packets(t)
				story, from := sentByClient(packets)
				if want := []string{
					"7001 udp 0 bytes", "8003 tcp SYN 0 bytes", "9005 tcp SYN 0 bytes", "4000 udp 0 bytes", "22 tcp SYN 0 bytes",
				}; !slices.Equal(story, want) {
					t.Errorf("the client sent\n%q\nwant\n%q", story, want)
				}
				if len(from) != 1 || from[0] != want {
					t.Errorf("the packets have the source addresses %v, want %v", from, want)
				}
				began := slices.IndexFunc(packets, func(p lab.Packet) bool { return p.Dst.Port() == 7001 })
				late := packets[max(began, 0)].Time.Add(time.Second)
				for _, p := range packets {
					if p.Out && p.Dst.Port() != 22 && p.Dst.Port() != 0 && p.Time.After(late) {
						t.Errorf("more than 1 s after the first knock, the client sent %v", p)
					}
				}
			})
		})
	}
}

// TestRotatingClientSendsPrintedSequences: in each round, the client sends the knocks that
// portknock sequence prints. Within Skew of the window's start, rounds with the current and
// with the previous window's sequence alternate. The client sends no other knocks, and
// never those of the next window.
func TestRotatingClientSendsPrintedSequences(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		settings  []string
		hourly    bool // the windows are hours; if false, the present is early in a window
		skew      bool // Skew is so large that the previous window is valid
		proto     uint8
		sequences int // number of sequences that the client may send now
	}{
		{name: "udp", skew: true, proto: unix.IPPROTO_UDP, sequences: 2},
		{name: "derived", settings: []string{"DeriveHostKey yes"}, skew: true, proto: unix.IPPROTO_UDP, sequences: 2},
		{name: "no skew", proto: unix.IPPROTO_UDP, sequences: 1},
		{
			name:      "tcp",
			settings:  []string{"Protocol tcp", "PortRange 10000-10099", "Knocks 7"},
			skew:      true,
			proto:     unix.IPPROTO_TCP,
			sequences: 2,
		}, {
			name:      "md5-hourly",
			settings:  append(hourlySettings(t), "Skew 0"),
			hourly:    true,
			proto:     unix.IPPROTO_TCP,
			sequences: 1,
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
			printed := n.Client.Run(t, "env", shift, "portknock", "sequence", "-c", profile, "vps")
			capture := n.Client.Capture(t)
			if _, err := n.Client.Try("env", shift, "portknock", "-c", profile, "vps", "22"); err == nil {
				t.Fatal("portknock has connected to a port on which no service listens")
			}
			if again := n.Client.Run(t, "env", shift, "portknock", "sequence", "-c", profile, "vps"); again != printed {
				t.Fatal("a new window has begun during the test")
			}
			var sequences [][]string
			for line := range strings.Lines(printed) {
				sequence, _, _ := strings.Cut(line, "  (")
				sequences = append(sequences, strings.Fields(sequence))
			}
			if len(sequences) != tt.sequences {
				t.Fatalf("portknock prints %d sequences, want %d:\n%s", len(sequences), tt.sequences, printed)
			}
			var sent []string
			for _, p := range capture.Packets(t) {
				if p.Out && p.Proto == tt.proto && p.Dst.Port() != 22 {
					name := map[uint8]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp"}[p.Proto]
					sent = append(sent, fmt.Sprintf("%d/%s", p.Dst.Port(), name))
				}
			}
			knocks, rounds := len(sequences[0]), 0
			for ; len(sent) >= knocks; rounds++ {
				if want := sequences[rounds%len(sequences)]; !slices.Equal(sent[:knocks], want) {
					t.Fatalf("round %d: the client sent %v, want %v", rounds, sent[:knocks], want)
				}
				sent = sent[knocks:]
			}
			if rounds < 2 {
				t.Errorf("portknock made only %d rounds, want at least 2", rounds)
			}
		})
	}
}

// TestFamilySettingsChooseAddress: for a name with addresses of both families, flags and
// settings choose the family of the packets.
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
			t.Errorf("flags %q with settings %q: packets from %v, want family %v", tt.flags, tt.settings, from, tt.want)
		}
	}
}
