package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// dialTCP opens a TCP connection from the address from, any port, to the
// address and port to. If from is the zero Addr the kernel chooses.
//
// Until Connect has chosen it, the connection is one that may lose: Close ends
// it by RST, and on Linux the last ACK of the handshake is held back for up to
// 200 ms, so that the server does not accept a connection that is closed before.
// Keep-alive probes are on, at the system's own intervals: a sleeping laptop's
// session is none that has died.
//
// An error that the network has sent, rather than this machine's own routing
// table, does not end the attempts of a [Dialer].
func dialTCP(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: -1, Interval: -1, Count: -1},
		// The socket ends by RST when it is closed, whatever its state. This is set
		// before the connect, so that no moment is left in which a cancelled
		// socket could end by FIN. Options that a system lacks are no reason
		// not to connect.
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

// settle makes a connection of dialTCP an ordinary one.
func settle(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		// An error means that the connection is dead already, which the first
		// read or write will say.
		_ = tcp.SetLinger(-1)
		_ = control(tcp, releaseHoldBack)
	}
}

// control calls f with the descriptor of c. Until f returns, the descriptor is in use
// and cannot be closed. Unlike Fd, control does not change a flag of it.
func control(c syscall.Conn, f func(fd uintptr)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(f)
}

// isUnreachable reports whether err is one that either this machine or an ICMP
// message may have caused. Only ICMPv6 has one that becomes EACCES.
func isUnreachable(err error, to netip.Addr) bool {
	return isOneOf(err, errnosUnreachable) || to.Is6() && errors.Is(err, errnoProhibited)
}

// hasRoute reports whether this machine would send a packet from from to to.
// Connecting a UDP socket asks the routing table and sends nothing.
func hasRoute(ctx context.Context, from netip.Addr, to netip.AddrPort) bool {
	conn, err := new(net.Dialer).DialUDP(ctx, "udp", netip.AddrPortFrom(from, 0), to)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
