package proxy

import (
	"context"
	"os"
)

// ReaderGone returns a channel that is closed when nobody can read data written to f any
// more: the last reader of a pipe, the peer of a socket, or the terminal has gone. A
// regular file and /dev/null do not have a reader that can go. Windows reports only at
// the next write that a pipe has lost its reader. On Windows the channel is therefore
// closed only if f is closed.
//
// A thread of its own watches the descriptor until the reader has gone or ctx is done.
// The descriptor is in use until then: an earlier Close of f takes effect only
// afterwards. ReaderGone does not change a flag of the descriptor, because other
// processes share the flags.
func ReaderGone(ctx context.Context, f *os.File) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		stop, release := stopper(ctx)
		defer release()
		hungUp := false
		err := control(f, func(fd uintptr) { hungUp = awaitHangup(int(fd), stop) })
		if hungUp || err != nil { // an error means that f is closed
			close(gone)
		}
	}()
	return gone
}

// stopper returns a descriptor that hangs up when ctx is done, so that poll(2) can wait
// for ctx too. The function release frees the descriptor. If no descriptor is left, fd
// is -1, which poll(2) ignores.
func stopper(ctx context.Context) (fd int, release func()) {
	r, w, err := os.Pipe()
	if err != nil {
		return -1, func() {}
	}
	unhook := context.AfterFunc(ctx, func() { w.Close() })
	return int(r.Fd()), func() {
		unhook()
		w.Close()
		r.Close()
	}
}
