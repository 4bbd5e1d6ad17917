//go:build unix

package profile

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// checkOwner refuses a file that somebody else could have written.
func checkOwner(path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s: owned by user %d, neither by you nor by root; chown it or use a file of your own", path, st.Uid)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: writable by others (mode %04o); chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return nil
}

// checkReaders refuses a file that others can read. It is for one that holds a
// sequence.
func checkReaders(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o044 != 0 {
		return fmt.Errorf("%s: holds a Sequence and is readable by others (mode %04o); chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return nil
}

// nonBlocking is a flag for opening.
const nonBlocking = syscall.O_NONBLOCK

// checkKeyFile refuses what ssh refuses as a private key.
func checkKeyFile(path string, info fs.FileInfo) error {
	if err := checkOwner(path, info); err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s: holds a key and is accessible by others (mode %04o); chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return nil
}
