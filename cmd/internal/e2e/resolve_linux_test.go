package e2e

import (
	"io"
	"net"
	"net/netip"
	"path/filepath"
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
			h := lab.NewHost(t, "client")
			h.Serve(t, 22, func(c net.Conn) { io.WriteString(c, "hello") })
			serveDNS(t, h, "127.0.0.53:53", netip.MustParseAddr(addr))
			etc := filepath.Dir(lab.File(t, "resolv.conf", "nameserver 127.0.0.53"))
			h.Run(t, "mount", "--bind", etc, "/etc")

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

// serveDNS runs a name server on a host. The name server answers each question for an
// address of addr's family with addr, and drops all other questions.
func serveDNS(t testing.TB, h *lab.Host, listen string, addr netip.Addr) {
	t.Helper()
	c := lab.Socket(t, h, func() (net.PacketConn, error) { return net.ListenPacket("udp4", listen) })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := dnsReply(buf[:n], addr); reply != nil {
				c.WriteTo(reply, from)
			}
		}
	}()
}

// dnsReply returns the reply to a query, or nil if the query is not for an address
// of addr's family.
func dnsReply(query []byte, addr netip.Addr) []byte {
	const header = 12
	kind := byte(1) // A
	if addr.Is6() {
		kind = 28 // AAAA
	}
	end := header
	for end < len(query) && query[end] != 0 {
		end += 1 + int(query[end]) // a label of the name
	}
	end += 5 // the rest of the question: the end of the name, the type, the class
	if end > len(query) || query[end-3] != kind {
		return nil
	}
	reply := append([]byte(nil), query[:end]...)
	copy(reply[2:], []byte{0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0}) // flags: no error; counts: one question, one answer
	reply = append(reply, 0xc0, header, 0, kind, 0, 1, 0, 0, 0, 60, 0, byte(addr.BitLen()/8))
	return append(reply, addr.AsSlice()...)
}
