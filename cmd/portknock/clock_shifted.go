//go:build shiftedclock

package main

import (
	"os"
	"time"
)

// The tests of cmd/internal/e2e build the command with a clock that may be wrong.
func init() {
	if shift, err := time.ParseDuration(os.Getenv("PORTKNOCK_TEST_SHIFT")); err == nil {
		now = func() time.Time { return time.Now().Add(shift) }
	}
}
