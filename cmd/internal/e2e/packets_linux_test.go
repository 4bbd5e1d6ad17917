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
func sent(packets []lab.Packet) (story []string, from []netip.Addr) {
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

// TestOnTheWire captures a whole session: the knocks in order, one packet each
// and nothing else, before the SYN to the service, all from one address. The
// server drops at closed ports, so that nothing but us keeps a SYN from being
// repeated.
func TestOnTheWire(t *testing.T) {
	for _, family := range lab.Families {
		for _, bound := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/bound=%v", family, bound), func(t *testing.T) {
				t.Parallel()
				settings := []string{"Sequence 7001/udp 8003/tcp 9005/tcp 4000/udp"}
				r := newRig(t, lab.Firewalls[0], family, settings...)
				want := r.Client.Addr(family)
				if bound {
					want = r.Client.Source(family, 7)
					r.Client.Shell(t, "ip addr add "+want.String()+" dev eth0 $(echo "+want.String()+" | grep -q : && echo nodad)")
					r.profile = secret(t, "config", append([]string{"Host vps", "HostName " + r.Server.Addr(family).String(),
						"BindAddress " + want.String()}, settings...)...)
				}
				r.rules = emit(t, r.Server, r.Firewall, r.profile, "--policy", "drop")
				header(t, r.Server, r.rules, "load")
				config := r.sshd.ClientConfig(t, "Host vps", "HostName "+r.Server.Addr(family).String(),
					"ProxyCommand portknock -c "+r.profile+" %h %p")
				capture := r.Client.Capture(t)
				// Longer than the second after which Linux repeats a SYN.
				sshOutput(t, r.Client, "-F", config, "vps", "sleep 1.5")
				packets := capture.Packets(t)
				story, from := sent(packets)
				if got, want := strings.Join(story, "\n"), strings.Join([]string{
					"7001 udp 0 bytes", "8003 tcp SYN 0 bytes", "9005 tcp SYN 0 bytes", "4000 udp 0 bytes", "22 tcp SYN 0 bytes",
				}, "\n"); got != want {
					t.Errorf("on the wire:\n%s\nwant:\n%s", got, want)
				}
				if len(from) != 1 || from[0] != want {
					t.Errorf("from %v, want %v", from, want)
				}
				began := slices.IndexFunc(packets, func(p lab.Packet) bool { return p.Dst.Port() == 7001 })
				for _, p := range packets {
					if p.Out && p.Dst.Port() != 22 && p.Dst.Port() != 0 && p.Time.After(packets[max(began, 0)].Time.Add(time.Second)) {
						t.Errorf("a second later: %v", p)
					}
				}
			})
		}
	}
}

// TestFamilies: a name with addresses of both families, and the ways to choose.
func TestFamilies(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nft", "ssh", "sshd")
	n := lab.New(t)
	n.Server.SSHD(t, []uint16{22})
	hosts := secret(t, "hosts", n.Server.Addr(lab.IPv6).String()+" server.example", n.Server.Addr(lab.IPv4).String()+" server.example")
	n.Client.Shell(t, "mount --bind "+hosts+" /etc/hosts")
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
		profile := secret(t, "config", "Host server.example", "Sequence 7001/udp 8003/tcp", tt.settings)
		capture := n.Client.Capture(t)
		args := append(append([]string{"knock", "--wait", "-c", profile}, tt.flags...), "server.example", "22")
		n.Client.Run(t, "portknock", args...)
		_, from := sent(capture.Packets(t))
		capture.Close()
		if len(from) != 1 || from[0].Is4() != (tt.want == lab.IPv4) {
			t.Errorf("%q with %q: packets from %v, want %v", tt.flags, tt.settings, from, tt.want)
		}
	}
}
