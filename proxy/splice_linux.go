package proxy

import (
	"context"
	"io"
	"net"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// spliceMax is the number of bytes that one splice(2) is asked to move. With a pipe that
// holds less, splice(2) moves less.
const spliceMax = 1 << 20

// declined lists the errors with which the kernel declines splice(2), or cannot do it now.
// gVisor returns EFAULT. EAGAIN means urgent data, see splice.
var declined = []error{unix.EAGAIN, unix.EINVAL, unix.ENOSYS, unix.EPERM, unix.EFAULT, unix.EOPNOTSUPP, unix.ENOMEM}

// spliceStream goes on with a transfer that stream has begun. It needs a pipe on one
// side of the transfer and a socket on the other side. splice(2) then moves the pages
// without a copy.
//
// next tells stream how to go on. No data is lost.
//
//   - copyAll: dst and src are not a pipe and a socket, or splice(2) has failed. If the
//     kernel has not just declined it, one error tells which side failed.
//   - copyUntilBulk: few bytes came, src may have ended, or no descriptor was left.
//   - finish: ctx is done, and readErr is its error.
func spliceStream(ctx context.Context, dst io.Writer, src io.Reader, moved func(int64)) (next step, readErr, writeErr error) {
	from, fromOK := src.(syscall.Conn)
	to, toOK := dst.(syscall.Conn)
	next = copyAll // also if a descriptor is closed: the next Read or Write reports that
	if !fromOK || !toOK {
		return next, nil, nil
	}
	_ = control(from, func(in uintptr) {
		_ = control(to, func(out uintptr) {
			if isPipe(int(in)) != isPipe(int(out)) {
				next, readErr, writeErr = splice(ctx, int(in), int(out), moved)
			}
		})
	})
	return next, readErr, writeErr
}

// isPipe reports whether fd is an end of a pipe.
func isPipe(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// splice moves data from in to out until typedSize bytes or less come at once, ctx is
// done, or something fails.
//
// splice sleeps in poll(2) only, and every call of splice(2) returns at once, for two
// reasons. A splice(2) that sleeps for the socket holds the lock of the pipe. The program
// at the other end of the pipe then waits too, even if it only closes the pipe. And a
// splice(2) that sleeps for the pipe or the socket cannot be woken up to end.
//
// splice(2) may return EAGAIN, which does not tell whether in or out is not ready. That
// is why io.Copy spins (golang/go#75304). Here poll(2) has reported that both are ready,
// and nobody else reads from in or writes to out. EAGAIN then means that waiting does not
// help: urgent data is next in line.
//
// A socket is ready for data when less than half of its limit of unsent data waits. Without
// this wait, splice(2) would go on filling the last packet, and ignore the limit.
func splice(ctx context.Context, in, out int, moved func(int64)) (next step, readErr, writeErr error) {
	stop, release := stopper(ctx)
	defer release()
	if stop < 0 { // ctx could not stop the splice, and conn.Close would wait for the splice
		return copyUntilBulk, nil, nil
	}
	for {
		if !await(in, unix.POLLIN, stop) || !await(out, unix.POLLOUT, stop) {
			return finish, ctx.Err(), nil
		}
		n, err := spliceOnce(in, out)
		if err == nil {
			moved(n)
		}
		switch {
		case err == nil && n > typedSize:
		case err == nil: // 0 bytes: the end, or urgent data; read(2) tells which
			return copyUntilBulk, nil, nil
		case slices.Contains(declined, err):
			return copyAll, nil, nil
		case err == unix.EPIPE, isPipe(in): // reading a socket never returns EPIPE
			return copyAll, nil, os.NewSyscallError("splice", err)
		default:
			return copyAll, os.NewSyscallError("splice", err), nil
		}
	}
}

// spliceOnce moves the data that can be moved without waiting.
func spliceOnce(in, out int) (int64, error) {
	for {
		n, err := unix.Splice(in, nil, out, nil, spliceMax, unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR { // Go's scheduler sends signals
			return n, err
		}
	}
}

// isDead reports whether conn can neither send nor receive any more. A peer that has only
// closed its side does not make conn dead.
func isDead(conn net.Conn) (dead bool) {
	withFD(conn, func(fd int) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, _ = unix.Poll(fds, 0)
		dead = fds[0].Revents&unix.POLLHUP != 0
	})
	return dead
}
