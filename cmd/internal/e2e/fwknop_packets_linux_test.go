package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
)

// decodeWithFwknopd sends packets to a real fwknopd. For each packet that fwknopd has
// decoded, it returns the fields; the map's key is the packet.
func decodeWithFwknopd(t *testing.T, stanzas []string, packets []string) map[string]map[string]string {
	t.Helper()
	h := lab.NewHost(t, "server")
	args := h.FwknopdArgs(t, strings.Join(stanzas, "\n"), "ENABLE_SPA_PACKET_AGING N;\n")
	// The fwknopd ends after the last packet. It neither changes a firewall (-t) nor
	// reads packets from a device (-U).
	c := h.Command("fwknopd", append(args, "-t", "-U", "-C", fmt.Sprint(len(packets)))...)
	output := &fwknopdOutput{ready: make(chan struct{}, 1), read: make(chan struct{}, len(packets))}
	c.Stdout, c.Stderr = output, output
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.After(2 * time.Minute)
	wait := func(event chan struct{}) {
		select {
		case <-event:
		case <-late:
			t.Fatalf("fwknopd did not print the expected line within two minutes:\n%.10000s", output.text.String())
		}
	}
	wait(output.ready)
	awaitBound(t, h, 62201) // fwknopd prints its line a moment before it listens
	conn := h.Dial(t, "udp4", "127.0.0.1:62201")
	const atOnce = 100 // packets that fit into the receive buffer of a socket
	for i, p := range packets {
		if i >= atOnce {
			wait(output.read)
		}
		if _, err := conn.Write([]byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Wait(); err != nil {
		t.Fatalf("%v\n%.10000s", err, output.text.String())
	}
	return parseFwknopdLog(output.text.String())
}

// awaitBound waits until a program of a host listens on a UDP port.
func awaitBound(t *testing.T, h *lab.Host, port int) {
	t.Helper()
	lab.Await(t, time.Minute, func() string {
		var sockets []byte
		h.Do(func() { sockets, _ = os.ReadFile("/proc/thread-self/net/udp") })
		if bytes.Contains(sockets, fmt.Appendf(nil, ":%04X 00000000:0000", port)) {
			return ""
		}
		return fmt.Sprintf("no program listens on %d/udp:\n%s", port, sockets)
	})
}

// fwknopdOutput collects the output of fwknopd. It sends to ready when fwknopd is ready,
// and to read for each packet that fwknopd has read.
type fwknopdOutput struct {
	text        bytes.Buffer
	line        []byte
	ready, read chan struct{}
}

func (s *fwknopdOutput) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		s.line = append(s.line, line...)
		if !bytes.HasSuffix(s.line, []byte("\n")) {
			break
		}
		switch {
		case bytes.Contains(s.line, []byte("Kicking off UDP server")):
			s.ready <- struct{}{}
		case bytes.Contains(s.line, []byte("Got UDP datagram")):
			s.read <- struct{}{}
		}
		s.line = s.line[:0]
	}
	return s.text.Write(b)
}

// parseFwknopdLog returns the fields of each packet that fwknopd has decoded. The map's
// key is the packet.
func parseFwknopdLog(log string) map[string]map[string]string {
	all := map[string]map[string]string{}
	var packet string
	var fields map[string]string
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, ": ")
		switch {
		case strings.HasPrefix(line, "SPA Packet: '"):
			packet, fields = strings.Trim(value, "'"), nil
		case strings.HasSuffix(line, "SPA Decode (res=0):"):
			fields = map[string]string{}
			all[packet] = fields
		case ok && fields != nil && fields[name] == "":
			fields[name] = value
		}
	}
	return all
}

// accessStanza returns the stanza of access.conf that accepts a Request.
func accessStanza(a *spa.Request) string {
	text := "SOURCE ANY\nKEY_BASE64 " + base64.StdEncoding.EncodeToString(a.Key.Bytes()) +
		"\nENCRYPTION_MODE " + strings.Replace(strings.ToUpper(a.Mode.String()), "LEGACY", "legacy", 1) + "\n"
	if key := a.HMACKey.Bytes(); len(key) > 0 {
		text += "HMAC_KEY_BASE64 " + base64.StdEncoding.EncodeToString(key) + "\nHMAC_DIGEST_TYPE " + fwknopName(a.HMAC) + "\n"
	}
	return text
}

