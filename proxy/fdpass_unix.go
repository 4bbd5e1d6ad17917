//go:build unix

package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// CanPassFD returns why [PassFD] cannot pass a connection to a file, or nil if
// it can: if the file is a UNIX socket. Nothing is sent.
func CanPassFD(to *os.File) error {
	isUnix := false
	err := control(to, func(fd uintptr) {
		addr, _ := unix.Getsockname(int(fd)) // nil with an error
		_, isUnix = addr.(*unix.SockaddrUnix)
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
	err := CanPassFD(to)
	if err == nil {
		// An error would mean that the connection is dead, which ssh will see.
		_ = tcp.SetNoDelay(false)
		if closed := control(tcp, func(fd uintptr) { err = sendFD(to, int(fd)) }); closed != nil {
			err = closed
		}
	}
	if err != nil {
		return fmt.Errorf("pass the connection: %w", err)
	}
	return nil
}

// sendFD makes a descriptor blocking, and sends it to a UNIX socket.
func sendFD(to *os.File, fd int) error {
	// The receiver shares the flag. Here nothing reads or writes any more.
	if err := unix.SetNonblock(fd, false); err != nil {
		return err
	}
	socket, err := to.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = socket.Write(func(s uintptr) bool {
		for {
			sent = unix.Sendmsg(int(s), []byte{0}, unix.UnixRights(fd), nil, 0)
			if sent != unix.EINTR { // Go's scheduler sends signals
				return sent != unix.EAGAIN
			}
		}
	})
	return cmp.Or(err, os.NewSyscallError("sendmsg", sent))
}
