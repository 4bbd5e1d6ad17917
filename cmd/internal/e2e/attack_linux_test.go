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
	"github.com/portknock/portknock/knock"
	"golang.org/x/sys/unix"
)

// These tests look for ways around the guard that need no right knock, and for
// ways to make it refuse one.

const ece, cwr lab.Flags = 0x40, 0x80 // of a SYN that offers ECN

var padding = []byte{1, 4, 0, 0, 0, 0} // in an extension header

// TestPackedSYN: no way to pack a SYN that the server would answer brings it past
// the guard.
func TestPackedSYN(t *testing.T) {
	type packed struct {
		as    lab.Reshape
		flags lab.Flags
		data  string
		to    string
		open  bool // without a guard, on every kernel
	}
	hop, dest := lab.Extension(unix.IPPROTO_HOPOPTS, padding...), lab.Extension(unix.IPPROTO_DSTOPTS, padding...)
	// A first fragment that comes twice, with other flags each time.
	twice := func(flags int) lab.Reshape {
		return func(packet []byte) [][]byte {
			all := lab.Fragments(24)(packet)
			return append(lab.Patch(flags, byte(lab.ACK))(all[0]), all...)
		}
	}
	both := map[string]packed{
		"data":            {data: "SSH-2.0-", open: true},
		"two fragments":   {as: lab.Fragments(24), data: strings.Repeat("x", 40), open: true},
		"three fragments": {as: lab.Fragments(24, 32), data: strings.Repeat("x", 40), open: true},
		"ECN":             {flags: ece | cwr, open: true},
		"PSH URG":         {flags: lab.PSH | lab.URG, open: true},
		"FIN":             {flags: lab.FIN},
		"RST":             {flags: lab.RST},
		"in IPv4":         {as: lab.Inside(unix.IPPROTO_IPIP)},
		"in GRE":          {as: lab.Inside(unix.IPPROTO_GRE, 0, 0, 8, 0)},
	}
	of := map[lab.Family]map[string]packed{
		lab.IPv4: {
			"a first fragment without flags": {as: lab.Fragments(8), open: true},
			"a first fragment without all":   {as: lab.Fragments(16), open: true},
			"options":                        {as: lab.Options(1, 1, 1, 0), open: true},
			"options and fragments":          {as: lab.Options(1, 1, 1, 0).Then(lab.Fragments(8)), open: true},
			"two first fragments":            {as: twice(13), data: "SSH-2.0-"},
			"source routing":                 {as: lab.Options(131, 3, 4, 0)},
			"another address":                {to: "198.51.100.1", open: true},
			"broadcast":                      {to: "192.0.2.255"},
			"multicast":                      {to: "224.0.0.1"},
			"loopback":                       {to: "127.0.0.1"},
		},
		lab.IPv6: {
			"a first fragment without flags": {as: lab.Fragments(8)},
			"hop by hop":                     {as: hop, open: true},
			"destination options":            {as: dest, open: true},
			"all of these":                   {as: dest.Then(dest).Then(hop), open: true},
			"two first fragments":            {as: twice(8 + 13), data: "SSH-2.0-"},
			"a routing header":               {as: lab.Extension(unix.IPPROTO_ROUTING, 4, 0, 0, 0, 0, 0)},
			"one fragment":                   {as: lab.Fragments(), open: true},
			"destination options in one":     {as: dest.Then(lab.Fragments()), open: true},
			"destination options in two":     {as: dest.Then(lab.Fragments(32)), data: "SSH-2.0-"},
			"fragments of fragments":         {as: lab.Fragments(24).Then(lab.Fragments(8)), data: "SSH-2.0-"},
			"small fragments of fragments":   {as: lab.Fragments(8).Then(lab.Fragments(8))},
			"another address":                {to: "2001:db8:77::1", open: true},
			"the link's":                     {to: "fe80::1", open: true},
			"any router's":                   {to: "2001:db8::"},
			"multicast":                      {to: "ff02::1"},
		},
	}
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		r.Server.Shell(t, `ip addr add fe80::1/64 dev eth0 nodad
			ip addr add 2001:db8:77::1/128 dev lo; ip addr add 198.51.100.1/32 dev lo
			echo 1 >/proc/sys/net/ipv6/conf/all/forwarding`)
		probe := func(p packed) lab.State {
			to := r.Server.Addr(family)
			if p.to != "" {
				to = netip.MustParseAddr(p.to)
			}
			return r.Attacker.ProbeAs(t, lab.Packet{Dst: netip.AddrPortFrom(to, 22), Flags: lab.SYN | p.flags, Payload: []byte(p.data)}, p.as)
		}
		for _, loaded := range []bool{false, true} {
			if loaded {
				header(t, r.Server, r.rules, "load")
			}
			for _, table := range []map[string]packed{both, of[family]} {
				for name, p := range table {
					if got := probe(p); !loaded && p.open && got != lab.Open || loaded && got == lab.Open {
						t.Errorf("%s, guarded: %v: the port is %v", name, loaded, got)
					}
				}
			}
		}
	})
}

