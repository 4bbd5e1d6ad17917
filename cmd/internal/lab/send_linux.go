package lab

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/portknock/portknock/knock"

	"golang.org/x/sys/unix"
)

// Raw packets have source ports from firstPort on, which are below those that the
// kernel picks.
const firstPort, portCount = 10000, 20000

// port returns the next source port. A host uses portCount ports before it uses one of
// them again.
func (h *Host) port() uint16 { return uint16(firstPort + h.portsUsed.Add(1)%portCount) }

// Send puts packets on the wire in order, without the host's own TCP and UDP. No packet
// is sent again, and the source address may be that of another host. Send fills in what
// a packet leaves out: the host's address, an unused source port, and the protocol.
// The protocol is TCP if the packet has Flags, else UDP.
func (h *Host) Send(t TB, packets ...Packet) {
	t.Helper()
	raw := make([][]byte, len(packets))
	for i, p := range packets {
		raw[i] = h.complete(p).marshal()
	}
	must(t, h.sendRaw(func(i int) ([]byte, netip.Addr) { return raw[i], packets[i].Dst.Addr() }, len(raw)))
}

// Flood is [Host.Send] for n packets, too many to keep in memory. It calls packet for
// each when it is about to send that packet.
func (h *Host) Flood(t TB, n int, packet func(i int) Packet) {
	t.Helper()
	must(t, h.sendRaw(func(i int) ([]byte, netip.Addr) {
		p := packet(i)
		return h.complete(p).marshal(), p.Dst.Addr()
	}, n))
}

func (h *Host) complete(p Packet) Packet {
	src, port := p.Src.Addr(), p.Src.Port()
	if !src.IsValid() {
		src = h.Addr(familyOf(p.Dst.Addr()))
	}
	if port == 0 {
		port = h.port()
	}
	p.Src = netip.AddrPortFrom(src, port)
	if p.Proto == 0 {
		p.Proto = unix.IPPROTO_UDP
		if p.Flags != 0 {
			p.Proto = unix.IPPROTO_TCP
		}
	}
	return p
}

// sendRaw sends n IP packets from the one processor from which all raw packets leave.
// The kernel makes sendRaw wait when too many packets are on their way, so that the
// kernel does not lose a packet.
func (h *Host) sendRaw(packet func(i int) ([]byte, netip.Addr), n int) (err error) {
	h.Do(func() {
		pin(processors()[0])
		socket := map[Family]int{}
		defer func() {
			for _, fd := range socket {
				_ = unix.Close(fd)
			}
		}()
		for i := 0; i < n && err == nil; i++ {
			b, to := packet(i)
			f := familyOf(to)
			fd, open := socket[f]
			if !open {
				domain := map[Family]int{IPv4: unix.AF_INET, IPv6: unix.AF_INET6}[f]
				if fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
					return
				}
				socket[f] = fd
				timeout := unix.NsecToTimeval(limit.Nanoseconds())
				if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
					return
				}
			}
			if f == IPv4 {
				err = unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.As4()})
			} else {
				err = unix.Sendto(fd, b, 0, &unix.SockaddrInet6{Addr: to.As16()})
			}
		}
	})
	if err != nil {
		err = fmt.Errorf("%s: raw packet: %w", h.Name, err)
	}
	return err
}

// KnockPacket returns the packet of one knock. See [Packet] for a src that is zero.
func KnockPacket(src netip.AddrPort, to netip.Addr, s knock.Step) Packet {
	p := Packet{Src: src, Dst: netip.AddrPortFrom(to, s.Port), Payload: s.Payload}
	if s.Transport == knock.TCP {
		p.Flags = SYN
	}
	return p
}

// Knock sends knocks from the host's own address, without pauses.
func (h *Host) Knock(t TB, to netip.Addr, steps ...knock.Step) {
	t.Helper()
	h.KnockFrom(t, h.Addr(familyOf(to)), to, steps...)
}

// KnockFrom is [Host.Knock] from another address.
func (h *Host) KnockFrom(t TB, from, to netip.Addr, steps ...knock.Step) {
	t.Helper()
	packets := make([]Packet, len(steps))
	for i, s := range steps {
		packets[i] = KnockPacket(netip.AddrPortFrom(from, 0), to, s)
	}
	h.Send(t, packets...)
}

// Order is the order of the ports in a sweep.
type Order string

// The orders of a sweep. Random is the same order in every run.
const (
	Ascending  Order = "ascending"
	Descending Order = "descending"
	Random     Order = "random"
)

// Sweep sends one knock to every port from 1 to 65535, from one source port.
func (h *Host) Sweep(t TB, to netip.Addr, transport knock.Transport, order Order) {
	t.Helper()
	h.sweep(t, h.Addr(familyOf(to)), to, transport, order)
}

func (h *Host) sweep(t TB, from, to netip.Addr, transport knock.Transport, order Order) {
	t.Helper()
	list := make([]uint16, 65535)
	for i := range list {
		list[i] = uint16(i + 1)
	}
	switch order {
	case Descending:
		slices.Reverse(list)
	case Random:
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	src := netip.AddrPortFrom(from, h.port())
	must(t, h.sendRaw(func(i int) ([]byte, netip.Addr) {
		return h.complete(KnockPacket(src, to, knock.Step{Transport: transport, Port: list[i]})).marshal(), to
	}, len(list)))
}
