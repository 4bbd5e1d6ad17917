package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestConnectsWhenDNSAnswersForOneFamilyOnly: a name server drops every question for one
// family. portknock still connects to the address of the other family.
func TestConnectsWhenDNSAnswersForOneFamilyOnly(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"127.0.0.1", "::1"} {
		t.Run(addr, func(t *testing.T) {
			t.Parallel()
			h := newResolvingHost(t, "", zone{"A vps.example.test": {}, "AAAA vps.example.test": {}, kindOf(addr) + " vps.example.test": {addr: addr}})

			began := time.Now()
			out, stderr, code := portknock(h, "-v", "--optional", "-c", "/nonexistent", "vps.example.test", "22")
			took := time.Since(began)
			if out != "hello" || code != 0 {
				t.Errorf("output %q, exit code %d, want hello and 0", out, code)
			}
			if took > 4*time.Second { // Go's resolver waits for 5 s before it asks again
				t.Errorf("the connection took %v, want at most 4 s", took)
			}
			t.Logf("after %v portknock has printed\n%s", took, stderr)
		})
	}
}

// TestLateAnswerBecomesTarget: the address of one family is known at once, but does not
// answer. The answer for the other family comes a second later, and portknock connects to
// that address. Its knocks contain no token that the first address got.
func TestLateAnswerBecomesTarget(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nft")
	for _, late := range []string{"127.0.0.1", "::1"} {
		t.Run(late, func(t *testing.T) {
			t.Parallel()
			silent := map[string]string{"127.0.0.1": "::1", "::1": "127.0.0.1"}[late]
			h := newResolvingHost(t, "", zone{
				kindOf(silent) + " vps.example.test": {addr: silent},
				kindOf(late) + " vps.example.test":   {addr: late, after: time.Second},
			})
			h.Run(t, "nft", `add table inet out; add chain inet out output { type filter hook output priority 0; };
				add rule inet out output `+map[string]string{"::1": "ip", "127.0.0.1": "ip6"}[late]+" daddr "+silent+" tcp dport 22 drop")
			knocks := lab.Socket(t, h, func() (net.PacketConn, error) { return net.ListenPacket("udp", ":62202") })
			settings, _ := tokens(t, periodWithNowAt(t, middle), time.Minute)
			profile := vpsProfile(t, append(settings, "HostName vps.example.test", "TokensPerWindow 4")...)
			out, stderr, code := portknock(h, "-v", "-c", profile, "vps", "22")
			if out != "hello" || code != 0 {
				t.Fatalf("output %q, exit code %d, want hello and 0:\n%s", out, code, stderr)
			}
			got := map[string]netip.Addr{}
			families := map[bool]int{}
			for _, p := range received(t, h, knocks) {
				if first, sent := got[p.payload]; sent && first != p.from {
					t.Errorf("both families got the token %x", p.payload)
				}
				got[p.payload] = p.from
				families[p.from.Is4()]++
			}
			if len(families) != 2 {
				t.Errorf("the numbers of knocks are %v (IPv4: true), want knocks of both families:\n%s", families, stderr)
			}
		})
	}
}

// TestSearchDomainsNeverMixMachines: the name server has an IPv4 address for the name. It
// drops the question for the IPv6 address, or the name has none. In another search domain,
// or without one, the name has the IPv6 address of another machine. That machine gets no
// knock.
func TestSearchDomainsNeverMixMachines(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, host string
		zone       zone
	}{
		{"a search domain completes the name", "vps", zone{
			"A vps.near.test": {addr: "127.0.0.1"}, "AAAA vps.near.test": {},
			"AAAA vps.far.test": {addr: "::1"}, "AAAA vps": {addr: "::1"},
		}},
		{"the name is complete", "vps.example.test", zone{
			"A vps.example.test": {addr: "127.0.0.1"}, "AAAA vps.example.test": {},
			"AAAA vps.example.test.near.test": {addr: "::1"}, "AAAA vps.example.test.far.test": {addr: "::1"},
		}},
		{"the name is complete, and its only answer is slow", "vps.example.test", zone{
			"A vps.example.test":              {addr: "127.0.0.1", after: 800 * time.Millisecond},
			"AAAA vps.example.test.near.test": {addr: "::1"}, "AAAA vps.example.test.far.test": {addr: "::1"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newResolvingHost(t, "search near.test far.test\noptions timeout:1 attempts:1", tt.zone)
			stranger := lab.Socket(t, h, func() (net.PacketConn, error) { return net.ListenPacket("udp6", "[::1]:7001") })
			profile := vpsProfile(t, "HostName "+tt.host, "Sequence 7001/udp 7001/udp 7001/udp")
			out, stderr, code := portknock(h, "-v", "-c", profile, "vps", "22")
			if out != "hello" || code != 0 {
				t.Errorf("output %q, exit code %d, want hello and 0", out, code)
			}
			if got := received(t, h, stranger); len(got) > 0 || strings.Contains(stderr, "::1") {
				t.Errorf("the other machine got the knocks %v:\n%s", got, stderr)
			}
		})
	}
}