func fwknopName(d spa.Digest) string {
	return strings.ToUpper(strings.ReplaceAll(d.String(), "-", "_"))
}

func randomKey(r *rand.Rand, n int) knock.Key {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return knock.KeyFrom(b)
}

// wantFields returns the fields that fwknopd prints for a Request.
func wantFields(a *spa.Request) map[string]string {
	allow, kind, nat := "0.0.0.0", "1 (Access msg)", "<NULL>"
	if a.Allow.IsValid() {
		allow = a.Allow.String()
	}
	if a.Timeout > 0 {
		kind = "3 (Client timeout access msg)"
	}
	if a.NAT.IsValid() {
		nat = fmt.Sprintf("%v,%d", a.NAT.Addr(), a.NAT.Port())
		kind = map[[2]bool]string{
			{false, false}: "2 (NAT access msg)", {false, true}: "4 (Client timeout NAT access msg)",
			{true, false}: "5 (Local NAT access msg)", {true, true}: "6 (Client timeout local NAT access msg)",
		}[[2]bool{a.NATLocal, a.Timeout > 0}]
	}
	message := allow
	for _, p := range a.Ports {
		message += fmt.Sprintf(",%v/%d", p.Transport, p.First)
	}
	return map[string]string{
		"Username": a.User, "FKO Version": "3.0.0", "Message Type": kind, "Message String": message,
		"Nat Access": nat, "Client Timeout": fmt.Sprint(int(a.Timeout / time.Second)), "Server Auth": "<NULL>",
	}
}

// checkDecoded compares the fields that fwknopd has decoded with the requests.
func checkDecoded(t *testing.T, asked []*spa.Request, packets []string, got map[string]map[string]string) {
	t.Helper()
	faults := 0
	for i, a := range asked {
		fields := got[packets[i]]
		expected := wantFields(a)
		// Digest Type is the digest of the fields. If two digests have one length, fwknopd
		// prints the name of the first.
		_, digest, _ := strings.Cut(fields["Digest Type"], "(")
		if name := strings.TrimSuffix(digest, ")"); len(name) < 3 || !strings.HasPrefix(fwknopName(a.Digest), name[:3]) {
			expected["Digest Type"] = fwknopName(a.Digest)
		}
		for name, value := range expected {
			if fields[name] != value {
				t.Errorf("packet %d, mode %v, digest %v, HMAC %v (%d bytes), key of %d bytes:\n%s: %q, want %q", i, a.Mode, a.Digest, a.HMAC,
					len(a.HMACKey.Bytes()), len(a.Key.Bytes()), name, fields[name], value)
				faults++
			}
		}
		if faults > 10 {
			t.Fatal("more than 10 fields differ; the test stops here")
		}
	}
}

var allDigests = []spa.Digest{spa.MD5, spa.SHA1, spa.SHA256, spa.SHA384, spa.SHA512, spa.SHA3_256, spa.SHA3_512}

// TestFwknopdDecodesEveryDigestHMACAndMode: fwknopd decodes packets in every mode, with
// every digest, and with every HMAC or without one. Mode legacy is tested only without
// an HMAC.
func TestFwknopdDecodesEveryDigestHMACAndMode(t *testing.T) {
	t.Parallel()
	lab.Require(t, "fwknopd")
	for mode := spa.CBC; mode <= spa.Legacy; mode++ {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(1, uint64(mode)))
			var stanzas, packets []string
			var asked []*spa.Request
			for i := range len(allDigests) + 1 {
				server := spa.Request{
					Keys:  spa.Keys{Mode: mode, Key: randomKey(r, 32)},
					User:  "alice",
					Ports: []knock.PortRange{{First: 22, Last: 22}},
				}
				if i < len(allDigests) {
					server.HMAC, server.HMACKey = allDigests[i], randomKey(r, 64)
				}
				if mode == spa.Legacy && i < len(allDigests) {
					continue
				}
				stanzas = append(stanzas, accessStanza(&server))
				for _, digest := range allDigests {
					a := server
					a.Digest = digest
					asked = append(asked, &a)
				}
			}
			for _, a := range asked {
				packets = append(packets, mustPacket(t, a))
			}
			checkDecoded(t, asked, packets, decodeWithFwknopd(t, stanzas, packets))
		})
	}
}

