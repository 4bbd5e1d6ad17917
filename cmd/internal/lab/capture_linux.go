package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Capture records all packets that pass a host's eth0. The kernel keeps the record until
// a test asks for the packets.
type Capture struct {
	host       *Host
	file       *os.File
	self, peer net.HardwareAddr
	packets    []Packet
}

// Capture starts a capture, which ends with the test unless it is closed before.
func (h *Host) Capture(t TB) *Capture {
	t.Helper()
	if len(h.peers) == 0 {
		t.Fatalf("%s has no link to capture from", h.Name)
	}
	fd, index, err := -1, 0, error(nil)
	h.Do(func() {
		var eth0 *net.Interface
		if eth0, err = net.InterfaceByName("eth0"); err != nil {
			return
		}
		index = eth0.Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	})
	must(t, err)
	c := &Capture{host: h, file: os.NewFile(uintptr(fd), "capture")}
	t.Cleanup(c.Close)
	c.self, _ = net.ParseMAC(mac(h.number))
	c.peer, _ = net.ParseMAC(mac(h.peers[0].number))
	// The buffer has room for a sweep of all ports and the answers to it.
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20))
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: index}))
	return c
}

func bigEndian(n uint16) uint16 { return n<<8 | n>>8 }

// Close ends the capture.
func (c *Capture) Close() { _ = c.file.Close() }

// Packets returns all IP packets captured so far, in order. They include all packets
// that left any host of the segment before the call and reached this host.
func (c *Capture) Packets(t TB) []Packet {
	t.Helper()
	if err := c.settle(t, limit); err != nil {
		t.Fatalf("%s: capture: %v", c.host.Name, err)
	}
	return c.packets
}

// probes counts the probes of all captures. The count is part of the hardware address to
// which the answer is sent. No host has that address, so the address identifies the probe.
var probes atomic.Uint32

// settle sends a probe from each processor, and reads until all are answered. It
// returns the error of reading, most likely a timeout.
func (c *Capture) settle(t TB, timeout time.Duration) error {
	t.Helper()
	unanswered := map[[6]byte]bool{}
	raw, err := c.file.SyscallConn()
	must(t, err)
	onThread(func() {
		for _, cpu := range processors() {
			hwaddr := [6]byte{0x06, byte(c.host.number)}
			binary.BigEndian.PutUint32(hwaddr[2:], probes.Add(1))
			unanswered[hwaddr] = true
			pin(cpu)
			_ = raw.Write(func(fd uintptr) bool {
				err = unix.Send(int(fd), c.probe(hwaddr), 0)
				return err != unix.EAGAIN
			})
			if err != nil {
				return
			}
		}
	})
	must(t, err)
	must(t, c.file.SetReadDeadline(time.Now().Add(timeout)))
	buf := make([]byte, 65536+14)
	for len(unanswered) > 0 {
		frame, seen, out, err := receive(c.file, buf)
		if err != nil {
			return err
		}
		if len(frame) < 14 {
			continue
		}
		if kind := binary.BigEndian.Uint16(frame[12:]); kind == unix.ETH_P_ARP && !out {
			delete(unanswered, [6]byte(frame))
		} else if p, ok := parse(frame[14:]); ok && kind != unix.ETH_P_ARP {
			p.Payload = append([]byte(nil), p.Payload...)
			p.Time, p.Out = seen, out
			c.packets = append(c.packets, p)
		}
	}
	return c.dropped()
}

// probe returns an ARP probe (RFC 5227). Its sender IP address is 0.0.0.0, so that the
// host that answers does not remember the sender.
func (c *Capture) probe(hwaddr [6]byte) []byte {
	b := append(append(append([]byte(nil), c.peer...), c.self...), 0x08, 0x06)
	b = append(b, 0, 1, 0x08, 0, 6, 4, 0, 1) // Ethernet, IPv4, their lengths, a request
	b = append(append(b, hwaddr[:]...), 0, 0, 0, 0)
	return append(append(b, 0, 0, 0, 0, 0, 0), c.host.peers[0].Addr(IPv4).AsSlice()...)
}

// receive reads a frame. It returns when the kernel saw the frame, and whether the host
// sent it.
func receive(f *os.File, buf []byte) (frame []byte, seen time.Time, out bool, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, seen, false, err
	}
	var n, oobn int
	var from unix.Sockaddr
	var failed error
	oob := make([]byte, 64)
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, _, from, failed = unix.Recvmsg(int(fd), buf, oob, 0)
		return failed != unix.EAGAIN
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, seen, false, err
	}
	if link, ok := from.(*unix.SockaddrLinklayer); ok {
		out = link.Pkttype == unix.PACKET_OUTGOING
	}
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for _, m := range messages {
			if m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
				seen = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return buf[:n], seen, out, nil
}

// dropped returns an error if the kernel could not keep all packets.
func (c *Capture) dropped() error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var stats *unix.TpacketStats
	var failed error
	if err = raw.Control(func(fd uintptr) {
		stats, failed = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err == nil {
		err = failed
	}
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("the capture lost %d packets: too many at once", stats.Drops)
	}
	return err
}

// State is the answer of a TCP port to a SYN.
type State int

// The states of a port.
const (
	Dropped State = iota // no answer
	Refused              // rejected with RST
	Open                 // answered with SYN and ACK
)

// String returns "dropped", "refused" or "open".
func (s State) String() string { return [...]string{"dropped", "refused", "open"}[s] }

// Probe sends one SYN to one TCP port, and returns the port's state. The state includes
// the effect of everything sent before. Probe does not wait for an answer that will not
// come.
func (h *Host) Probe(t TB, to netip.AddrPort) State {
	t.Helper()
	return h.ProbeFrom(t, h.Addr(familyOf(to.Addr())), to)
}

// ProbeFrom is [Host.Probe] from another of the host's addresses.
func (h *Host) ProbeFrom(t TB, from netip.Addr, to netip.AddrPort) State {
	t.Helper()
	p := h.complete(Packet{Src: netip.AddrPortFrom(from, 0), Dst: to, Flags: SYN})
	return h.answer(t, p, func() error {
		return h.sendRaw(func(int) ([]byte, netip.Addr) { return p.marshal(), to.Addr() }, 1)
	})
}

// answer returns the answer to p, after send has sent p.
func (h *Host) answer(t TB, p Packet, send func() error) State {
	t.Helper()
	c := h.Capture(t)
	defer c.Close()
	c.Packets(t)
	must(t, send())
	for _, a := range c.Packets(t) {
		if a.Src == p.Dst && a.Dst == p.Src {
			switch {
			case a.Flags&(SYN|ACK) == SYN|ACK:
				return Open
			case a.Flags&RST != 0:
				return Refused
			}
		}
	}
	return Dropped
}
