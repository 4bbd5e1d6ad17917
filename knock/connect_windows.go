package knock

import (
	"errors"
	"net/netip"
	"syscall"
	"unsafe"
)

const (
	fionbio        = 0x8004667e           // FIONBIO: switch a socket to non-blocking
	wsaeWouldBlock = syscall.Errno(10035) // WSAEWOULDBLOCK: the connection is on its way
	wsaeConnRefuse = syscall.Errno(10061) // WSAECONNREFUSED
)

// startConnect binds a socket to from, if valid, and starts its connection:
// when it returns nil, the SYN is out. The net package's sockets block on
// Windows (it uses overlapped calls), so this one is switched first.
func startConnect(fd uintptr, from netip.Addr, dest netip.AddrPort) error {
	h := syscall.Handle(fd)
	on, returned := uint32(1), uint32(0)
	err := syscall.WSAIoctl(h, fionbio, (*byte)(unsafe.Pointer(&on)), uint32(unsafe.Sizeof(on)), nil, 0, &returned, nil, 0)
	if err != nil {
		return err
	}
	if from.IsValid() {
		if err := syscall.Bind(h, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
			return err
		}
	}
	err = syscall.Connect(h, sockaddr(dest))
	if errors.Is(err, wsaeWouldBlock) || errors.Is(err, wsaeConnRefuse) {
		return nil
	}
	return err
}
