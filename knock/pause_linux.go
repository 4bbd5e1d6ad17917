package knock

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// coarse is the least that the runtime's timers can wait here: epoll counts
// whole milliseconds. A pause of 200 µs would take 1.1 ms, and ten of them
// would be felt.
const coarse = 2 * time.Millisecond

// pauseShortly waits for less than coarse, on a thread of its own meanwhile.
func pauseShortly(d time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The thread's timers may otherwise be 50 µs late. 0 restores that; neither
	// failing matters.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }()
	left := unix.NsecToTimespec(int64(d))
	for unix.Nanosleep(&left, &left) == unix.EINTR { // the runtime's own signals
	}
}
