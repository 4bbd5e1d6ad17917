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
	from, to := rawConn(src), rawConn(dst)
	if from == nil || to == nil {
		return copyAll, nil, nil
	}
	// Control keeps a descriptor from being closed, and leaves its flags alone.
	err := from.Control(func(in uintptr) {
		err := to.Control(func(out uintptr) {
			s := splicer{in: int(in), out: int(out)}
			if s.isPipe(s.in) == s.isPipe(s.out) {
				next = copyAll
				return
			}
			var release func()
			s.stop, release = stopper(ctx)
			defer release()
			if s.stop < 0 { // nothing could end it, and conn's Close would wait for it
				return
			}
			next, readErr, writeErr = s.run()
			if next == finish && ctx.Err() != nil {
				readErr, writeErr = ctx.Err(), nil
			}
		})
		if err != nil {
			next, writeErr = finish, err
		}
	})
	if err != nil {
		next, readErr = finish, err
	}
	return next, readErr, writeErr
}

// rawConn returns the descriptor behind a reader or writer, or nil.
func rawConn(stream any) syscall.RawConn {
	c, ok := stream.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// splicer moves what comes out of one descriptor into another.
type splicer struct {
	in, out int
	stop    int // hangs up when it is time to end
}

func (s *splicer) isPipe(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// run splices until little comes, or stop hangs up, or something fails.
//
// It sleeps in poll(2) only. A splice(2) that sleeps for the socket holds the
// pipe's lock, and with it the program at the pipe's other end, even one that
// closes the pipe; and one that sleeps for either cannot be woken up to end. So
// each splice is one that does not wait. Of the EAGAIN that it may answer one
// cannot tell whom it is about, which is how io.Copy comes to spin
// (golang/go#75304). Here it is clear: in was seen to be ready, and stays so, as
// nobody else reads from it; so out is full. If out has room and it is still
// EAGAIN, this is nothing that waiting mends, such as urgent data next in line.
func (s *splicer) run() (next step, readErr, writeErr error) {
	s.enlarge()
	for {
		if !s.await(s.in, unix.POLLIN) {
			return finish, nil, nil
		}
		n, err := s.splice()
		if err == unix.EAGAIN {
			if !s.await(s.out, unix.POLLOUT) {
				return finish, nil, nil
			}
			n, err = s.splice()
		}
		switch {
		case err == nil && n >= bulk:
		case err == nil, err == unix.EAGAIN: // 0 may be the end, or urgent data before it: read(2) tells
			return copyLittle, nil, nil
		case err == unix.EFAULT, err == unix.EINVAL, err == unix.ENOSYS, err == unix.EPERM:
			return copyAll, nil, nil // the kernel declines; gVisor says EFAULT
		case err == unix.EPIPE, s.isPipe(s.in): // a socket that is read never says EPIPE
			return finish, nil, os.NewSyscallError("splice", err)
		default:
			return finish, os.NewSyscallError("splice", err), nil
		}
	}
}

// splice moves what can be moved at once.
func (s *splicer) splice() (int, error) {
	for {
		n, err := unix.Splice(s.in, nil, s.out, nil, spliceMost, unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR { // Go's scheduler sends signals
			return int(n), err
		}
	}
}

// await waits until fd is ready for events, or has failed, and returns true, or
// until stop has hung up, and returns false.
func (s *splicer) await(fd int, events int16) bool {
	fds := [2]unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(s.stop)}}
	for {
		_, err := unix.Poll(fds[:], -1)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN:
		case fds[1].Revents != 0, err != nil:
			return false
		default:
			return true
		}
	}
}

// enlarge makes the output pipe hold more, so that one splice(2) moves more. The
// reader of that pipe takes what is in it at once. The input pipe keeps its size:
// ssh fills it with the data of an upload, and each key that is pressed later
// waits behind that data.
//
// Only a transfer enlarges its pipe, and only to pipeBulk. When the pipes of one
// user hold 64 MiB together (pipe-user-pages-soft in pipe(7)), the kernel makes
// each new pipe of that user 8 KiB small, in every program. If the kernel does not
// allow the new size, the pipe keeps its old one.
func (s *splicer) enlarge() {
	size, err := unix.FcntlInt(uintptr(s.out), unix.F_GETPIPE_SZ, 0)
	if err == nil && size < pipeBulk { // F_GETPIPE_SZ fails for a socket
		_, _ = unix.FcntlInt(uintptr(s.out), unix.F_SETPIPE_SZ, pipeBulk)
	}
}
