//go:build unix

package secret

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// CheckOwner returns an error for a file that another user, except root, could have
// written. The file must belong to the user or to root, and the group and others must not
// have write permission.
func CheckOwner(path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s: owned by user %d, not by you or root; run chown, or use a file of your own", path, st.Uid)
	}
	return checkMode(path, info, 0o022, "writable")
}

// CheckReaders returns an error for a file that other users can read. The parameter what
// names the content of the file in the error, such as "a key".
func CheckReaders(path string, info fs.FileInfo, what string) error {
	return checkMode(path, info, 0o044, "contains "+what+" and is readable")
}

// checkKey returns an error for a file that ssh would not accept as a private key.
func checkKey(path string, info fs.FileInfo) error {
	return cmp.Or(CheckOwner(path, info), checkMode(path, info, 0o077, "contains a key and is accessible"))
}

// checkMode returns an error for a file whose mode has a bit of mask. In the error, the text
// what, such as "writable", stands before "by other users".
func checkMode(path string, info fs.FileInfo, mask fs.FileMode, what string) error {
	if mode := info.Mode().Perm(); mode&mask != 0 {
		return fmt.Errorf("%s: %s by other users (mode %04o); run chmod 600 %s", path, what, mode, path)
	}
	return nil
}

// createPrivate creates a file that only its owner can read. The file must not exist.
func createPrivate(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func rename(from, to string) error { return os.Rename(from, to) }

// setOwner gives a new file the owner and the group of the file like. These can differ
// from those of the new file: like may be shared with a group, or belong to root.
func setOwner(f *os.File, like fs.FileInfo) error {
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

// nonBlocking makes os.OpenFile return without waiting for the writer of a pipe.
const nonBlocking = syscall.O_NONBLOCK
