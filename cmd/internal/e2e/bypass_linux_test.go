package e2e

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

// These tests try to bypass the guard without the right knocks, and try to keep
// clients out that send the right knocks.

const ece, cwr lab.Flags = 0x40, 0x80 // flags of a SYN that offers ECN

var padding = []byte{1, 4, 0, 0, 0, 0} // the content of an extension header

// TestEncapsulatedSYNDropped: the guard drops a SYN that the server would answer, in
// every form: in fragments, with options or extension headers, in a tunnel, and to
// other addresses of the server. So does the drop policy at other ports.
func TestEncapsulatedSYNDropped(t *testing.T) {
	type packed struct {
		as    lab.Reshape
		flags lab.Flags
		data  string
		to    string
		open  bool // without a guard, every kernel answers this packet
	}
	hop, dest := lab.Extension(unix.IPPROTO_HOPOPTS, padding...), lab.Extension(unix.IPPROTO_DSTOPTS, padding...)
	// The first fragment is sent twice, with different flags.
	twice := func(flags int) lab.Reshape {
		return func(packet []byte) [][]byte {
			all := lab.Fragments(24)(packet)
			return append(lab.Patch(flags, byte(lab.ACK))(all[0]), all...)
		}
	}
	bothFamilies := map[string]packed{
		"data":            {data: "SSH-2.0-", open: true},
		"two fragments":   {as: lab.Fragments(24), data: strings.Repeat("x", 40), open: true},
		"three fragments": {as: lab.Fragments(24, 32), data: strings.Repeat("x", 40), open: true},
		"ECN":             {flags: ece | cwr, open: true},
		"PSH URG":         {flags: lab.PSH | lab.URG, open: true},
		"FIN":             {flags: lab.FIN},
		"RST":             {flags: lab.RST},
		"inside IPv4":     {as: lab.Inside(unix.IPPROTO_IPIP)},
		"inside GRE":      {as: lab.Inside(unix.IPPROTO_GRE, 0, 0, 8, 0)},
	}
	byFamily := map[lab.Family]map[string]packed{
		lab.IPv4: {
			"first fragment without TCP flags":            {as: lab.Fragments(8), open: true},
			"first fragment without the whole TCP header": {as: lab.Fragments(16), open: true},
			"options":                       {as: lab.Options(1, 1, 1, 0), open: true},
			"options and fragments":         {as: lab.Options(1, 1, 1, 0).Then(lab.Fragments(8)), open: true},
			"two first fragments":           {as: twice(13), data: "SSH-2.0-"},
			"source routing":                {as: lab.Options(131, 3, 4, 0)},
			"another address of the server": {to: "198.51.100.1", open: true},
			"broadcast":                     {to: "192.0.2.255"},
			"multicast":                     {to: "224.0.0.1"},
			"loopback":                      {to: "127.0.0.1"},
		},
		lab.IPv6: {
			"first fragment without TCP flags":          {as: lab.Fragments(8)},
			"hop by hop":                                {as: hop, open: true},
			"destination options":                       {as: dest, open: true},
			"hop by hop, and destination options twice": {as: dest.Then(dest).Then(hop), open: true},
			"two first fragments":                       {as: twice(8 + 13), data: "SSH-2.0-"},
			"routing header":                            {as: lab.Extension(unix.IPPROTO_ROUTING, 4, 0, 0, 0, 0, 0)},
			"one fragment":                              {as: lab.Fragments(), open: true},
			"destination options in one fragment":       {as: dest.Then(lab.Fragments()), open: true},
			"destination options in two fragments":      {as: dest.Then(lab.Fragments(32)), data: "SSH-2.0-"},
			"fragments of fragments":                    {as: lab.Fragments(24).Then(lab.Fragments(8)), data: "SSH-2.0-"},
			"small fragments of fragments":              {as: lab.Fragments(8).Then(lab.Fragments(8))},
			"another address of the server":             {to: "2001:db8:77::1", open: true},
			"link-local address":                        {to: "fe80::1", open: true},
			"address of all routers of the subnet":      {to: "2001:db8::"},
			"multicast":                                 {to: "ff02::1"},
		},
	}
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		r.server.Shell(t, `ip addr add fe80::1/64 dev eth0 nodad
			ip addr add 2001:db8:77::1/128 dev lo; ip addr add 198.51.100.1/32 dev lo
			echo 1 >/proc/sys/net/ipv6/conf/all/forwarding`)
		r.server.Listen(t, 8080)
		for _, policy := range []string{"", "guard", "drop"} {
			ports := []uint16{22, 8080}
			if policy == "guard" {
				ports = ports[:1] // the port that the guard closes
			}
			if policy != "" {
				r.emitRules(t, "--policy", policy)
				r.runHeaderLine(t, "load")
			}
			for _, table := range []map[string]packed{bothFamilies, byFamily[family]} {
				for name, p := range table {
					to := r.addr()
					if p.to != "" {
						to = netip.MustParseAddr(p.to)
					}
					for _, port := range ports {
						syn := lab.Packet{Dst: netip.AddrPortFrom(to, port), Flags: lab.SYN | p.flags, Payload: []byte(p.data)}
						got := r.attacker.ProbeAs(t, syn, p.as)
						if policy == "" && p.open && got != lab.Open || policy != "" && got == lab.Open {
							t.Errorf("%s, policy %q: port %d is %v", name, policy, port, got)
						}
					}
				}
			}
		}
	})
}

