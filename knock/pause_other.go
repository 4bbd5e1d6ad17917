//go:build !linux

package knock

import "time"

// minTimerPause is 0, because the timers of the runtime are precise enough on this system.
const minTimerPause = 0

func pauseShortly(d time.Duration) { time.Sleep(d) }
