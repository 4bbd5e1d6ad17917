package knock

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// socket is a socket as package syscall takes it.
type socket = syscall.Handle

// errnosSent are what connect returns when the SYN is out.
var errnosSent = []error{windows.WSAEWOULDBLOCK, windows.WSAECONNREFUSED}

// unblock switches a socket to non-blocking. The net package's sockets block on
// Windows, because it uses overlapped calls.
func unblock(s socket) error {
	const fionbio = 0x8004667e // FIONBIO
	on, returned := uint32(1), uint32(0)
	return syscall.WSAIoctl(s, fionbio, (*byte)(unsafe.Pointer(&on)), uint32(unsafe.Sizeof(on)), nil, 0, &returned, nil, 0)
}
