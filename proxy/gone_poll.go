//go:build unix && !darwin && !dragonfly && !freebsd && !netbsd

package proxy

import "golang.org/x/sys/unix"

// awaitHangup waits until fd or stop has hung up. It returns true for fd, and false for
// stop or for both. If no event is requested, poll(2) reports only that a descriptor has
// hung up or failed.
func awaitHangup(fd, stop int) bool { return await(fd, 0, stop) }

// await waits until fd is ready for events or has failed, or until stop has hung up. It
// returns true for fd, and false for stop. If both happen at the same time, it returns
// false. It also returns false if poll(2) itself fails.
func await(fd int, events int16, stop int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(stop)}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN: // Go's scheduler sends signals
		case fds[1].Revents != 0, err != nil:
			return false
		default:
			return true
		}
	}
}