// TestGetentKnowsMoreNames: only the C library knows the name, here by HOSTALIASES. portknock
// asks it by getent, at most until ConnectTimeout is over.
func TestGetentKnowsMoreNames(t *testing.T) {
	t.Parallel()
	lab.Require(t, "getent")
	h := newResolvingHost(t, "", zone{
		"A real.example.test": {addr: "127.0.0.1"}, "A lost.example.test": {}, "AAAA lost.example.test": {},
	})
	aliases := lab.File(t, "aliases", "vps real.example.test", "lost lost.example.test")
	profile := lab.File(t, "config", "Host lost", "Sequence 7001/udp", "ConnectTimeout 1")
	try := func(args ...string) (string, error) {
		// netdns=go is the resolver of static binaries.
		return h.Try("env", append([]string{"GODEBUG=netdns=go", "HOSTALIASES=" + aliases, "portknock", "--optional", "-c", profile}, args...)...)
	}
	if out, err := try("vps", "22"); out != "hello" || err != nil {
		t.Errorf("output %q, error %v, want hello", out, err)
	}
	for _, tt := range []struct{ name, flag, want string }{
		{"vps", "-6", "no IPv6 address"},
		{"unknown", "-v", "no such host"},
		{"lost", "-v", "no such host"},
	} {
		began := time.Now()
		want := fmt.Sprintf("%s: cannot resolve %[1]q: %s\n", tt.name, tt.want)
		if out, err := try(tt.flag, tt.name, "22"); err == nil || !strings.Contains(out, want) {
			t.Errorf("output %q, error %v, want %s", out, err, want)
		}
		if took := time.Since(began); took > 4*time.Second { // getent alone waits 10 s for an answer
			t.Errorf("%s: the error comes after %v", tt.name, took)
		}
	}
}

// TestHintWithoutNameServer: if resolv.conf is missing or empty, as on Android, the hint says
// so. If it names a name server, the hint is absent.
func TestHintWithoutNameServer(t *testing.T) {
	t.Parallel()
	const hint = "hint: /etc/resolv.conf names no name server"
	h := lab.NewHost(t, "client")
	etc := privateEtc(t, h)
	conf := filepath.Join(etc, "resolv.conf")
	for _, text := range []string{"", "# nameserver 192.0.2.1\n", "nameserver 127.0.0.99\n", "missing"} {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if text == "missing" {
			os.Remove(conf)
		}
		out, err := h.Try("env", "GODEBUG=netdns=go", "portknock", "--optional", "-c", "/nonexistent", "vps.example.test", "22")
		if err == nil || strings.Contains(out, hint) == strings.HasPrefix(text, "nameserver") {
			t.Errorf("resolv.conf %q: error %v, and portknock prints\n%s", text, err, out)
		}
	}
}

