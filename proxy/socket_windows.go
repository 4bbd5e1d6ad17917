package proxy

import (
	"syscall"

	"golang.org/x/sys/windows"
)

var (
	// A UDP socket gets WSAECONNRESET for the ICMP message.
	errnosRefused     = []syscall.Errno{windows.WSAECONNREFUSED, windows.WSAECONNRESET}
	errnosUnreachable = []syscall.Errno{windows.WSAEHOSTUNREACH, windows.WSAENETUNREACH}
	errnosNoRoute     = []syscall.Errno{
		windows.WSAEHOSTUNREACH, windows.WSAENETUNREACH, windows.WSAENETDOWN, windows.WSAEADDRNOTAVAIL,
	}
	errnosPermanent = []syscall.Errno{windows.WSAEAFNOSUPPORT, windows.WSAEACCES, windows.WSAEINVAL}
	errnosTemporary = []syscall.Errno{
		windows.WSAECONNREFUSED, windows.WSAECONNRESET, windows.WSAENOBUFS, windows.WSAEWOULDBLOCK,
	}
)

const errnoProhibited = windows.WSAEACCES

// handle is the type of a socket in package syscall.
type handle = syscall.Handle