// closeSilently ends a connection without a packet to the other side. Close alone would
// not be enough: the kernel delays the close while a command that is about to start has
// a copy of the socket.
func closeSilently(t testing.TB, c net.Conn) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
				t.Error(err)
			}
			nobody := unix.RawSockaddr{Family: unix.AF_UNSPEC}
			if _, _, e := unix.Syscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&nobody)), unsafe.Sizeof(nobody)); e != 0 {
				t.Error(e)
			}
		})
	}
	if err != nil {
		t.Error(err)
	}
	_ = c.Close()
}

// TestEstablishedTupleCannotBypassGuard: after a session, the kernel still tracks the
// session's addresses and ports. A new session from the same port does not bypass the
// guard.
func TestEstablishedTupleCannotBypassGuard(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 2200")
		for port, want := range map[uint16]lab.State{2200: lab.Dropped, 2201: lab.Open} {
			left, gone := make(chan bool), make(chan bool)
			r.server.Serve(t, port, func(c net.Conn) {
				_, _ = io.CopyN(c, c, 1)
				<-left
				closeSilently(t, c)
				close(gone)
			})
			c := r.client.Dial(t, "tcp", r.port(port).String())
			r.runHeaderLine(t, "load")
			// The kernel tracks the connection from its next packet on.
			_, err := c.Write([]byte("x"))
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if err != nil {
				t.Fatal(err)
			}
			src := c.LocalAddr().(*net.TCPAddr).AddrPort()
			closeSilently(t, c)
			close(left)
			<-gone
			if got := r.client.ProbeAs(t, lab.Packet{Src: src, Dst: r.port(port), Flags: lab.SYN}, nil); got != want {
				t.Errorf("after a session, port %d is %v for a SYN from the same port, want %v", port, got, want)
			}
			r.runHeaderLine(t, "unload")
		}
	})
}

// TestPacketsBeforeSYNCannotBypassGuard: other packets from the same port, before a SYN, do
// not make the guard let the SYN through. They may make the kernel track a connection, also
// one that NAT leads to the guarded port, or that --public leaves open.
func TestPacketsBeforeSYNCannotBypassGuard(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		r.redirect(t)
		for _, policy := range []string{"guard", "drop"} {
			r.emitRules(t, "--policy", policy, "--public", "2224/tcp")
			r.runHeaderLine(t, "load")
			r.expectPaths(t, "policy "+policy, r.attacker, lab.Open, 2224)
			capture := r.attacker.Capture(t)
			var sent []lab.Packet
			for _, flags := range []lab.Flags{lab.ACK, lab.SYN | lab.ACK, lab.FIN | lab.ACK, lab.RST} {
				for _, port := range []uint16{22, 2222, 2223} {
					for _, first := range []uint16{port, 2224} {
						src := netip.AddrPortFrom(r.attacker.Addr(family), uint16(40000+len(sent)))
						before := lab.Packet{Src: src, Dst: r.port(first), Flags: flags}
						syn := lab.Packet{Src: src, Dst: r.port(port), Flags: lab.SYN}
						sent = append(sent, before, syn, before, before, syn, syn)
					}
				}
			}
			r.attacker.Send(t, sent...)
			for _, p := range capture.Packets(t) {
				if !p.Out && p.Flags&lab.SYN != 0 {
					t.Errorf("policy %s: the server answers a SYN: %v", policy, p)
				}
			}
		}
	})
}

