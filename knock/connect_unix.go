//go:build unix

package knock

import "syscall"

// socket is the type that package syscall uses for a socket.
type socket = int

// errnosSent lists the errors of connect that mean that the SYN has been sent. On
// loopback, the answer can arrive before connect returns.
var errnosSent = []error{syscall.EINPROGRESS, syscall.EINTR, syscall.ECONNREFUSED}

// prepare does nothing, because the sockets of the net package do not block.
func prepare(socket) error { return nil }
