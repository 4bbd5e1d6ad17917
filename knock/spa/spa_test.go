package spa

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
)

var now = time.Unix(1795240903, 0)

func example() *Request {
	return &Request{
		Keys: Keys{Key: knock.KeyFrom([]byte("passphrase")), HMACKey: knock.KeyFrom([]byte("another")), Port: 62201},
		User: "alice", Ports: ports("22"),
	}
}

// knockOf returns the one knock of round 0.
func knockOf(r *Request) (knock.Step, error) {
	round, err := r.Round(now, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), 0)
	if err != nil {
		return knock.Step{}, err
	}
	if len(round.Send) != 1 {
		return knock.Step{}, fmt.Errorf("%d knocks", len(round.Send))
	}
	return round.Send[0], nil
}

func ports(s string) []knock.PortRange {
	p, err := knock.ParsePortRanges(s)
	if err != nil {
		panic(err)
	}
	return p
}

// unseal does what a server does, in mode CBC: it checks a packet and returns the fields.
func unseal(a *Request, packet string) (string, error) {
	mac := ""
	if key := a.HMACKey.Bytes(); len(key) > 0 {
		size := base64.RawStdEncoding.EncodedLen(len(a.HMAC.sum(nil)))
		if len(packet) < size {
			return "", fmt.Errorf("%d characters are too few for an HMAC", len(packet))
		}
		packet, mac = packet[:len(packet)-size], packet[len(packet)-size:]
		got, err := base64.RawStdEncoding.DecodeString(mac)
		if err != nil || !hmac.Equal(got, a.HMAC.mac(key, []byte(saltedText+packet))) {
			return "", fmt.Errorf("the HMAC is wrong: %v", err)
		}
	}
	data, err := base64.RawStdEncoding.DecodeString(saltedText + packet)
	if err != nil || len(data) < 32 || len(data)%aes.BlockSize != 0 || string(data[:8]) != salted {
		return "", fmt.Errorf("%d bytes are not a salted cipher text in whole blocks: %v", len(data), err)
	}
	key, iv := derive(a.Key.Bytes(), data[8:16])
	block, err := aes.NewCipher(key)
	if err != nil {
		return "", err
	}
	text := data[16:]
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(text, text)
	n := int(text[len(text)-1])
	if n < 1 || n > aes.BlockSize || strings.Trim(string(text[len(text)-n:]), string(rune(n))) != "" {
		return "", fmt.Errorf("the padding is wrong: %x", text[len(text)-aes.BlockSize:])
	}
	plain := string(text[:len(text)-n])
	i := strings.LastIndexByte(plain, ':')
	if i < 0 || b64(a.Digest.sum([]byte(plain[:i]))) != plain[i+1:] {
		return "", fmt.Errorf("the digest of %q is wrong", plain)
	}
	return plain[:i], nil
}

