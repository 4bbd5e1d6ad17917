package proxy

import (
	"context"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// spliceMax is the number of bytes that one splice(2) is asked to move. With a
	// pipe that holds less, splice(2) moves less.
	spliceMax = 1 << 20

	// transferPipeSize is the number of bytes that the output pipe is made to hold for
	// a transfer. With half as many bytes a download costs more CPU time. With more
	// bytes it does not cost less.
	transferPipeSize = 256 << 10
)

// spliceStream goes on with a transfer that stream has begun. It needs a pipe on one
// side of the transfer and a socket on the other side. splice(2) then moves the pages
// without a copy.
//
// next tells stream how to go on. No data is lost.
//
//   - copyAll: dst and src are not a pipe and a socket, or the kernel declines splice(2).
//   - copyUntilBulk: less than bulkSize bytes came, src may have ended, or no descriptor
//     was left.
//   - finish: the stream has failed, or ctx is done. If ctx is done first, readErr is its
//     error.
func spliceStream(ctx context.Context, dst io.Writer, src io.Reader) (next step, readErr, writeErr error) {
	from, fromOK := src.(syscall.Conn)
	to, toOK := dst.(syscall.Conn)
	next = copyAll // also if a descriptor is closed: the next Read or Write reports that
	if !fromOK || !toOK {
		return next, nil, nil
	}
	_ = control(from, func(in uintptr) {
		_ = control(to, func(out uintptr) {
			if isPipe(int(in)) != isPipe(int(out)) {
				next, readErr, writeErr = splice(ctx, int(in), int(out))
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

// splice moves data from in to out until less than bulkSize bytes come at once, ctx is
// done, or something fails.
//
// splice sleeps in poll(2) only, and every call of splice(2) returns at once, for two
// reasons. A splice(2) that sleeps for the socket holds the lock of the pipe. The program
// at the other end of the pipe then waits too, even if it only closes the pipe. And a
// splice(2) that sleeps for the pipe or the socket cannot be woken up to end.
//
// splice(2) may return EAGAIN, which does not tell whether in or out is not ready. That
// is why io.Copy spins (golang/go#75304). Here poll(2) has reported that in is ready. in
// stays ready, because nobody else reads from it. EAGAIN therefore means that out is
// full. If out has room and splice(2) still returns EAGAIN, waiting does not help. Urgent
// data that is next in line has this effect.
func splice(ctx context.Context, in, out int) (next step, readErr, writeErr error) {
	stop, release := stopper(ctx)
	defer release()
	if stop < 0 { // ctx could not stop the splice, and conn.Close would wait for the splice
		return copyUntilBulk, nil, nil
	}
	enlargePipe(out)
	for {
		if !await(in, unix.POLLIN, stop) {
			return finish, ctx.Err(), nil
		}
		n, err := spliceOnce(in, out)
		if err == unix.EAGAIN {
			if !await(out, unix.POLLOUT, stop) {
				return finish, ctx.Err(), nil
			}
			n, err = spliceOnce(in, out)
		}
		switch {
		case err == nil && n >= bulkSize:
		case err == nil, err == unix.EAGAIN: // 0 bytes: the end, or urgent data; read(2) tells which
			return copyUntilBulk, nil, nil
		case err == unix.EFAULT, err == unix.EINVAL, err == unix.ENOSYS, err == unix.EPERM:
			return copyAll, nil, nil // the kernel declines; gVisor returns EFAULT
		case err == unix.EPIPE, isPipe(in): // reading a socket never returns EPIPE
			return finish, nil, os.NewSyscallError("splice", err)
		default:
			return finish, os.NewSyscallError("splice", err), nil
		}
	}
}

// spliceOnce moves the data that can be moved without waiting.
func spliceOnce(in, out int) (int64, error) {
	for {
		n, err := unix.Splice(in, nil, out, nil, spliceMax, unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR { // Go's scheduler sends signals
			return int64(n), err // n is an int on 32-bit processors
		}
	}
}

// enlargePipe makes the output pipe hold more, so that one splice(2) moves more. The
// reader of the output pipe takes its data at once. The input pipe keeps its size: ssh
// fills it with the data of an upload, and each key that is pressed later waits behind
// that data.
//
// Only a transfer enlarges its pipe, and only to transferPipeSize. The pipes of one user
// may hold 64 MiB together (pipe-user-pages-soft in pipe(7)). Above that, the kernel gives
// each new pipe of that user only 8 KiB, in every program. If the kernel does not allow
// the new size, the pipe keeps its old size.
func enlargePipe(pipe int) {
	size, err := unix.FcntlInt(uintptr(pipe), unix.F_GETPIPE_SZ, 0)
	if err == nil && size < transferPipeSize { // F_GETPIPE_SZ fails for a socket
		_, _ = unix.FcntlInt(uintptr(pipe), unix.F_SETPIPE_SZ, transferPipeSize)
	}
}