// TestHomeOfPasswdEntry: without HOME, the profile file is in the home folder of the user's
// entry in /etc/passwd, as for ssh. Without such an entry, portknock searches only the folders
// of the system. If they do not have the file, --optional still connects.
func TestHomeOfPasswdEntry(t *testing.T) {
	t.Parallel()
	h := lab.NewHost(t, "client")
	etc, home := privateEtc(t, h), t.TempDir()
	write := func(path string, lines ...string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	try := func(args ...string) string {
		out, _ := h.Try("env", append([]string{"-u", "HOME", "-u", "XDG_CONFIG_HOME", "-u", "XDG_CONFIG_DIRS", "portknock"}, args...)...)
		return out
	}
	expect := func(want string, args ...string) {
		t.Helper()
		if out := try(args...); !strings.Contains(out, want) {
			t.Errorf("%q prints\n%swant\n%s", args, out, want)
		}
	}
	write(filepath.Join(etc, "passwd"), "other:x:4711:4711::/nonexistent:/bin/sh")
	expect("portknock: no profile file in /etc/xdg, and HOME is not an absolute path: file does not exist\n"+
		"portknock: hint: set HOME, or name the profile file with -c; --optional connects without a profile\n", "vps", "22")
	expect("127.0.0.1: port 1 did not open: connection refused\n", "--optional", "127.0.0.1", "1")
	expect("portknock: no profile file in /etc/xdg, and HOME ", "profile", "import", lab.File(t, "stanza",
		"[default]", "SPA_SERVER 192.0.2.1", "ACCESS tcp/22", "ALLOW_IP source", "KEY secret"))
	write(filepath.Join(etc, "xdg/portknock/config"), "Host vps", "Sequence 7001/udp")
	expect("7001/udp", "sequence", "vps")

	write(filepath.Join(etc, "passwd"), "root:x:0:0::"+home+":/bin/sh")
	expect("7001/udp", "sequence", "vps") // the home folder has no profile file
	write(filepath.Join(home, ".config/portknock/config"), "Host vps", "Sequence 8002/udp", "Host key", "Scheme rotating", "KeyFile ~/vps.key")
	write(filepath.Join(home, "vps.key"), windowKey)
	expect("8002/udp", "sequence", "vps")
	expect("(rotating, ", "sequence", "key")
}

// datagram is a datagram that a socket has received.
type datagram struct {
	from    netip.Addr
	payload string
}

// received returns all datagrams that a socket of a host has received by now.
func received(t testing.TB, h *lab.Host, c net.PacketConn) (all []datagram) {
	t.Helper()
	// The last datagram is that of this test. The loopback interface keeps the order.
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	end := h.Dial(t, "udp", net.JoinHostPort("::1", port))
	defer end.Close()
	if _, err := end.Write([]byte("end")); err != nil {
		t.Fatal(err)
	}
	for {
		payload := make([]byte, 1500)
		n, from, err := c.ReadFrom(payload)
		if err != nil {
			t.Fatal(err)
		}
		if string(payload[:n]) == "end" {
			return all
		}
		all = append(all, datagram{from.(*net.UDPAddr).AddrPort().Addr().Unmap(), string(payload[:n])})
	}
}

// privateEtc gives a host a folder /etc of its own, which is empty. It returns the folder's
// path for the test.
func privateEtc(t testing.TB, h *lab.Host) string {
	t.Helper()
	etc := t.TempDir()
	h.Run(t, "mount", "--bind", etc, "/etc")
	return etc
}

// newResolvingHost returns a host whose service at port 22 sends "hello". The host has a name
// server with this zone. The lines of conf are in its resolv.conf.
func newResolvingHost(t testing.TB, conf string, z zone) *lab.Host {
	t.Helper()
	h := lab.NewHost(t, "client")
	h.Serve(t, 22, func(c net.Conn) { io.WriteString(c, "hello") })
	serveDNS(t, h, "127.0.0.53:53", z)
	text := []byte("nameserver 127.0.0.53\n" + conf + "\n")
	if err := os.WriteFile(filepath.Join(privateEtc(t, h), "resolv.conf"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

// zone is what a name server knows. A key is a type and a name, such as "A vps.example.test".
// If a name has a record of the other type only, its answer is empty. Names without a record
// do not exist.
type zone map[string]record

// record is an answer of a name server.
type record struct {
	addr  string        // the address; "" if the name server drops the question
	after time.Duration // how long the name server waits before it answers
}

// kindOf returns the type of the record for an address.
func kindOf(addr string) string {
	if netip.MustParseAddr(addr).Is6() {
		return "AAAA"
	}
	return "A"
}

// serveDNS runs a name server on a host.
func serveDNS(t testing.TB, h *lab.Host, listen string, z zone) {
	t.Helper()
	c := lab.Socket(t, h, func() (net.PacketConn, error) { return net.ListenPacket("udp4", listen) })
	go func() {
		for {
			buf := make([]byte, 512)
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply, after := z.reply(buf[:n]); reply != nil {
				time.AfterFunc(after, func() { c.WriteTo(reply, from) })
			}
		}
	}()
}

// reply returns the reply to a query, and how long to wait before it. The reply is nil if the
// name server drops the query.
func (z zone) reply(query []byte) (reply []byte, after time.Duration) {
	const header = 12
	var labels []string
	end := header
	for end < len(query) && query[end] != 0 {
		next := end + 1 + int(query[end])
		labels = append(labels, strings.ToLower(string(query[end+1:min(next, len(query))])))
		end = next
	}
	end += 5 // the rest of the question: the end of the name, the type, the class
	if end > len(query) {
		return nil, 0
	}
	kinds := map[byte]string{1: "A", 28: "AAAA"}
	kind, name := query[end-3], strings.Join(labels, ".")
	reply = append([]byte(nil), query[:end]...)
	copy(reply[2:], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}) // flags: no error; counts: one question
	r, known := z[kinds[kind]+" "+name]
	if known && r.addr == "" {
		return nil, 0
	}
	if known {
		addr := netip.MustParseAddr(r.addr)
		reply[7] = 1 // one answer
		reply = append(reply, 0xc0, header, 0, kind, 0, 1, 0, 0, 0, 60, 0, byte(addr.BitLen()/8))
		return append(reply, addr.AsSlice()...), r.after
	}
	if _, v4 := z["A "+name]; !v4 {
		if _, v6 := z["AAAA "+name]; !v6 {
			reply[3] |= 3 // no such name
		}
	}
	return reply, 0
}
