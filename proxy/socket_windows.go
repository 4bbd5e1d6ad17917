package proxy

import (
	"syscall"

	"golang.org/x/sys/windows"
)

var (
	errnosRefused     = []syscall.Errno{windows.WSAECONNREFUSED}
	errnosUnreachable = []syscall.Errno{windows.WSAEHOSTUNREACH, windows.WSAENETUNREACH}
	errnosNoRoute     = []syscall.Errno{
		windows.WSAEHOSTUNREACH, windows.WSAENETUNREACH, windows.WSAENETDOWN, windows.WSAEADDRNOTAVAIL,
	}
	errnosHopeless = []syscall.Errno{windows.WSAEAFNOSUPPORT, windows.WSAEACCES, windows.WSAEINVAL}
	errnosPassing  = []syscall.Errno{
		windows.WSAECONNREFUSED, windows.WSAECONNRESET, windows.WSAENOBUFS, windows.WSAEWOULDBLOCK,
	}
)

const errnoProhibited = windows.WSAEACCES

// setAbort has the socket end by RST when it is closed, whatever its state.
func setAbort(fd uintptr) {
	_ = syscall.SetsockoptLinger(syscall.Handle(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
}