// TestMulticastAndBroadcastCannotBypassGuard: the guard also covers datagrams to
// multicast and broadcast addresses, which a service receives too.
func TestMulticastAndBroadcastCannotBypassGuard(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 22/tcp 5000/udp")
		r.server.Shell(t, "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding") // only routers have the address 2001:db8::
		service := lab.Socket(t, r.server, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":5000") })
		local := r.server.Dial(t, "udp", "127.0.0.1:5000")
		all := []string{"192.0.2.255", "255.255.255.255"}
		if family == lab.IPv6 {
			all = []string{"2001:db8::", "ff02::1", "ff02::2", "ff05::2"}
		}
		all = append(all, r.addr().String())
		hears := func(from *lab.Host) string {
			for _, to := range all {
				from.SendAs(t, lab.Packet{Dst: netip.AddrPortFrom(netip.MustParseAddr(to), 5000), Payload: []byte(to)}, nil)
			}
			from.Capture(t).Packets(t) // waits until the datagrams have arrived
			return datagrams(t, service, local)
		}
		if got, want := hears(r.attacker), strings.Join(all, " "); got != want {
			t.Fatalf("without a guard the service receives %q, want %q", got, want)
		}
		r.runHeaderLine(t, "load")
		if got := hears(r.attacker); got != "" {
			t.Errorf("with a guard the service receives %q, want nothing", got)
		}
		r.knockAndWait(t, r.client)
		if got, want := hears(r.client), strings.Join(all, " "); got != want {
			t.Errorf("after the knocks the service receives %q, want %q", got, want)
		}
	})
}

// datagrams returns the datagrams that a service has received, with a space between two.
// local is a connection to the service from its own host.
func datagrams(t testing.TB, service net.PacketConn, local net.Conn) string {
	t.Helper()
	if _, err := local.Write([]byte("end")); err != nil {
		t.Fatal(err)
	}
	var heard []string
	for buf := make([]byte, 100); ; {
		_ = service.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, _, err := service.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if string(buf[:n]) == "end" {
			return strings.Join(heard, " ")
		}
		heard = append(heard, string(buf[:n]))
	}
}

// TestForgedKnocksCannotKeepClientsOut: forged first knocks from a client's address do
// not keep the client out. Forged knocks from more addresses than a firewall remembers
// do not affect admitted addresses. They keep other addresses out only for seconds.
func TestForgedKnocksCannotKeepClientsOut(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newGuardedRig(t, f, family, "Sequence 7001/udp 8003/udp 9005/udp", "KnockTimeout 1s", "OpenFor 5m")
		session := r.openEcho(t, "vps")
		knocks, first := sequence("7001/udp 8003/udp 9005/udp"), r.port(7001)
		victim := r.freshAddr()
		r.attacker.Flood(t, 1000, func(int) lab.Packet {
			return lab.Packet{Src: netip.AddrPortFrom(victim, 10000), Dst: first}
		})
		if !r.admits(t, victim, knocks...) {
			t.Error("forged first knocks from an address keep this address out")
		}
		forged := 66_000
		if format(f) == "iptables" {
			forged = 2_000
		}
		hosts := []*lab.Host{r.attacker, r.client} // one host alone has too few addresses
		r.attacker.Flood(t, forged, func(i int) lab.Packet {
			from := hosts[i/60_000].Source(family, uint16(i%60_000+1000))
			return lab.Packet{Src: netip.AddrPortFrom(from, 10000), Dst: first}
		})
		session.say(t, "after the flood")
		r.expect(t, r.client, lab.Open)
		// The kernel removes expired entries within three seconds. The rest is for a busy machine.
		from := r.freshAddr()
		lab.Await(t, 30*time.Second, func() string {
			if r.admits(t, from, knocks...) {
				return ""
			}
			return "after the flood, a new address is not admitted"
		})
	})
}
