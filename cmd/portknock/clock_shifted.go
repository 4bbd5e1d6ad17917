//go:build shiftedclock

package main

import (
	"os"
	"time"
)

// The tests in cmd/internal/e2e build the command with the tag shiftedclock.
// PORTKNOCK_TEST_SHIFT then makes the command's clock wrong by that duration.
func init() {
	if shift, err := time.ParseDuration(os.Getenv("PORTKNOCK_TEST_SHIFT")); err == nil {
		now = func() time.Time { return time.Now().Add(shift) }
	}
}
