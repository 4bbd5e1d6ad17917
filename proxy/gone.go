//go:build unix

package proxy

import (
	"context"
	"os"
)

// ReaderGone returns a channel that is closed when nobody can read what is
// written to f any more: the last reader of a pipe, the peer of a socket, or the
// terminal is gone. A file, and /dev/null, have no reader to lose. On Windows
// the channel is never closed.
//
// The descriptor is watched on a thread of its own, until then or until ctx is
// done, and is in use for that time: closing f earlier has no effect before. No
// flag of it is changed, for others share it.
func ReaderGone(ctx context.Context, f *os.File) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		// SyscallConn, since Fd would make the descriptor a blocking one.
		raw, err := f.SyscallConn()
		if err != nil {
			close(gone)
			return
		}
		stop := -1 // no descriptor left for a pipe: then it cannot be stopped
		if r, w, err := os.Pipe(); err == nil {
			defer r.Close()
			unhook := context.AfterFunc(ctx, func() { w.Close() })
			defer func() {
				if unhook() {
					w.Close()
				}
			}()
			stop = int(r.Fd())
		}
		hungUp := false
		err = raw.Control(func(fd uintptr) { hungUp = awaitHangup(int(fd), stop) })
		if hungUp || err != nil { // with an error f is closed
			close(gone)
		}
	}()
	return gone
}
