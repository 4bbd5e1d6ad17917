package spa

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/netip"
	"time"
)

// fields returns the fields of a packet with the time t, in order. The package comment
// describes the fields and lists the types.
func (r *Request) fields(t time.Time) string {
	kind, kindWithTimeout := 1, 3
	switch {
	case r.NATLocal:
		kind, kindWithTimeout = 5, 6
	case r.NAT.IsValid():
		kind, kindWithTimeout = 2, 4
	}
	more := ""
	if r.NAT.IsValid() {
		more = ":" + b64(fmt.Appendf(nil, "%v,%d", r.NAT.Addr().Unmap(), r.NAT.Port()))
	}
	if r.Timeout > 0 {
		kind = kindWithTimeout
		more += fmt.Sprintf(":%d", r.Timeout/time.Second)
	}
	return fmt.Sprintf("%016d:%s:%d:3.0.0:%d:%s%s", random(1e16), b64([]byte(r.User)), t.Unix(), kind, b64(r.message()), more)
}

// message returns the address to open for and the ports to open.
func (r *Request) message() []byte {
	text := fmt.Append(nil, cmp.Or(r.Allow, netip.IPv4Unspecified()).Unmap()) // 0.0.0.0 means the packet's source
	for _, p := range r.Ports {
		text = fmt.Appendf(text, ",%v/%d", p.Transport, p.First)
	}
	return text
}

func b64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// random returns a number from 0 up to but not including limit. All these numbers are
// equally likely.
func random(limit int64) int64 {
	n, _ := rand.Int(rand.Reader, big.NewInt(limit)) // cannot fail: rand.Reader ends the program instead
	return n.Int64()
}
