//go:build !linux

package knock

import "time"

// coarse is 0: the runtime's timers are precise enough.
const coarse = 0

func pauseShortly(d time.Duration) { time.Sleep(d) }
