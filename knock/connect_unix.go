//go:build unix

package knock

import (
	"errors"
	"net/netip"
	"syscall"
)

// startConnect binds a non-blocking socket to from, if valid, and starts its
// connection: when it returns nil, the SYN is out.
func startConnect(fd uintptr, from netip.Addr, dest netip.AddrPort) error {
	if from.IsValid() {
		if err := syscall.Bind(int(fd), sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
			return err
		}
	}
	err := syscall.Connect(int(fd), sockaddr(dest))
	for _, sent := range []error{syscall.EINPROGRESS, syscall.EINTR, syscall.ECONNREFUSED} {
		if errors.Is(err, sent) {
			return nil // on loopback the answer can be here before connect returns
		}
	}
	return err
}
