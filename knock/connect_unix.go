//go:build unix

package knock

import "syscall"

// socket is a socket as package syscall takes it.
type socket = int

// errnosSent are what connect returns when the SYN is out. On loopback, the answer
// can be here before connect returns.
var errnosSent = []error{syscall.EINPROGRESS, syscall.EINTR, syscall.ECONNREFUSED}

// unblock does nothing: the net package's sockets do not block.
func unblock(socket) error { return nil }