// TestPacketContainsTheRequest compares all fields of a packet except the random number.
func TestPacketContainsTheRequest(t *testing.T) {
	for _, tt := range []struct {
		change func(*Request)
		want   string
	}{
		{func(*Request) {}, "1795240903:3.0.0:1:0.0.0.0,tcp/22"},
		{func(a *Request) { a.Allow = netip.MustParseAddr("192.0.2.1") }, "1795240903:3.0.0:1:192.0.2.1,tcp/22"},
		{func(a *Request) { a.Allow = netip.MustParseAddr("::ffff:192.0.2.1") }, "1795240903:3.0.0:1:192.0.2.1,tcp/22"},
		{func(a *Request) { a.Ports = ports("22 53/udp 443") }, "1795240903:3.0.0:1:0.0.0.0,tcp/22,udp/53,tcp/443"},
		{func(a *Request) { a.Timeout = time.Minute }, "1795240903:3.0.0:3:0.0.0.0,tcp/22:60"},
		{func(a *Request) { a.NAT = netip.MustParseAddrPort("10.0.0.5:22") }, "1795240903:3.0.0:2:0.0.0.0,tcp/22:10.0.0.5,22"},
		{
			change: func(a *Request) { a.NAT, a.Timeout = netip.MustParseAddrPort("10.0.0.5:22"), MaxTimeout },
			want:   "1795240903:3.0.0:4:0.0.0.0,tcp/22:10.0.0.5,22:65536",
		},
		{
			change: func(a *Request) { a.NAT, a.NATLocal = netip.MustParseAddrPort("10.0.0.5:22"), true },
			want:   "1795240903:3.0.0:5:0.0.0.0,tcp/22:10.0.0.5,22",
		},
		{
			change: func(a *Request) {
				a.NAT, a.NATLocal, a.Timeout = netip.MustParseAddrPort("10.0.0.5:22"), true, time.Second
			},
			want: "1795240903:3.0.0:6:0.0.0.0,tcp/22:10.0.0.5,22:1",
		},
		{func(a *Request) { a.Offset = -903 * time.Second }, "1795240000:3.0.0:1:0.0.0.0,tcp/22"},
	} {
		a := example()
		tt.change(a)
		packet, err := a.Packet(now)
		if err != nil {
			t.Fatal(err)
		}
		fields, err := unseal(a, packet)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Split(fields, ":")
		if len(words[0]) != 16 || strings.Trim(words[0], "0123456789") != "" {
			t.Errorf("got the random number %q, want 16 digits", words[0])
		}
		for i, w := range words {
			if text, err := base64.RawStdEncoding.DecodeString(w); err == nil && (i == 1 || i > 4) && len(w) > 6 {
				words[i] = string(text)
			}
		}
		if got := strings.Join(words[2:], ":"); got != tt.want || words[1] != "alice" {
			t.Errorf("got %s of the user %s, want %s of alice", got, words[1], tt.want)
		}
	}
}

const opensslKey = "1e484203cc6c24a583c6d045d97877c60e3081317b231be171d4b9b9892eb6c0 d9d97c2fb05c9668ae93a151a26dacbe"

