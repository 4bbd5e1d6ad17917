package lab

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Reshape turns an IP packet into the packets that a network may carry instead, or that
// an attacker may send to bypass a rule.
type Reshape func(packet []byte) [][]byte

// SendAs is [Host.Send] for one packet that r reshapes first. A nil r does not change
// the packet. The packet goes to the host's first peer, whatever its destination.
func (h *Host) SendAs(t TB, p Packet, r Reshape) {
	t.Helper()
	must(t, h.sendAs(h.complete(p), r))
}

// ProbeAs is [Host.Probe] with any SYN, reshaped and sent as by [Host.SendAs].
func (h *Host) ProbeAs(t TB, p Packet, r Reshape) State {
	t.Helper()
	p = h.complete(p)
	return h.answer(t, p, func() error { return h.sendAs(p, r) })
}

func (h *Host) sendAs(p Packet, r Reshape) error {
	packets := [][]byte{p.marshal()}
	if r != nil {
		packets = r(packets[0])
	}
	via := h.peers[0].Addr(familyOf(p.Dst.Addr()))
	return h.sendRaw(func(i int) ([]byte, netip.Addr) { return packets[i], via }, len(packets))
}

// Then returns a Reshape that applies next to every packet that r makes.
func (r Reshape) Then(next Reshape) Reshape {
	return func(packet []byte) (all [][]byte) {
		for _, p := range r(packet) {
			all = append(all, next(p)...)
		}
		return all
	}
}

// split cuts a packet after its IPv4 or IPv6 header, and returns the protocol of the rest.
func split(packet []byte) (header, rest []byte, proto uint8) {
	if packet[0]>>4 == 4 {
		n := int(packet[0]&15) * 4
		return packet[:n:n], packet[n:], packet[9]
	}
	return packet[:40:40], packet[40:], packet[6]
}

// join is the reverse of split.
func join(header, rest []byte, proto uint8) []byte {
	b := slices.Concat(header, rest)
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[9] = proto
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
		b[6] = proto
	}
	return b
}

// fragmentIDs counts packets. The count is the identification in the IPv6 fragments of
// a packet.
var fragmentIDs atomic.Uint32

// Fragments cuts the part after the IPv4 or IPv6 header at these offsets, which must be
// multiples of 8. Without offsets, the packet becomes one fragment.
func Fragments(cuts ...int) Reshape {
	return func(packet []byte) (all [][]byte) {
		header, rest, proto := split(packet)
		cuts := append(slices.Clone(cuts), len(rest))
		begin, id := 0, fragmentIDs.Add(1)
		for i, end := range cuts {
			more := uint16(0)
			if i < len(cuts)-1 {
				more = 1
			}
			if header[0]>>4 == 4 {
				f := join(header, rest[begin:end], proto)
				binary.BigEndian.PutUint16(f[6:], uint16(begin/8)|more<<13)
				all = append(all, f)
			} else {
				f := make([]byte, 8)
				f[0] = proto
				binary.BigEndian.PutUint16(f[2:], uint16(begin)|more)
				binary.BigEndian.PutUint32(f[4:], id)
				all = append(all, join(header, append(f, rest[begin:end]...), unix.IPPROTO_FRAGMENT))
			}
			begin = end
		}
		return all
	}
}

// Options adds options to the IPv4 header. Their length must be a multiple of 4 bytes.
func Options(options ...byte) Reshape {
	return func(packet []byte) [][]byte {
		header, rest, proto := split(packet)
		header = append(header, options...)
		header[0] += byte(len(options) / 4)
		return [][]byte{join(header, rest, proto)}
	}
}

// Extension puts an extension header of 8 bytes, with these 6 bytes of content, after
// the IPv6 header.
func Extension(kind uint8, content ...byte) Reshape {
	return func(packet []byte) [][]byte {
		header, rest, proto := split(packet)
		return [][]byte{join(header, slices.Concat([]byte{proto, 0}, content, rest), kind)}
	}
}

// As changes the protocol in the IP header.
func As(proto uint8) Reshape {
	return func(packet []byte) [][]byte {
		header, rest, _ := split(packet)
		return [][]byte{join(header, rest, proto)}
	}
}

// Content replaces all that follows the IPv4 or IPv6 header by a packet of another
// protocol.
func Content(proto uint8, content ...byte) Reshape {
	return func(packet []byte) [][]byte {
		header, _, _ := split(packet)
		return [][]byte{join(header, content, proto)}
	}
}

// Inside puts the packet into another packet between the same hosts, behind a header
// (before) of the protocol proto.
func Inside(proto uint8, before ...byte) Reshape {
	return func(packet []byte) [][]byte {
		header, _, _ := split(packet)
		return [][]byte{join(header, append(before, packet...), proto)}
	}
}

// Patch replaces bytes. The offset counts from the end of the IPv4 or IPv6 header.
func Patch(offset int, bytes ...byte) Reshape {
	return func(packet []byte) [][]byte {
		header, rest, proto := split(slices.Clone(packet))
		copy(rest[offset:], bytes)
		return [][]byte{join(header, rest, proto)}
	}
}

// Cut keeps only n bytes after the IPv4 or IPv6 header.
func Cut(n int) Reshape {
	return func(packet []byte) [][]byte {
		header, rest, proto := split(packet)
		return [][]byte{join(header, rest[:n], proto)}
	}
}