// vanish ends a connection without a word to the other side. It does not leave
// that to the closing, which the kernel puts off while a command that is about to
// start has a copy of the socket.
func vanish(t testing.TB, c net.Conn) {
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

// TestSessionIsNoDoor: what the kernel remembers of a session is no way to begin
// another one from the same port.
func TestSessionIsNoDoor(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp", "OpenPorts 2200")
		for port, want := range map[uint16]lab.State{2200: lab.Dropped, 2201: lab.Open} {
			left, gone := make(chan bool), make(chan bool)
			r.Server.Serve(t, port, func(c net.Conn) {
				_, _ = io.CopyN(c, c, 1)
				<-left
				vanish(t, c)
				close(gone)
			})
			var c net.Conn
			var err error
			r.Client.Do(func() { c, err = net.Dial("tcp", addrPort(r, port).String()) })
			if err != nil {
				t.Fatal(err)
			}
			header(t, r.Server, r.rules, "load")
			// From now on the kernel follows it.
			_, err = c.Write([]byte("x"))
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if err != nil {
				t.Fatal(err)
			}
			src := c.LocalAddr().(*net.TCPAddr).AddrPort()
			vanish(t, c)
			close(left)
			<-gone
			if got := r.Client.ProbeAs(t, lab.Packet{Src: src, Dst: addrPort(r, port), Flags: lab.SYN}, nil); got != want {
				t.Errorf("port %d is %v to who had a session, want %v", port, got, want)
			}
			header(t, r.Server, r.rules, "undo")
		}
	})
}

// TestDatagramsToAnyAddress: a service that hears datagrams to groups and to all
// is guarded from these too.
func TestDatagramsToAnyAddress(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp", "OpenPorts 22/tcp 5000/udp")
		r.Server.Shell(t, "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding") // routers have an address in common
		var service, local net.PacketConn
		r.Server.Do(func() {
			service, _ = net.ListenPacket("udp", ":5000")
			local, _ = net.ListenPacket("udp", "127.0.0.1:0")
		})
		if service == nil || local == nil {
			t.Fatal("no service")
		}
		defer service.Close()
		defer local.Close()
		all := []string{"192.0.2.255", "255.255.255.255"}
		if family == lab.IPv6 {
			all = []string{"2001:db8::", "ff02::1", "ff02::2", "ff05::2"}
		}
		all = append(all, r.Server.Addr(family).String())
		hears := func(from *lab.Host) string {
			for _, to := range all {
				from.SendAs(t, lab.Packet{Dst: netip.AddrPortFrom(netip.MustParseAddr(to), 5000), Payload: []byte(to)}, nil)
			}
			from.Capture(t).Packets(t) // they have arrived
			if _, err := local.WriteTo([]byte("end"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5000}); err != nil {
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
		if got, want := hears(r.Attacker), strings.Join(all, " "); got != want {
			t.Fatalf("without a guard the service hears %q, want %q", got, want)
		}
		header(t, r.Server, r.rules, "load")
		if got := hears(r.Attacker); got != "" {
			t.Errorf("guarded, it hears %q", got)
		}
		r.Client.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "vps")
		if got, want := hears(r.Client), strings.Join(all, " "); got != want {
			t.Errorf("after the knock it hears %q, want %q", got, want)
		}
	})
}

