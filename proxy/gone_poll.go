//go:build unix && !darwin && !dragonfly && !netbsd

package proxy

import "golang.org/x/sys/unix"

// awaitHangup waits until fd has hung up, and returns true, or stop has, and
// returns false. A poll(2) that asks for no event reports just that.
func awaitHangup(fd, stop int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}, {Fd: int32(stop)}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN: // Go's scheduler sends signals
		case err != nil:
			return false
		case fds[0].Revents != 0:
			return true
		case fds[1].Revents != 0:
			return false
		}
	}
}
