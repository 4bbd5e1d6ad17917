//go:build !linux

package proxy

import (
	"syscall"
	"time"
)

// Only Linux can hold back the last ACK of a handshake.

func setHoldBack(uintptr, bool) {}

func releaseHoldBack(uintptr) {}

// roundTrip returns how long a dial took, which ended with conn. It returns 0 if the system
// may have sent the SYN again.
func roundTrip(_ syscall.Conn, took time.Duration) time.Duration {
	if took > 900*time.Millisecond {
		return 0
	}
	return took
}