// TestPackedToken: which of the packets that hold a token are one.
func TestPackedToken(t *testing.T) {
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
		settings, s := tokens(t, standing(t, middle), time.Minute)
		s.Tokens = 64
		r := newRig(t, f, family, append(settings, "TokensPerWindow 64", "OpenFor 5m")...)
		header(t, r.Server, r.rules, "load")
		fresh := r.own(t, s, time.Now())
		for _, table := range []map[string]packed{both, of(f, family)} {
			for name, p := range table {
				from := r.visitor()
				r.Client.SendAs(t, lab.Packet{Src: netip.AddrPortFrom(from, 0),
					Dst: netip.AddrPortFrom(r.Server.Addr(family), s.Port), Payload: fresh[0].Payload}, p.as)
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

// TestTokenBytes: no byte of a token means anything to a firewall. A token that two
// windows share is spent once.
func TestTokenBytes(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := &rig{Net: lab.New(t), Firewall: f, family: family}
		f.Install(t, r.Server)
		r.Server.Listen(t, lab.GuardedPort)
		g := alternate("odd of two", nil, nil)
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
		loadGuard(t, r.Server, f, g, 2*time.Hour)
		stranger := r.visitor()
		for i, step := range r.own(t, s, time.Now()) {
			if !r.admits(t, r.visitor(), step) {
				t.Errorf("token %d, %x, does not open", i, step.Payload)
			}
			if format(f) == "nftables" && r.admits(t, stranger, step) {
				t.Errorf("token %d, %x, opens twice", i, step.Payload)
			}
		}
	})
}

// TestForgedKnocks: first knocks in somebody's name do not keep him out. Those from
// more addresses than a firewall remembers leave alone who is in, and keep nobody
// out for long.
func TestForgedKnocks(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/udp 9005/udp", "KnockTimeout 1s", "OpenFor 5m")
		header(t, r.Server, r.rules, "load")
		session := r.echo(t, "vps")
		to := r.Server.Addr(family)
		sequence := knock.Sequence{{Transport: knock.UDP, Port: 7001}, {Transport: knock.UDP, Port: 8003}, {Transport: knock.UDP, Port: 9005}}
		first := netip.AddrPortFrom(to, 7001)
		victim := r.visitor()
		r.Attacker.Flood(t, 1000, func(int) lab.Packet {
			return lab.Packet{Src: netip.AddrPortFrom(victim, 10000), Dst: first}
		})
		if !r.admits(t, victim, sequence...) {
			t.Error("first knocks in a visitor's name keep the visitor out")
		}
		forged := 66_000
		if format(f) == "iptables" {
			forged = 2_000
		}
		hosts := []*lab.Host{r.Attacker, r.Client} // whose addresses are too few alone
		r.Attacker.Flood(t, forged, func(i int) lab.Packet {
			return lab.Packet{Src: netip.AddrPortFrom(hosts[i/60_000].Source(family, uint16(i%60_000+1000)), 10000), Dst: first}
		})
		session.say(t, "after the flood")
		r.expect(t, r.Client, lab.Open)
		// What has timed out is collected within three seconds; the rest is for a busy machine.
		for from, end := r.visitor(), time.Now().Add(15*time.Second); ; time.Sleep(20 * time.Millisecond) {
			if r.admits(t, from, sequence...) {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the flood keeps others out for good")
			}
		}
	})
}
