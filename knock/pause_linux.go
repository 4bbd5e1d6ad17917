package knock

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// minTimerPause is the shortest pause for the timers of the runtime. On Linux they are
// not precise enough for less, because epoll counts whole milliseconds. A pause of
// 200 µs would take 1.1 ms, and a user would notice ten such pauses.
const minTimerPause = 2 * time.Millisecond

// pauseShortly waits for d, which is less than minTimerPause. Meanwhile, it has its own
// thread.
func pauseShortly(d time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The thread's timers may be 50 µs late by default. The value 1 sets 1 ns, and 0
	// restores the default. A failure of either call does not matter.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }()
	left := unix.NsecToTimespec(int64(d))
	for unix.Nanosleep(&left, &left) == unix.EINTR { // EINTR: a signal of the Go runtime
	}
}
