// Package spa makes packets of fwknop's single packet authorization (SPA) that fwknopd
// 2.6.10 accepts.
//
// A [Request] describes what a client asks for. It is also the [knock.Picker] that makes
// the packets. [Keys] holds the settings that client and server share. The package does
// not read files, does not look up names and does not read the clock.
//
// # The packet
//
// All text is ASCII. B64 is the base64 of RFC 4648 without "=". ‖ joins bytes.
//
//	fields = 16 random digits ":" B64(user) ":" Unix time ":3.0.0:" type ":"
//	         B64(message) [":" B64(nat)] [":" timeout in seconds]
//	plain  = fields ":" B64(hash(fields))
//	cipher = AES-256(key, iv, plain, padded as in PKCS #7)
//	full   = B64("Salted__" ‖ salt ‖ cipher)
//	packet = full without its first 10 characters ‖ B64(HMAC(HMAC key, full))
//
// Without an HMAC key, the packet is only full without its first 10 characters.
//
// The message is the address to open for, and "proto/port" for each port, separated by
// commas. The address is 0.0.0.0 if the server opens for the source of the packet: Allow
// is then the zero Addr. The field nat is the address and the port to forward to,
// separated by a comma. The type is 1 for access, 2 for NAT and 5 for NAT on the server
// itself. With a timeout, these types are 3, 4 and 6. The function hash is the Digest of
// the Request.
//
// The salt is 8 random bytes. OpenSSL's EVP_BytesToKey makes key and iv from the salt and
// the passphrase, with MD5 and in one round. The passphrase is the Key. In mode legacy, it
// is the first 16 bytes of the Key, or the Key padded to 16 bytes with the digit "0".
// EVP_BytesToKey does not protect a passphrase that can be guessed, so a key should have
// 32 random bytes. The packet does not show its HMAC function and its cipher mode: client
// and server must both know them.
package spa

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// The limits of fwknopd for the parts of a packet.
const (
	maxKey     = 32  // bytes; AES does not allow a longer key
	maxHMACKey = 128 // bytes
	maxUser    = 48  // bytes; fwknopd has room for the base64 form of 48 bytes
	maxMessage = 255 // bytes
	minPacket  = 140 // characters
	maxPacket  = 399 // characters; fwknopd accepts longer packets only with GnuPG
)

// MaxTimeout is the longest Timeout of a [Request].
const MaxTimeout = 65536 * time.Second

// RandomPorts is the range of the random destination ports of packets. The fwknop client's
// --rand-port uses the same range.
var RandomPorts = knock.PortRange{Transport: knock.UDP, First: 10000, Last: 65535}

// Keys holds the settings that an fwknopd and its clients share.
type Keys struct {
	Key     knock.Key // encryption key, 1 to 32 bytes
	Mode    Mode      // cipher mode of the encryption
	HMACKey knock.Key // authentication key, 1 to 128 bytes; empty for a server without HMAC
	HMAC    Digest    // hash function of the HMAC

	// Port is the destination port. 0 means a random one of [RandomPorts] for each packet,
	// which needs Via to be UDP.
	Port uint16
	Via  Via // how a packet travels

	NAT      netip.AddrPort // where the server forwards the port to; the zero AddrPort for no forwarding
	NATLocal bool           // NAT is a port of the server itself; needs NAT

	// RequireSource is fwknopd's setting REQUIRE_SOURCE_ADDRESS. The server then refuses
	// packets that do not name an address to open for, but leave it to the source of the
	// packet. A [Request] then needs Allow, but [Request.Packet] does not check this.
	RequireSource bool
}

// Request describes what a client asks of an fwknopd. Request is a [knock.Picker] that
// makes a new packet for each round, because fwknopd accepts a packet only once.
type Request struct {
	Keys

	Digest  Digest            // hash function for the fields
	User    string            // user name, 1 to 48 characters; see [CheckUser]
	Allow   netip.Addr        // address to open for; the zero Addr means the source of the packet
	Ports   []knock.PortRange // ports to open; each range must be a single port
	Timeout time.Duration     // length of the opening, in whole seconds; 0 lets the server choose
	Host    string            // name of the server in an HTTP request; may be empty
	Offset  time.Duration     // added to the time that Packet and Round get

	KnockDelay time.Duration // pause after the packet in fast rounds of [knock.Client], and the shortest pause of slow rounds
}

// Via tells how a packet travels.
type Via uint8

// The ways a packet can travel.
const (
	UDP  Via = iota // the packet is a datagram
	TCP             // the packet is the content of a TCP connection
	HTTP            // the packet is part of an HTTP request on a TCP connection
)

func (Via) names() []string { return []string{"udp", "tcp", "http"} }

// String returns "udp", "tcp" or "http".
func (v Via) String() string { return nameOf(v) }

// Round implements [knock.Picker]. The packet contains the time now, plus Offset. A server
// accepts the packet only once, and only while the server's clock is close enough to the
// time in the packet. The largest difference is fwknopd's setting MAX_SPA_PACKET_AGE, by
// default 120 seconds.
func (r *Request) Round(now time.Time, from, to netip.Addr, n int) (knock.Round, error) {
	packet, err := r.Packet(now)
	if err != nil {
		return knock.Round{}, err
	}
	step := knock.Step{Transport: knock.Stream, Port: r.Port, Payload: []byte(packet)}
	switch r.Via {
	case UDP:
		step.Transport = knock.UDP
	case HTTP:
		step.Payload = r.httpRequest(packet)
	}
	if step.Port == 0 {
		step.Port = RandomPorts.First + uint16(random(int64(RandomPorts.Last-RandomPorts.First)+1))
	}
	return knock.Client{Schedule: knock.Sequence{step}, KnockDelay: r.KnockDelay}.Round(now, from, to, n)
}

