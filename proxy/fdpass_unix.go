//go:build unix

package proxy

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// CanPassFD returns why [PassFD] cannot pass a connection to a file, or nil if
// it can: if the file is a UNIX socket. Nothing is sent.
func CanPassFD(to *os.File) error {
	raw, err := to.SyscallConn()
	if err != nil {
		return err
	}
	isUnix := false
	err = raw.Control(func(fd uintptr) {
		addr, err := unix.Getsockname(int(fd))
		_, ok := addr.(*unix.SockaddrUnix)
		isUnix = ok && err == nil
	})
	if err == nil && !isUnix {
		err = errors.New("not a UNIX socket")
	}
	return err
}

// PassFD hands a TCP connection over to the program at the other end of to, a
// UNIX socket: its descriptor goes with one byte of value 0, as SCM_RIGHTS, which
// is what ssh waits for with ProxyUseFdpass (ssh_config(5), and mm_receive_fd in
// OpenSSH's monitor_fdpass.c). The connection is as connect(2) leaves one:
// blocking, and without the TCP_NODELAY that Go sets, which ssh sets if it sees
// fit. Keep-alive stays on: ssh has it on by default (TCPKeepAlive), but turns it
// on only for the connections that it makes itself.
//
// conn is closed in any case; if the error is nil the connection lives on at the
// other end. It is an error if conn is no [*net.TCPConn], if to is no UNIX
// socket, or if its other end is closed.
func PassFD(conn net.Conn, to *os.File) error {
	defer conn.Close()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("cannot pass a %T", conn)
	}
	if err := CanPassFD(to); err != nil {
		return fmt.Errorf("pass the connection: %w", err)
	}
	// An error would mean that the connection is dead, which ssh will see.
	_ = tcp.SetNoDelay(false)
	from, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	socket, err := to.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = from.Control(func(fd uintptr) {
		// Shared with the receiver. Here nothing reads or writes any more.
		if sendErr = unix.SetNonblock(int(fd), false); sendErr != nil {
			return
		}
		sendErr = socket.Write(func(s uintptr) bool {
			for {
				err = unix.Sendmsg(int(s), []byte{0}, unix.UnixRights(int(fd)), nil, 0)
				if err != unix.EINTR {
					return err != unix.EAGAIN
				}
			}
		})
		if sendErr == nil {
			sendErr = os.NewSyscallError("sendmsg", err)
		}
	})
	if err == nil {
		err = sendErr
	}
	if err != nil {
		return fmt.Errorf("pass the connection: %w", err)
	}
	return nil
}
