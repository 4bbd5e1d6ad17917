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

// CanPassFD returns nil if [PassFD] can pass a connection to a file: the file must be a
// UNIX socket. Otherwise CanPassFD returns why not. It does not send anything.
func CanPassFD(to *os.File) error {
	isUnix := false
	err := control(to, func(fd uintptr) {
		addr, _ := unix.Getsockname(int(fd)) // addr is nil after an error
		_, isUnix = addr.(*unix.SockaddrUnix)
	})
	if err == nil && !isUnix {
		err = errors.New("not a UNIX socket")
	}
	return err
}

// PassFD hands a TCP connection over to the program at the other end of to, a UNIX
// socket. It sends the descriptor of conn as SCM_RIGHTS, together with one byte of value
// 0. ssh with ProxyUseFdpass waits for such a message (ssh_config(5), and mm_receive_fd
// in OpenSSH's monitor_fdpass.c).
//
// PassFD undoes two settings of Go, so that they are as connect(2) leaves them. The
// connection is blocking. TCP_NODELAY is off, and ssh sets it if necessary. PassFD does
// not change keep-alive, which is on for a connection of a [Dialer]. It is on by default
// in ssh too (TCPKeepAlive), but ssh turns it on only for the connections that ssh makes
// itself.
//
// On Linux, PassFD sets TCP_NOTSENT_LOWAT: ssh then does not fill the socket with data of
// an upload, and a key that is pressed during the upload waits for less data.
//
// PassFD always closes conn, even after an error. If the error is nil, the connection
// stays open at the other end. PassFD fails if conn is not a [*net.TCPConn], if to is not
// a UNIX socket, or if the other end of to is closed.
func PassFD(conn net.Conn, to *os.File) error {
	defer conn.Close()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("cannot pass a %T", conn)
	}
	err := CanPassFD(to)
	if err == nil {
		// An error means that the connection is dead. ssh will notice that.
		_ = tcp.SetNoDelay(false)
		withFD(tcp, func(fd int) { limitUnsent(fd, smallUnsent) })
		if closed := control(tcp, func(fd uintptr) { err = sendFD(to, int(fd)) }); closed != nil {
			err = closed
		}
	}
	if err != nil {
		return fmt.Errorf("cannot pass the connection: %w", err)
	}
	return nil
}

// sendFD makes the descriptor fd blocking and sends it to a UNIX socket.
func sendFD(to *os.File, fd int) error {
	// The receiver shares the flag. This process does not read or write fd any more.
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
