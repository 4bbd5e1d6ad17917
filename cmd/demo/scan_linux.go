package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// scan is the result of a scan of all TCP ports.
type scan struct {
	open   []uint16
	closed int // number of ports that have rejected the SYN
}

// answers returns how many ports have answered.
func (s scan) answers() int { return len(s.open) + s.closed }

const allPorts = 65535

// Offsets and flags in a TCP header.
const (
	tcpSize  = 20
	tcpFlags = 13
	flagSYN  = 0x02
	flagRST  = 0x04
	flagACK  = 0x10
)

// scanPorts sends a SYN to each TCP port, as nmap -sS does. Like nmap, it sends another SYN
// to each port that has not answered, because a packet may get lost.
func scanPorts(ctx context.Context, from, to netip.Addr) (s scan, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return s, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return s, err
	}
	var answered [allPorts + 1]bool
	receive := func() error { // reads the answers that have arrived
		packet := make([]byte, 100)
		for {
			n, err := unix.Read(fd, packet)
			if err != nil {
				return err
			}
			header := int(packet[0]&0xf) * 4 // size of the IP header
			if n < header+tcpSize {
				continue
			}
			tcp := packet[header:n]
			port := binary.BigEndian.Uint16(tcp)
			if answered[port] {
				continue
			}
			answered[port] = true
			switch flags := tcp[tcpFlags]; {
			case flags&flagRST != 0:
				s.closed++
			case flags&(flagSYN|flagACK) == flagSYN|flagACK:
				s.open = append(s.open, port)
			}
		}
	}
	for range 2 {
		for port := 1; port <= allPorts; port++ {
			if answered[port] {
				continue
			}
			if _, err := unix.Write(fd, synPacket(from, to, uint16(port))); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return s, err
			}
			if err := receive(); err != unix.EAGAIN {
				return s, err
			}
		}
		for s.answers() < allPorts {
			patience := 200 // milliseconds without an answer
			if s.answers() > 0 {
				patience = 2000 // the other answers may be late
			}
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience)
			if ctx.Err() != nil {
				return s, context.Cause(ctx)
			}
			if n == 0 || err != nil && err != unix.EINTR {
				break
			}
			receive()
		}
	}
	return s, nil
}

// synPacket returns the TCP header of a SYN.
func synPacket(from, to netip.Addr, port uint16) []byte {
	const pseudo = 12 // bytes of IP addresses, protocol and length, which the checksum covers
	b := make([]byte, pseudo+tcpSize)
	copy(b, from.AsSlice())
	copy(b[4:], to.AsSlice())
	b[9], b[11] = unix.IPPROTO_TCP, tcpSize
	tcp := b[pseudo:]
	binary.BigEndian.PutUint16(tcp, 40000) // source port
	binary.BigEndian.PutUint16(tcp[2:], port)
	tcp[12] = tcpSize / 4 << 4
	tcp[tcpFlags] = flagSYN
	binary.BigEndian.PutUint16(tcp[14:], 1024) // window
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum>>16+sum))
	return tcp
}
