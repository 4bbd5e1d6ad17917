package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// dialTCP opens a TCP connection from any port of the address from to the address and
// port to. If from is the zero Addr, the kernel chooses the source address.
//
// The connection may lose until Connect has chosen it. Until then, Close ends it by RST.
// On Linux the last ACK of the handshake is also held back for up to 200 ms. A server does
// not accept a connection that is closed before the ACK leaves.
//
// Keep-alive probes are on, at the system's own intervals. The session of a sleeping
// laptop is therefore not taken for dead too early.
//
// An ICMP message may cause the same error as a missing route of this machine. dialTCP
// returns such an error as a rejection, which does not end the attempts of a [Dialer].
func dialTCP(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: -1, Interval: -1, Count: -1},
		// Closing the socket sends RST in every state. The option is set before the
		// connect, so that a canceled socket never ends by FIN. Errors are ignored:
		// a system that lacks an option can still connect.
		Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = syscall.SetsockoptLinger(handle(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
				setHoldBack(fd, from.IsValid())
			})
		},
	}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		if isUnreachable(err, to.Addr()) && hasRoute(ctx, from, to) {
			err = &rejection{err}
		}
		return nil, err
	}
	return conn, nil
}

// settle makes a connection of dialTCP an ordinary connection: Close ends it by FIN, and
// the last ACK of the handshake leaves.
func settle(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		// An error means that the connection is dead already. The first read or
		// write will report that.
		_ = tcp.SetLinger(-1)
		_ = control(tcp, releaseHoldBack)
	}
}

// control calls f with the descriptor of c. Until f returns, the descriptor is in use
// and cannot be closed. Unlike Fd, control does not change a flag of the descriptor.
func control(c syscall.Conn, f func(fd uintptr)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(f)
}

// isUnreachable reports whether an ICMP message may have caused err. This machine's own
// routing table may have caused it as well. Only ICMPv6 has a message that becomes EACCES.
func isUnreachable(err error, to netip.Addr) bool {
	return isOneOf(err, errnosUnreachable) || to.Is6() && errors.Is(err, errnoProhibited)
}

// hasRoute reports whether this machine has a route for packets from from to to. It
// connects a UDP socket, which asks the routing table and does not send a packet.
func hasRoute(ctx context.Context, from netip.Addr, to netip.AddrPort) bool {
	conn, err := new(net.Dialer).DialUDP(ctx, "udp", netip.AddrPortFrom(from, 0), to)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
