//go:build unix

package proxy

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// What awaitReady waits for.
const (
	forRead  = unix.POLLIN
	forWrite = unix.POLLOUT
)

// awaitReady waits until a call for file that has failed with err can be repeated. It
// returns false at once if repeating the call does not help. A blocking file returns
// EAGAIN after another process, which shares its flags, has made it non-blocking.
func awaitReady(file any, err error, event int16) bool {
	c, ok := file.(syscall.Conn)
	if !ok || !errors.Is(err, syscall.EAGAIN) {
		return false
	}
	closed := control(c, func(fd uintptr) {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: event}}, -1)
	})
	return closed == nil && (err == nil || err == unix.EINTR) // Go's scheduler sends signals
}

// withFD calls f with the descriptor of a file or socket. It does nothing if file has no
// descriptor, or is closed.
func withFD(file any, f func(fd int)) {
	if c, ok := file.(syscall.Conn); ok {
		_ = control(c, func(fd uintptr) { f(int(fd)) })
	}
}
