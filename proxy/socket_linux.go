package proxy

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// setHoldBack makes the kernel hold back the last ACK of the handshake for up to
// 200 ms. The ACK then leaves together with the first data. The kernel's function
// tcp_rcv_synsent_state_process does this for a client that has set TCP_DEFER_ACCEPT. A
// server that does not get the ACK does not accept the connection.
//
// If the source address will be bound, setHoldBack leaves the choice of the port to
// connect(2) instead of bind(2). connect(2) may choose a port that is in use towards
// another peer.
func setHoldBack(fd uintptr, bound bool) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1)
	if bound {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}
}

// releaseHoldBack sends the ACK that was held back. A server that speaks first, such as
// sshd, can then do so.
func releaseHoldBack(fd uintptr) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 0)
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
}

// roundTrip returns how long the answer to the SYN of a new connection took, as the kernel
// measured it. It returns 0 if the kernel did not measure it.
func roundTrip(conn syscall.Conn, _ time.Duration) (d time.Duration) {
	_ = control(conn, func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			d = time.Duration(info.Rtt) * time.Microsecond
		}
	})
	return d
}
