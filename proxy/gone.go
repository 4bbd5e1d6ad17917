package proxy

import (
	"context"
	"os"
)

// ReaderGone returns a channel that is closed when nobody can read data written to f any
// more: the last reader of a pipe, the peer of a socket, or the terminal has gone. The
// channel is also closed if f is closed before ReaderGone begins to watch it. If ctx ends
// first, the channel stays open. A regular file and /dev/null do not have a reader that
// can go.
//
// On Windows, ReaderGone cannot watch for the reader, because Windows reports only at the
// next write that a pipe has lost its reader. There the channel is closed only if f was
// closed before.
//
// A thread of its own watches the descriptor until the reader has gone or ctx is done.
// The descriptor is in use until then. A Close of f before that does not end the
// watching, and the descriptor stays open until the watching ends. If f is non-blocking,
// Close waits for that. ReaderGone does not change a flag of the descriptor, because
// other processes share the flags.
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
