package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
	"golang.org/x/sys/unix"
)

func TestProbeTellsOpenRefusedAndDropped(t *testing.T) {
	t.Parallel()
	Require(t, "nft")
	n := New(t)
	n.Server.Listen(t, 22)
	n.Server.Listen(t, 2222)
	n.Server.Run(t, "nft", `add table inet f; add chain inet f c { type filter hook prerouting priority mangle; };
		add rule inet f c ct state invalid drop; add rule inet f c tcp dport { 2222, 2223 } drop`)
	for _, f := range Families {
		for p, want := range map[uint16]State{22: Open, 23: Refused, 2222: Dropped, 2223: Dropped} {
			for _, from := range []netip.Addr{n.Client.Addr(f), n.Client.Source(f, 7), n.Client.Source(f, 65535)} {
				if got := n.Client.ProbeFrom(t, from, addrPort(n.Server.Addr(f), p)); got != want {
					t.Errorf("%v port %d from %v: %v, want %v", f, p, from, got, want)
				}
			}
		}
	}
}

func TestSweepArrivesWholeAndInOrder(t *testing.T) {
	t.Parallel()
	n := New(t)
	for _, f := range Families {
		c := n.Server.Capture(t)
		start := time.Now()
		n.Client.Sweep(t, n.Server.Addr(f), 0, Ascending)
		took := time.Since(start)
		next := uint16(1)
		for _, p := range c.Packets(t) {
			if p.Out || p.Proto != unix.IPPROTO_TCP {
				continue
			}
			if p.Dst.Port() != next || p.Flags != SYN {
				t.Fatalf("%v: got %v, want port %d", f, p, next)
			}
			next++
		}
		if next != 0 {
			t.Errorf("%v: the sweep ended at %d", f, next-1)
		}
		t.Logf("%v: 65535 SYNs in %v", f, took)
	}
}

func TestCaptureRecordsSentPackets(t *testing.T) {
	t.Parallel()
	n := New(t)
	// sentByTests leaves out multicast, because the kernel repeats its multicast report
	// at some time in the first second of a host.
	sentByTests := func(c *Capture) []Packet {
		return slices.DeleteFunc(slices.Clone(c.Packets(t)), func(p Packet) bool { return p.Dst.Addr().IsMulticast() })
	}
	for _, f := range Families {
		atServer, atClient := n.Server.Capture(t), n.Client.Capture(t)
		to := n.Server.Addr(f)
		sent := []Packet{
			{Src: addrPort(n.Client.Addr(f), 1234), Dst: addrPort(to, 7000), Proto: unix.IPPROTO_UDP, Payload: []byte("token")},
			{Src: addrPort(n.Client.Addr(f), 1235), Dst: addrPort(to, 7001), Proto: unix.IPPROTO_TCP, Flags: SYN},
			{Src: addrPort(n.Client.Source(f, 300), 1236), Dst: addrPort(to, 7002), Proto: unix.IPPROTO_TCP, Flags: FIN | PSH | URG},
		}
		n.Client.Send(t, sent...)
		for name, c := range map[string]*Capture{"server": atServer, "client": atClient} {
			got := slices.DeleteFunc(sentByTests(c), func(p Packet) bool { return p.Out != (name == "client") })
			if len(got) != len(sent) {
				t.Errorf("%s: captured %v, want the packets sent", name, got)
				continue
			}
			for i, p := range got {
				if p.String() != sent[i].String() || !bytes.Equal(p.Payload, sent[i].Payload) {
					t.Errorf("%s: got %v, want %v", name, p, sent[i])
				}
				if time.Since(p.Time) > limit {
					t.Errorf("%s: the packet's time is %v", name, p.Time)
				}
			}
		}
		if got := sentByTests(n.Attacker.Capture(t)); len(got) != 0 {
			t.Errorf("the attacker captures packets between client and server: %v", got)
		}
	}
}

// The server's kernel checks the checksums before it delivers a datagram.
func TestRawDatagramsHaveValidChecksums(t *testing.T) {
	t.Parallel()
	n := New(t)
	for _, f := range Families {
		fd, err := -1, error(nil)
		n.Server.Do(func() {
			domain := map[Family]int{IPv4: unix.AF_INET, IPv6: unix.AF_INET6}[f]
			fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err == nil && f == IPv4 {
				err = unix.Bind(fd, &unix.SockaddrInet4{Port: 9})
			} else if err == nil {
				err = unix.Bind(fd, &unix.SockaddrInet6{Port: 9})
			}
		})
		must(t, err)
		for _, payload := range []string{"", "x", "odd", "even"} {
			n.Client.KnockFrom(t, n.Client.Source(f, 5), n.Server.Addr(f),
				knock.Step{Transport: knock.UDP, Port: 9, Payload: []byte(payload)})
			n.Server.Capture(t).Packets(t)
			buf := make([]byte, 100)
			if got, _, err := unix.Recvfrom(fd, buf, 0); err != nil || string(buf[:max(got, 0)]) != payload {
				t.Errorf("%v: payload %q arrives as %q, error %v", f, payload, buf[:max(got, 0)], err)
			}
		}
		_ = unix.Close(fd)
	}
}

// Only connection tracking reassembles fragments before a rule looks for the TCP flags.
func TestFragmentedSYNBypassesRuleWithoutConntrack(t *testing.T) {
	t.Parallel()
	Require(t, "nft")
	n := New(t)
	n.Server.Listen(t, 22)
	to := addrPort(n.Server.Addr(IPv4), 22)
	const rules = `table inet f; delete table inet f; table inet f { chain c { type filter hook prerouting priority mangle;
		%s tcp dport 22 tcp flags & (fin|syn|rst|ack) == syn drop; }; }`
	for _, c := range []struct {
		rule string
		want State
	}{{"", Open}, {"ct state invalid drop;", Dropped}} {
		n.Server.RunInput(t, strings.NewReader(fmt.Sprintf(rules, c.rule)), "nft", "-f", "-")
		if got := n.Client.Probe(t, to); got != Dropped {
			t.Errorf("with the rule %q, the port is %v for a whole SYN, want dropped", c.rule, got)
		}
		if got := n.Client.ProbeAs(t, Packet{Dst: to, Flags: SYN}, Fragments(8)); got != c.want {
			t.Errorf("with the rule %q, the port is %v for a SYN in two fragments, want %v", c.rule, got, c.want)
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	for _, family := range Families {
		f.Add(Packet{Src: addrPort(family.addr(1), 1), Dst: addrPort(family.addr(2), 2), Proto: unix.IPPROTO_TCP, Flags: SYN}.marshal())
		f.Add(Packet{Src: netip.AddrPortFrom(family.addr(1), 1), Dst: addrPort(family.addr(2), 2), Proto: unix.IPPROTO_UDP}.marshal())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parse(b); ok && len(p.Payload) > len(b) {
			t.Errorf("%d bytes of payload in a packet of %d bytes", len(p.Payload), len(b))
		}
	})
}
