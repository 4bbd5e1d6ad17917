package spa

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// The types of a message. One with a timeout is of a type of its own.
const (
	typeAccess          = 1
	typeNAT             = 2
	typeTimeoutAccess   = 3
	typeTimeoutNAT      = 4
	typeLocalNAT        = 5
	typeTimeoutLocalNAT = 6
)

// fields returns what the packet says, in order.
func (r *Request) fields(t time.Time) (string, error) {
	// The field has as many digits as fwknopd counts on only from 2001 to 2106.
	if s := t.Unix(); s < 1e9 || s > math.MaxUint32 {
		return "", fmt.Errorf("the clock says %s, which cannot be", t.UTC().Format(time.RFC3339))
	}
	message, err := r.message()
	if err != nil {
		return "", err
	}
	kind, timeoutKind := typeAccess, typeTimeoutAccess
	var nat string
	switch {
	case r.NAT.IsValid():
		kind, timeoutKind = typeNAT, typeTimeoutNAT
		if r.NATLocal {
			kind, timeoutKind = typeLocalNAT, typeTimeoutLocalNAT
		}
		if nat, err = natText(r.NAT); err != nil {
			return "", err
		}
	case r.NATLocal:
		return "", errors.New("NAT on the server needs an address and a port to forward to")
	}
	if r.Timeout < 0 || r.Timeout%time.Second != 0 || r.Timeout > MaxTimeout {
		return "", fmt.Errorf("a timeout of %v is not whole seconds up to %v", r.Timeout, MaxTimeout)
	}
	if r.Timeout > 0 {
		kind = timeoutKind
	}
	fields := []string{randomDigits(), b64([]byte(r.User)), strconv.FormatInt(t.Unix(), 10), "3.0.0", strconv.Itoa(kind), b64([]byte(message))}
	if nat != "" {
		fields = append(fields, b64([]byte(nat)))
	}
	if r.Timeout > 0 {
		fields = append(fields, strconv.FormatInt(int64(r.Timeout/time.Second), 10))
	}
	return strings.Join(fields, ":"), nil
}

// message returns for whom to open, and what.
func (r *Request) message() (string, error) {
	allow := netip.IPv4Unspecified() // which stands for the packet's source
	if r.Allow.IsValid() {
		allow = r.Allow.Unmap()
	}
	if !allow.Is4() {
		return "", fmt.Errorf("fwknopd opens for IPv4 only, and %v is not", allow)
	}
	if len(r.Ports) == 0 {
		return "", errors.New("no port to open")
	}
	words := []string{allow.String()}
	for _, p := range r.Ports {
		if p.First < 1 || p.First != p.Last || p.Transport != knock.TCP && p.Transport != knock.UDP {
			return "", fmt.Errorf("fwknopd opens single ports, and %v is not one", p)
		}
		words = append(words, fmt.Sprintf("%v/%d", p.Transport, p.First))
	}
	text := strings.Join(words, ",")
	if len(text) > maxMessage {
		return "", fmt.Errorf("%d ports are too many for one packet", len(r.Ports))
	}
	return text, nil
}

func natText(to netip.AddrPort) (string, error) {
	addr := to.Addr().Unmap()
	if !addr.Is4() || to.Port() == 0 {
		return "", fmt.Errorf("fwknopd forwards to a port of an IPv4 address, and %v is not one", to)
	}
	return fmt.Sprintf("%v,%d", addr, to.Port()), nil
}

func b64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// randomDigits returns 16 decimal digits.
func randomDigits() string {
	digits := make([]byte, 0, 16)
	for len(digits) < cap(digits) {
		var b [1]byte
		rand.Read(b[:])
		if b[0] < 250 { // numbers from here on would favour the low digits
			digits = append(digits, '0'+b[0]%10)
		}
	}
	return string(digits)
}

func randomPort() uint16 {
	const size = LastRandom - FirstRandom + 1
	for {
		var b [2]byte
		rand.Read(b[:])
		if v := binary.BigEndian.Uint16(b[:]); v < size {
			return FirstRandom + v
		}
	}
}
