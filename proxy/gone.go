package proxy

import (
	"context"
	"os"
)

// ReaderGone returns a channel that is closed when nobody can read what is
// written to f any more: the last reader of a pipe, the peer of a socket, or the
// terminal is gone. A file, and /dev/null, have no reader to lose. Windows does not
// report before the next write that a pipe has lost its reader: there the channel is
// closed only if f is closed.
//
// The descriptor is watched on a thread of its own, until then or until ctx is
// done, and is in use for that time: closing f earlier has no effect before. No
// flag of it is changed, for others share it.
func ReaderGone(ctx context.Context, f *os.File) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		stop, release := stopper(ctx)
		defer release()
		hungUp := false
		err := control(f, func(fd uintptr) { hungUp = awaitHangup(int(fd), stop) })
		if hungUp || err != nil { // with an error f is closed
			close(gone)
		}
	}()
	return gone
}

// stopper returns a descriptor that hangs up when ctx is done, so that poll(2)
// can wait for that too, and a function that gives it back. It is -1, which
// poll(2) takes for nothing, if no descriptor is left.
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