// TestDeriveMatchesOpenSSL uses the output of OpenSSL itself for one salt and key, from
// "openssl enc -aes-256-cbc -md md5 -k passphrase -S 0102030405060708 -P".
func TestDeriveMatchesOpenSSL(t *testing.T) {
	key, iv := derive([]byte("passphrase"), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	if got := hex.EncodeToString(key) + " " + hex.EncodeToString(iv); got != opensslKey {
		t.Errorf("got %s", got)
	}
}

// Two packets always differ. Their salts and their random numbers differ too.
func TestPacketsNeverRepeat(t *testing.T) {
	a := example()
	a.Port = 0
	seen, ports := map[string]bool{}, map[uint16]bool{}
	for range 200 {
		step, err := knockOf(a)
		if err != nil {
			t.Fatal(err)
		}
		packet := string(step.Payload)
		fields, err := unseal(a, packet)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{packet, packet[:11], fields[:16]} {
			if seen[s] {
				t.Fatalf("a second packet contains %s", s)
			}
			seen[s] = true
		}
		if !strings.Contains("89+/", packet[:1]) {
			t.Errorf("a packet begins with %q, want 8, 9, + or /", packet[:1])
		}
		if step.Transport != knock.UDP || step.Port < 10000 {
			t.Errorf("sent to %v, want a UDP port from 10000", step)
		}
		ports[step.Port] = true
	}
	if len(ports) < 150 {
		t.Errorf("200 packets go to only %d different ports, want at least 150", len(ports))
	}
}

func TestViaDecidesTransportAndPayload(t *testing.T) {
	a := example()
	a.Port, a.Host = 80, "server.example"
	for via, transport := range map[Via]knock.Transport{UDP: knock.UDP, TCP: knock.Stream, HTTP: knock.Stream} {
		a.Via = via
		for range 20 { // some packets must contain "+" or "/", which HTTP replaces
			step, err := knockOf(a)
			if err != nil {
				t.Fatal(err)
			}
			if step.Transport != transport || step.Port != 80 {
				t.Errorf("Via %v: sent to %v", via, step)
			}
			packet := string(step.Payload)
			if via == HTTP {
				path, rest, _ := strings.Cut(strings.TrimPrefix(packet, "GET /"), " ")
				const want = "HTTP/1.0\r\nUser-Agent: Fwknop/2.6.10\r\nAccept: */*\r\nHost: server.example\r\nConnection: close\r\n\r\n"
				if rest != want || strings.ContainsAny(path, "+/") {
					t.Errorf("wrong HTTP request %q", packet)
				}
				packet = strings.NewReplacer("-", "+", "_", "/").Replace(path)
			}
			if _, err := unseal(a, packet); err != nil {
				t.Errorf("Via %v: invalid packet: %v", via, err)
			}
		}
	}
}

func TestPacketChecksTheRequest(t *testing.T) {
	for _, tt := range []struct {
		change func(*Request)
		want   string
	}{
		{func(a *Request) { a.Key = knock.Key{} }, "no key"},
		{func(a *Request) { a.Key = knock.KeyFrom(make([]byte, 33)) }, "the key has 33 bytes; at most 32 are allowed"},
		{func(a *Request) { a.HMACKey = knock.KeyFrom(make([]byte, 129)) }, "the HMAC key has 129 bytes; at most 128 are allowed"},
		{func(a *Request) { a.HMACKey = a.Key }, "the key and the HMAC key must differ"},
		{func(a *Request) { a.Mode = Legacy }, "mode legacy cannot be used with an HMAC key"},
		{func(a *Request) { a.Mode = Legacy + 1 }, "unknown mode 6"},
		{func(a *Request) { a.Digest = SHA3_512 + 1 }, "unknown digest"},
		{func(a *Request) { a.Via = HTTP + 1 }, "unknown transport 3"},
		{func(a *Request) { a.Via, a.Port = TCP, 0 }, "only a UDP packet can go to a random port"},
		{func(a *Request) { a.Via, a.Host = HTTP, "a\r\nX: y" }, `"a\r\nX: y" is not a host name`},
		{func(a *Request) { a.User = "" }, "the user name has 0 characters; 1 to 48 are allowed"},
		{func(a *Request) { a.User = strings.Repeat("x", 49) }, "the user name has 49 characters; 1 to 48 are allowed"},
		{func(a *Request) { a.User = "a:b" }, `user name "a:b": use printable ASCII characters without any of "/\[]:;|=,+*?<>`},
		{func(a *Request) { a.Allow = netip.MustParseAddr("2001:db8::1") }, "fwknopd opens ports for IPv4 only; 2001:db8::1 is not an IPv4 address"},
		{func(a *Request) { a.Ports = nil }, "no port to open"},
		{func(a *Request) { a.Ports = ports("60000-60001/udp") }, "fwknopd opens only single ports; 60000-60001/udp is not a single port"},
		{func(a *Request) { a.Ports = []knock.PortRange{{}} }, "fwknopd opens only single ports; 0/tcp is not a single port"},
		{func(a *Request) { a.Ports = ports(strings.Repeat("22 ", 50)) }, "50 ports do not fit into one packet"},
		{
			change: func(a *Request) { a.Ports = ports(strings.Repeat("22 ", 30)) },
			want:   "the packet has 567 characters, not 140 to 399; use fewer ports, a shorter user or digest",
		},
		{
			change: func(a *Request) { a.NAT = netip.MustParseAddrPort("[::1]:22") },
			want:   "fwknopd forwards only to an IPv4 address and port, not to [::1]:22",
		},
		{
			change: func(a *Request) { a.NAT = netip.MustParseAddrPort("10.0.0.5:0") },
			want:   "fwknopd forwards only to an IPv4 address and port, not to 10.0.0.5:0",
		},
		{func(a *Request) { a.NATLocal = true }, "NATLocal needs NAT, the address and port to forward to"},
		{func(a *Request) { a.Timeout = 1500 * time.Millisecond }, "timeout 1.5s: must be whole seconds, at most 18h12m16s"},
		{func(a *Request) { a.Timeout = -time.Second }, "timeout -1s: must be whole seconds, at most 18h12m16s"},
		{func(a *Request) { a.Offset = -100 * 365 * 24 * time.Hour }, "the clock shows 1926-12-16T06:01:43Z; fwknopd accepts times from 2001 to 2038"},
		{func(a *Request) { a.Offset = time.Unix(1<<31, 0).Sub(now) }, "the clock shows 2038-01-19T03:14:08Z; fwknopd accepts times from 2001 to 2038"},
	} {
		a := example()
		tt.change(a)
		if _, err := a.Packet(now); err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

func TestParseReadsAllNames(t *testing.T) {
	for d := SHA256; d <= SHA3_512; d++ {
		if got, err := Parse[Digest](strings.ToUpper(d.String())); got != d || err != nil {
			t.Error(d, got, err)
		}
	}
	for m := CBC; m <= Legacy; m++ {
		if got, err := Parse[Mode](strings.ToUpper(m.String())); got != m || err != nil {
			t.Error(m, got, err)
		}
	}
	for v := UDP; v <= HTTP; v++ {
		if got, err := Parse[Via](strings.ToUpper(v.String())); got != v || err != nil {
			t.Error(v, got, err)
		}
	}
	// The name of a value out of range is "unknown". Printing the value does not panic.
	if got := fmt.Sprint(SHA3_512+1, Legacy+1, HTTP+1); got != "unknown unknown unknown" {
		t.Error(got)
	}
	if printed := fmt.Sprintf("%v %+v %#v", example(), example(), *example()); strings.Contains(printed, "another") {
		t.Error(printed)
	}
}

// FuzzPacket checks that every request results in a packet of the right format or in an
// error.
func FuzzPacket(f *testing.F) {
	f.Add([]byte("key"), []byte("hmac"), "alice", []byte{192, 0, 2, 1}, []byte{0, 22, 0, 53}, int64(0),
		[]byte{10, 0, 0, 5}, uint16(22), byte(0), int64(0))
	f.Fuzz(func(t *testing.T, key, hmacKey []byte, user string, allow, portBytes []byte, timeout int64,
		nat []byte, natPort uint16, kinds byte, offset int64) {
		a := &Request{
			Keys: Keys{
				Key: knock.KeyFrom(key), HMACKey: knock.KeyFrom(hmacKey), HMAC: Digest(kinds % 8),
				NATLocal: kinds&64 != 0, Via: Via(natPort % 4), Port: natPort,
			},
			Digest: Digest(kinds / 8 % 8), User: user, Timeout: time.Duration(timeout), Offset: time.Duration(offset), Host: user,
		}
		a.Allow, _ = netip.AddrFromSlice(allow)
		if to, ok := netip.AddrFromSlice(nat); ok {
			a.NAT = netip.AddrPortFrom(to, natPort)
		}
		for ; len(portBytes) > 1; portBytes = portBytes[2:] {
			port := uint16(portBytes[0])<<8 | uint16(portBytes[1])
			a.Ports = append(a.Ports, knock.PortRange{Transport: knock.Transport(port % 4), First: port, Last: port | uint16(kinds>>7)})
		}
		step, err := knockOf(a)
		if err != nil {
			return
		}
		for _, b := range step.Payload {
			if b > '~' || b < ' ' && !(a.Via == HTTP && (b == '\r' || b == '\n')) {
				t.Fatalf("the payload has an unprintable byte: %q", step.Payload)
			}
		}
		packet, err := a.Packet(now)
		if err != nil || len(packet) < minPacket || len(packet) > maxPacket {
			t.Fatalf("the packet has %d characters, error %v", len(packet), err)
		}
		fields, err := unseal(a, packet)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Split(fields, ":")
		message, err := base64.RawStdEncoding.DecodeString(words[5])
		if err != nil || len(words) < 6 || len(words) > 8 || len(message) > maxMessage || len(words[1]) > 64 {
			t.Errorf("the fields are invalid: %q, error %v", fields, err)
		}
		for _, word := range strings.Split(string(message), ",")[1:] {
			var port uint16
			if n, _ := fmt.Sscanf(word, "tcp/%d", &port); n != 1 {
				if n, _ := fmt.Sscanf(word, "udp/%d", &port); n != 1 || port == 0 {
					t.Errorf("the message has an invalid port: %q", message)
				}
			}
		}
	})
}
