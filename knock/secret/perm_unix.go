//go:build unix

package secret

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// CheckOwner refuses a file that somebody else could have written.
func CheckOwner(path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s: owned by user %d, neither by you nor by root; chown it or use a file of your own", path, st.Uid)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: writable by others (mode %04o); chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return nil
}

// CheckReaders refuses a file that other users can read. What the file holds,
// such as "a key", is for the error.
func CheckReaders(path string, info fs.FileInfo, what string) error {
	if info.Mode().Perm()&0o044 != 0 {
		return fmt.Errorf("%s: holds %s and is readable by others (mode %04o); chmod 600 %s", path, what, info.Mode().Perm(), path)
	}
	return nil
}

// checkKey refuses what ssh refuses as a private key.
func checkKey(path string, info fs.FileInfo) error {
	if err := CheckOwner(path, info); err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s: holds a key and is accessible by others (mode %04o); chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return nil
}

// giveTo makes the owner and the group of another file those of a new one. They
// can differ: the file may be shared with a group, or be root's.
func giveTo(f *os.File, like fs.FileInfo) error {
	want, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if got, ok := info.Sys().(*syscall.Stat_t); ok && got.Uid == want.Uid && got.Gid == want.Gid {
		return nil
	}
	return f.Chown(int(want.Uid), int(want.Gid))
}

// nonBlocking is a flag for opening.
const nonBlocking = syscall.O_NONBLOCK
