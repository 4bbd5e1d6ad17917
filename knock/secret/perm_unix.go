//go:build unix

package secret

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// CheckOwner refuses a file that somebody else could have written.
func CheckOwner(path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s: owned by user %d, not by you or root; run chown, or use a file of your own", path, st.Uid)
	}
	return checkMode(path, info, 0o022, "writable")
}

// CheckReaders refuses a file that other users can read. What the file holds,
// such as "a key", is for the error.
func CheckReaders(path string, info fs.FileInfo, what string) error {
	return checkMode(path, info, 0o044, "contains "+what+" and is readable")
}

// checkKey refuses what ssh refuses as a private key.
func checkKey(path string, info fs.FileInfo) error {
	return cmp.Or(CheckOwner(path, info), checkMode(path, info, 0o077, "contains a key and is accessible"))
}

// checkMode refuses a file that has a bit of the mask in its mode, which makes it
// what the error says, such as "writable", by others.
func checkMode(path string, info fs.FileInfo, mask fs.FileMode, what string) error {
	if mode := info.Mode().Perm(); mode&mask != 0 {
		return fmt.Errorf("%s: %s by other users (mode %04o); run chmod 600 %s", path, what, mode, path)
	}
	return nil
}

// giveTo makes the owner and the group of another file those of a new one. They
// can differ: the file may be shared with a group, or be root's.
func giveTo(f *os.File, like fs.FileInfo) error {
	want, ok := like.Sys().(*syscall.Stat_t)
	info, err := f.Stat()
	if !ok || err != nil {
		return err
	}
	if got, ok := info.Sys().(*syscall.Stat_t); ok && got.Uid == want.Uid && got.Gid == want.Gid {
		return nil
	}
	return f.Chown(int(want.Uid), int(want.Gid))
}

// nonBlocking is a flag for opening.
const nonBlocking = syscall.O_NONBLOCK
