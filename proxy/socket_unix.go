//go:build unix

package proxy

import "syscall"

var (
	errnosRefused     = []syscall.Errno{syscall.ECONNREFUSED}
	errnosUnreachable = []syscall.Errno{syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN}
	errnosNoRoute     = []syscall.Errno{
		syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL,
		syscall.EHOSTDOWN, // macOS and the BSDs: no machine in the local network has the address
	}
	errnosPermanent = []syscall.Errno{
		syscall.EAFNOSUPPORT, syscall.EACCES, syscall.EPERM,
		syscall.EINVAL, // a link-local address without its zone
	}
	errnosTemporary = []syscall.Errno{
		syscall.ECONNREFUSED, syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR,
	}
)

const errnoProhibited = syscall.EACCES

// handle is the type of a socket in package syscall.
type handle = int
