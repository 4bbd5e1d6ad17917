package knock

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// socket is the type that package syscall uses for a socket.
type socket = syscall.Handle

// errnosSent lists the errors of connect that mean that the SYN has been sent.
var errnosSent = []error{windows.WSAEWOULDBLOCK, windows.WSAECONNREFUSED}

// unblock makes a socket non-blocking. On Windows, the sockets of the net package block,
// because the package uses overlapped calls.
func unblock(s socket) error {
	const fionbio = 0x8004667e // the control code FIONBIO
	on, returned := uint32(1), uint32(0)
	return syscall.WSAIoctl(s, fionbio, (*byte)(unsafe.Pointer(&on)), uint32(unsafe.Sizeof(on)), nil, 0, &returned, nil, 0)
}
