package main

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// isLocked locks a file, and reports whether another process already holds the lock. The
// lock ends when the file is closed. If the file system does not support locks, isLocked
// returns false.
func isLocked(f *os.File) bool {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, new(windows.Overlapped))
	return errors.Is(err, windows.ERROR_LOCK_VIOLATION)
}
