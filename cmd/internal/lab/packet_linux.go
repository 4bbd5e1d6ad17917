package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is an IP packet that a test sends or captures.
type Packet struct {
	Src, Dst netip.AddrPort // source and destination; ports are 0 unless Proto is TCP or UDP
	Proto    uint8          // IP protocol, such as unix.IPPROTO_TCP
	Flags    Flags          // TCP flags
	Payload  []byte         // bytes after the TCP or UDP header

	Time time.Time // time at which the kernel saw the captured packet
	Out  bool      // the packet left the capturing host
}

// String returns the packet in one line, without the time.
func (p Packet) String() string {
	name := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp",
		unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmp6"}[p.Proto]
	if p.Proto == unix.IPPROTO_TCP {
		name += " " + p.Flags.String()
	}
	return fmt.Sprintf("%s > %s %s %d bytes", p.Src, p.Dst, name, len(p.Payload))
}

// Flags are the flags of a TCP segment.
type Flags uint8

// The flags in the order of RFC 9293.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

// String returns the flags as in "SYN|ACK".
func (f Flags) String() string {
	var set []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG"} {
		if f&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	return strings.Join(set, "|")
}

// marshal returns the packet with its IP header. The kernel later fills in only the
// checksum of an IPv4 header.
func (p Packet) marshal() []byte {
	var transport []byte
	sum := 0 // offset of the checksum
	if p.Proto == unix.IPPROTO_TCP {
		transport = make([]byte, 20, 20+len(p.Payload))
		transport[4] = 1       // a sequence number that is not 0
		transport[12] = 5 << 4 // header length in 32-bit words
		transport[13] = byte(p.Flags)
		binary.BigEndian.PutUint16(transport[14:], 64240) // window
		sum = 16
	} else {
		transport = make([]byte, 8, 8+len(p.Payload))
		binary.BigEndian.PutUint16(transport[4:], uint16(8+len(p.Payload)))
		sum = 6
	}
	binary.BigEndian.PutUint16(transport[0:], p.Src.Port())
	binary.BigEndian.PutUint16(transport[2:], p.Dst.Port())
	transport = append(transport, p.Payload...)
	src, dst := p.Src.Addr().AsSlice(), p.Dst.Addr().AsSlice()
	binary.BigEndian.PutUint16(transport[sum:], checksum(src, dst, []byte{0, p.Proto}, transport))

	var header []byte
	if p.Src.Addr().Is4() {
		header = make([]byte, 12, 20)
		header[0] = 4<<4 | 5
		binary.BigEndian.PutUint16(header[2:], uint16(20+len(transport)))
		binary.BigEndian.PutUint16(header[4:], p.Src.Port()) // identification: not 0
		header[8], header[9] = 64, p.Proto
	} else {
		header = make([]byte, 8, 40)
		header[0] = 6 << 4
		binary.BigEndian.PutUint16(header[4:], uint16(len(transport)))
		header[6], header[7] = p.Proto, 64
	}
	return append(append(append(header, src...), dst...), transport...)
}

// checksum returns the checksum of TCP and UDP, over the pseudo header too.
func checksum(src, dst, proto, transport []byte) uint16 {
	sum := uint32(len(transport))
	for _, part := range [][]byte{src, dst, proto, transport} {
		for i, b := range part {
			sum += uint32(b) << (8 * (1 - i%2))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		return 0xffff // the checksum 0 would mean that the packet has no checksum
	}
	return ^uint16(sum)
}

// parse reads an IP packet, starting at its IP header. ok is false if b is not an IP
// packet.
func parse(b []byte) (p Packet, ok bool) {
	var rest []byte
	var src, dst netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if header < 20 || total < header || total > len(b) {
			return p, false
		}
		p.Proto, rest = b[9], b[header:total]
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 { // a later fragment has no ports
			p.Src, p.Dst, p.Payload = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0), rest
			return p, true
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return p, false
		}
		p.Proto, rest = b[6], b[40:total]
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	default:
		return p, false
	}
	var sport, dport uint16
	size := 0
	switch {
	case p.Proto == unix.IPPROTO_TCP && len(rest) >= 20:
		size = min(int(rest[12]>>4)*4, len(rest))
		p.Flags = Flags(rest[13])
	case p.Proto == unix.IPPROTO_UDP && len(rest) >= 8:
		size = 8
	}
	if size > 0 {
		sport, dport = binary.BigEndian.Uint16(rest[0:]), binary.BigEndian.Uint16(rest[2:])
	}
	p.Payload = rest[size:]
	p.Src, p.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return p, true
}
