//go:build darwin || dragonfly || freebsd || netbsd

package proxy

import "golang.org/x/sys/unix"

// awaitHangup waits until fd or stop has hung up. It returns true for fd, and false for
// stop. If both have hung up, the order of the kernel's events decides.
//
// On macOS, poll(2) does not watch a descriptor if no event is requested. On FreeBSD, it does
// not watch a socket, such as ssh's with ProxyUseFdpass. DragonFly and NetBSD do not promise
// to watch a descriptor. With kqueue(2), a read filter on the writing end of a pipe fires
// only when the pipe dies. A socket needs the write filter: it may also have data to read,
// and a peer that only stops sending still reads. With EV_CLEAR, each filter reports a
// change once, and not for as long as the change lasts.
//
// On FreeBSD, the read filter does not watch a named pipe that is open only for writing.
func awaitHangup(fd, stop int) bool {
	kq, err := unix.Kqueue()
	if err != nil {
		return false
	}
	defer unix.Close(kq)
	unix.CloseOnExec(kq)

	filter := unix.EVFILT_READ
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		filter = unix.EVFILT_WRITE
	}
	watch := func(fd, filter int) error {
		change := make([]unix.Kevent_t, 1)
		unix.SetKevent(&change[0], fd, filter, unix.EV_ADD|unix.EV_CLEAR)
		_, err := unix.Kevent(kq, change, nil, nil)
		return err
	}
	// A descriptor that cannot be watched, such as some devices, cannot hang up.
	_ = watch(fd, filter)
	if stop >= 0 {
		_ = watch(stop, unix.EVFILT_READ)
	}
	for {
		events := make([]unix.Kevent_t, 2)
		n, err := unix.Kevent(kq, nil, events, nil)
		if err != nil && err != unix.EINTR { // Go's scheduler sends signals
			return false
		}
		for _, e := range events[:max(n, 0)] {
			if e.Flags&unix.EV_EOF != 0 {
				return int(e.Ident) == fd
			}
		}
	}
}