// httpRequest puts a packet into an HTTP request, for an fwknopd behind a web server.
// fwknopd recognizes such a request by its User-Agent.
func (r *Request) httpRequest(packet string) []byte {
	path := strings.NewReplacer("+", "-", "/", "_").Replace(packet)
	return fmt.Appendf(nil, "GET /%s HTTP/1.0\r\nUser-Agent: Fwknop/2.6.10\r\nAccept: */*\r\nHost: %s\r\nConnection: close\r\n\r\n",
		path, r.Host)
}

// Packet returns a new packet with the time t plus Offset. The error tells what fwknopd
// would not accept, and does not contain any part of a key.
func (r *Request) Packet(t time.Time) (string, error) {
	t = t.Add(r.Offset)
	if err := r.check(t); err != nil {
		return "", err
	}
	fields := r.fields(t)
	full := r.seal(fields + ":" + b64(r.Digest.sum([]byte(fields))))
	packet := full[len(saltedText):]
	if key := r.HMACKey.Bytes(); len(key) > 0 {
		packet += b64(r.HMAC.mac(key, []byte(full)))
	}
	if n := len(packet); n < minPacket || n > maxPacket {
		return "", fmt.Errorf("the packet has %d characters, not %d to %d; use fewer ports, a shorter user or digest",
			n, minPacket, maxPacket)
	}
	return packet, nil
}

// check returns an error for a request that a packet with the time t cannot express, or
// that fwknopd would not accept.
func (r *Request) check(t time.Time) error {
	key, hmacKey := r.Key.Bytes(), r.HMACKey.Bytes()
	badUser := CheckUser(r.User)
	badPort := slices.IndexFunc(r.Ports, func(p knock.PortRange) bool {
		return p.First < 1 || p.First != p.Last || p.Transport != knock.TCP && p.Transport != knock.UDP
	})
	switch {
	case len(key) == 0:
		return errors.New("no key")
	case len(key) > maxKey:
		return fmt.Errorf("the key has %d bytes; at most %d are allowed", len(key), maxKey)
	case len(hmacKey) > maxHMACKey:
		return fmt.Errorf("the HMAC key has %d bytes; at most %d are allowed", len(hmacKey), maxHMACKey)
	case string(key) == string(hmacKey):
		return errors.New("the key and the HMAC key must differ")
	case r.Mode > Legacy:
		return fmt.Errorf("unknown mode %d", r.Mode)
	case r.Mode == Legacy && len(hmacKey) > 0:
		return errors.New("mode legacy cannot be used with an HMAC key")
	case r.HMAC > SHA3_512 || r.Digest > SHA3_512:
		return errors.New("unknown digest")
	case r.Via > HTTP:
		return fmt.Errorf("unknown transport %d", r.Via)
	case r.Via != UDP && r.Port == 0:
		return errors.New("only a UDP packet can go to a random port")
	case r.Via == HTTP && !isHost(r.Host):
		return fmt.Errorf("%q is not a host name", r.Host)
	case badUser != nil:
		return badUser
	// fwknopd 2.6.10 expects a time of 10 digits, which begin in 2001. Its type for the time
	// is a signed int of 32 bits, which ends on 2038-01-19.
	case t.Unix() < 1e9 || t.Unix() > math.MaxInt32:
		return fmt.Errorf("the clock shows %s; fwknopd accepts times from 2001 to 2038", t.UTC().Format(time.RFC3339))
	case r.Allow.IsValid() && !r.Allow.Unmap().Is4():
		return fmt.Errorf("fwknopd opens ports for IPv4 only; %v is not an IPv4 address", r.Allow)
	case len(r.Ports) == 0:
		return errors.New("no port to open")
	case badPort >= 0:
		return fmt.Errorf("fwknopd opens only single ports; %v is not a single port", r.Ports[badPort])
	case len(r.message()) > maxMessage:
		return fmt.Errorf("%d ports do not fit into one packet", len(r.Ports))
	case r.NAT.IsValid() && (!r.NAT.Addr().Unmap().Is4() || r.NAT.Port() == 0):
		return fmt.Errorf("fwknopd forwards only to an IPv4 address and port, not to %v", r.NAT)
	case r.NATLocal && !r.NAT.IsValid():
		return errors.New("NATLocal needs NAT, the address and port to forward to")
	case r.Timeout < 0 || r.Timeout%time.Second != 0 || r.Timeout > MaxTimeout:
		return fmt.Errorf("timeout %v: must be whole seconds, at most %v", r.Timeout, MaxTimeout)
	}
	return nil
}

// isHost reports whether a name can stand in an HTTP header.
func isHost(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// CheckUser returns an error for a user name that fwknopd does not accept. A user name
// must have 1 to 48 characters. Each character must be printable ASCII and none of these:
//
//	" / \ [ ] : ; | = , + * ? < >
func CheckUser(name string) error {
	const forbidden = `"/\[]:;|=,+*?<>`
	bad := func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(forbidden, r) }
	switch {
	case name == "" || len(name) > maxUser:
		return fmt.Errorf("the user name has %d characters; 1 to %d are allowed", len(name), maxUser)
	case strings.ContainsFunc(name, bad):
		return fmt.Errorf(`user name %q: use printable ASCII characters without any of %s`, name, forbidden)
	}
	return nil
}