// TestFwknopdDecodesFirstAndLastTime: fwknopd decodes packets with the first and the last
// time for which portknock makes packets.
func TestFwknopdDecodesFirstAndLastTime(t *testing.T) {
	t.Parallel()
	lab.Require(t, "fwknopd")
	r := rand.New(rand.NewPCG(3, 3))
	a := spa.Request{
		Keys: spa.Keys{Key: randomKey(r, 32), HMACKey: randomKey(r, 64), HMAC: spa.SHA256},
		User: "alice", Digest: spa.SHA256, Ports: []knock.PortRange{{First: 22, Last: 22}},
	}
	times := []int64{1e9, math.MaxInt32}
	for i, step := range []int64{-1, 1} {
		if _, err := a.Packet(time.Unix(times[i]+step, 0)); err == nil {
			t.Errorf("the time %d is not an error", times[i]+step)
		}
	}
	var packets []string
	for _, unix := range times {
		p, err := a.Packet(time.Unix(unix, 0))
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, p)
	}
	got := decodeWithFwknopd(t, []string{accessStanza(&a)}, packets)
	for i, p := range packets {
		if want := fmt.Sprint(times[i]); got[p]["Timestamp"] != want {
			t.Errorf("fwknopd reads the time %q, want %s", got[p]["Timestamp"], want)
		}
	}
}

func mustPacket(t testing.TB, a *spa.Request) string {
	t.Helper()
	p, err := a.Packet(time.Now())
	if err != nil {
		t.Fatalf("%v: %+v", err, a)
	}
	return p
}

// TestFwknopdDecodesRandomRequests: fwknopd decodes 2,000 packets of random requests, and
// finds in each packet the fields of its request.
func TestFwknopdDecodesRandomRequests(t *testing.T) {
	t.Parallel()
	lab.Require(t, "fwknopd")
	r := rand.New(rand.NewPCG(2, 2))
	const servers, each, batch = 40, 50, 8 // each server gets 50 packets; 8 servers share one fwknopd
	var stanzas, packets []string
	var asked []*spa.Request
	for i := range servers {
		server := spa.Request{Keys: spa.Keys{
			Key: randomKey(r, i%32+1), Mode: spa.Mode(i % 5),
			HMACKey: randomKey(r, r.IntN(128)+1), HMAC: allDigests[i%7],
		}}
		stanzas = append(stanzas, accessStanza(&server))
		for range each {
			a := server
			randomizeRequest(r, &a)
			asked = append(asked, &a)
			packets = append(packets, mustPacket(t, &a))
		}
	}
	for i := 0; i < servers; i += batch {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			from, to := i*each, (i+batch)*each
			checkDecoded(t, asked[from:to], packets[from:to], decodeWithFwknopd(t, stanzas[i:i+batch], packets[from:to]))
		})
	}
}

// randomizeRequest sets the fields of a request to random values that fit into a packet.
func randomizeRequest(r *rand.Rand, a *spa.Request) {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.!#$%&'()@^`{}~"
	for {
		a.Digest = allDigests[r.IntN(7)]
		user := make([]byte, r.IntN(48)+1)
		for i := range user {
			user[i] = letters[r.IntN(len(letters))]
		}
		a.User = string(user)
		a.Allow = netip.Addr{}
		if r.IntN(2) == 0 {
			a.Allow = randomAddr(r)
		}
		a.Ports = nil
		for range r.IntN(5) + 1 {
			port := uint16(r.IntN(65535) + 1)
			a.Ports = append(a.Ports, knock.PortRange{Transport: knock.Transport(r.IntN(2)), First: port, Last: port})
		}
		a.Timeout = 0
		if r.IntN(2) == 0 {
			a.Timeout = time.Duration(r.IntN(65536)+1) * time.Second
		}
		a.NAT, a.NATLocal = netip.AddrPort{}, false
		if r.IntN(3) == 0 {
			a.NAT, a.NATLocal = netip.AddrPortFrom(randomAddr(r), uint16(r.IntN(65535)+1)), r.IntN(2) == 0
		}
		if _, err := a.Packet(time.Now()); err == nil {
			return
		}
	}
}

func randomAddr(r *rand.Rand) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(r.IntN(223) + 1), byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(254) + 1)})
}
