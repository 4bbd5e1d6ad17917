package proxy

import (
	"context"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// spliceMost is how much one splice(2) is asked to move; a pipe that holds
	// less moves less.
	spliceMost = 1 << 20

	// pipeBulk is how many bytes the output pipe is made to hold for a transfer.
	// With half of it a download costs more CPU time; with more, no less.
	pipeBulk = 256 << 10
)

// spliceStream goes on with what stream has begun, for as long as much comes at
// once, and without a copy, if one of dst and src is a pipe and the other a
// socket: splice(2) hands the pages over. If they are something else, or the
// kernel declines, next is copyAll. If little comes, or the end, or no descriptor
// is left, next is copyLittle. Nothing is lost then, and stream goes on. If ctx is
// done first, its error is readErr.
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

// splice moves what comes out of in into out until little comes, or ctx is done, or
// something fails.
//
// It sleeps in poll(2) only. A splice(2) that sleeps for the socket holds the
// pipe's lock, and with it the program at the pipe's other end, even one that
// closes the pipe; and one that sleeps for either cannot be woken up to end. So
// each splice is one that does not wait. Of the EAGAIN that it may answer one
// cannot tell whom it is about, which is how io.Copy comes to spin
// (golang/go#75304). Here it is clear: in was seen to be ready, and stays so, as
// nobody else reads from it; so out is full. If out has room and it is still
// EAGAIN, this is nothing that waiting mends, such as urgent data next in line.
func splice(ctx context.Context, in, out int) (next step, readErr, writeErr error) {
	stop, release := stopper(ctx)
	defer release()
	if stop < 0 { // nothing could end the splice, and conn's Close would wait for it
		return copyLittle, nil, nil
	}
	enlarge(out)
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
		case err == nil && n >= bulk:
		case err == nil, err == unix.EAGAIN: // 0 may be the end, or urgent data before it: read(2) tells
			return copyLittle, nil, nil
		case err == unix.EFAULT, err == unix.EINVAL, err == unix.ENOSYS, err == unix.EPERM:
			return copyAll, nil, nil // the kernel declines; gVisor says EFAULT
		case err == unix.EPIPE, isPipe(in): // a socket that is read never says EPIPE
			return finish, nil, os.NewSyscallError("splice", err)
		default:
			return finish, os.NewSyscallError("splice", err), nil
		}
	}
}

// spliceOnce moves what can be moved at once.
func spliceOnce(in, out int) (int64, error) {
	for {
		n, err := unix.Splice(in, nil, out, nil, spliceMost, unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR { // Go's scheduler sends signals
			return n, err
		}
	}
}

// enlarge makes pipe, the output pipe, hold more, so that one splice(2) moves more. The
// reader of that pipe takes what is in it at once. The input pipe keeps its size:
// ssh fills it with the data of an upload, and each key that is pressed later
// waits behind that data.
//
// Only a transfer enlarges its pipe, and only to pipeBulk. When the pipes of one
// user hold 64 MiB together (pipe-user-pages-soft in pipe(7)), the kernel makes
// each new pipe of that user 8 KiB small, in every program. If the kernel does not
// allow the new size, the pipe keeps its old one.
func enlarge(pipe int) {
	size, err := unix.FcntlInt(uintptr(pipe), unix.F_GETPIPE_SZ, 0)
	if err == nil && size < pipeBulk { // F_GETPIPE_SZ fails for a socket
		_, _ = unix.FcntlInt(uintptr(pipe), unix.F_SETPIPE_SZ, pipeBulk)
	}
}
