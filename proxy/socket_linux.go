package proxy

import "golang.org/x/sys/unix"

// setHoldBack has the kernel keep the last ACK of the handshake for up to
// 200 ms, for data to go with it: tcp_rcv_synsent_state_process does so for a
// client that has set TCP_DEFER_ACCEPT. A server that does not get it does not
// accept. If the source address will be bound, the port is left to the connect:
// it may then be one that is in use towards another peer.
func setHoldBack(fd uintptr, bound bool) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1)
	if bound {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}
}

// releaseHoldBack sends the ACK that is due, so that a server that speaks first
// does so now.
func releaseHoldBack(fd uintptr) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 0)
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
}
