// Package spa makes the packets of fwknop's single-packet authorization, such as
// fwknopd 2.6.10 accepts them.
//
// A [Request] says what to ask for and is the [knock.Picker] that asks for it.
// [Keys] is what client and server share. Nothing here reads a file, looks up a
// name or asks the clock.
//
// # The packet
//
// All text is ASCII; B64 is RFC 4648's base64 without "=", ‖ joins bytes.
//
//	fields = 16 random digits ":" B64(user) ":" Unix time ":3.0.0:" type ":"
//	         B64(message) [":" B64(nat)] [":" timeout in seconds]
//	plain  = fields ":" B64(digest(fields))
//	cipher = AES-256(key, iv, plain, padded as in PKCS #7)
//	full   = B64("Salted__" ‖ salt ‖ cipher)
//	packet = full without its first 10 characters ‖ B64(HMAC(HMAC key, full))
//
// The message is the address to open for and "proto/port" of each port, by
// commas; nat is the address and the port to forward to, by a comma. The type is
// 1 for access, 2 for NAT, 5 for NAT on the server itself; with a timeout 3, 4
// and 6. The salt is 8 random bytes, from which and the passphrase OpenSSL's
// EVP_BytesToKey makes key and iv, by MD5 and in one round: it does not protect a
// passphrase that can be guessed, so a key should be 32 random bytes. Which HMAC
// and which mode of the cipher it is does not show: both sides must know.
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

// The limits of what fwknopd takes.
const (
	maxKey     = 32  // bytes; AES has no longer one
	maxHMACKey = 128 // bytes
	maxUser    = 48  // bytes: as base64, what fwknopd has room for
	maxMessage = 255 // bytes
	minPacket  = 140 // characters
	maxPacket  = 399 // characters: it takes more for GnuPG's
)

// MaxTimeout is the most that a [Request] can ask for.
const MaxTimeout = 65536 * time.Second

// RandomPorts are the ports that a packet to a random port can go to. The fwknop
// client's --rand-port has the same.
var RandomPorts = knock.PortRange{Transport: knock.UDP, First: 10000, Last: 65535}

// Keys is what the clients of an fwknopd and the fwknopd itself share.
type Keys struct {
	Key     knock.Key // encrypts; 1 to 32 bytes
	Mode    Mode      // of the encryption
	HMACKey knock.Key // authenticates; 1 to 128 bytes, or none for a server that knows no HMAC
	HMAC    Digest

	Port uint16 // where packets go; by UDP, 0 for another one of [RandomPorts] each time
	Via  Via    // how a packet travels

	NAT      netip.AddrPort // where the server forwards the port to; the zero AddrPort is nowhere
	NATLocal bool           // NAT is the server itself

	// RequireSource has the server refuse packets that do not name the address to
	// open for.
	RequireSource bool
}

// Request is what a client asks an fwknopd for. It is a [knock.Picker]: each round
// sends a new packet, since fwknopd accepts no packet twice.
type Request struct {
	Keys

	Digest  Digest            // of the fields
	User    string            // 1 to 48 characters; see [CheckUser]
	Allow   netip.Addr        // for whom to open; the zero Addr is where the packet comes from
	Ports   []knock.PortRange // what to open: single ports
	Timeout time.Duration     // for how long, in whole seconds; 0 leaves it to the server
	Host    string            // what a request by HTTP says the server is called; may be empty
	Offset  time.Duration     // what to add to the clock

	KnockDelay time.Duration // the pause after the packet in round 0, and the shortest of later rounds
}

// Via is how a packet travels.
type Via uint8

// The ways a packet can travel.
const (
	UDP  Via = iota // as a datagram
	TCP             // on a connection
	HTTP            // as a request on a connection
)

func (Via) names() []string { return []string{"udp", "tcp", "http"} }

// String returns "udp", "tcp" or "http".
func (v Via) String() string { return nameOf(v) }

// Round implements [knock.Picker]. The packet has the time now. It is of use once,
// and as long as the server's clock does not differ by more than it allows, which is
// 120 seconds by default.
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
		step.Payload = r.request(packet)
	}
	if step.Port == 0 {
		step.Port = RandomPorts.First + uint16(random(int64(RandomPorts.Last-RandomPorts.First)+1))
	}
	return knock.Client{Schedule: knock.Sequence{step}, KnockDelay: r.KnockDelay}.Round(now, from, to, n)
}

// request wraps a packet into a request of HTTP, for fwknopd behind a web server.
// It knows them by their User-Agent.
func (r *Request) request(packet string) []byte {
	path := strings.NewReplacer("+", "-", "/", "_").Replace(packet)
	return fmt.Appendf(nil, "GET /%s HTTP/1.0\r\nUser-Agent: Fwknop/2.6.10\r\nAccept: */*\r\nHost: %s\r\nConnection: close\r\n\r\n",
		path, r.Host)
}

// Packet returns a new packet with the time t. Its error says what fwknopd would
// not take, and nothing of a key.
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
		return "", fmt.Errorf("the packet has %d characters, not %d to %d; shorten ports, user name or digest",
			n, minPacket, maxPacket)
	}
	return packet, nil
}

// check refuses what a packet with the time t cannot say, and what fwknopd would
// not take.
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
	// The field has as many digits as fwknopd counts on only from 2001 to 2106.
	case t.Unix() < 1e9 || t.Unix() > math.MaxUint32:
		return fmt.Errorf("the clock shows %s; fwknopd accepts times from 2001 to 2106", t.UTC().Format(time.RFC3339))
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

// isHost reports whether a name can stand in a header of HTTP.
func isHost(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// CheckUser refuses a user name that fwknopd would: one of no or more than 48
// characters, or with one that is not printable ASCII or in the list below.
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
