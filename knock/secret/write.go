package secret

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// existsError is the error for a file that must not exist yet; it is
// [fs.ErrExist].
type existsError string

func (e existsError) Error() string {
	return fmt.Sprintf("%s exists already; a key file is never overwritten", string(e))
}

func (e existsError) Is(target error) bool { return target == fs.ErrExist }

// Create writes a new file that only its owner can read. It never overwrites: a
// key that is lost locks its owner out. If the file exists the error is
// [fs.ErrExist].
func Create(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return existsError(path)
	}
	if err != nil {
		return notWritten(path, err)
	}
	if err := fill(f, text, nil); err != nil {
		os.Remove(path)
		return notWritten(path, err)
	}
	return nil
}

// notWritten is the error for a file, without the names in the system's own: one
// of them may be that of a file beside it that is no more.
func notWritten(path string, err error) error {
	return fmt.Errorf("cannot write %s: %w", cmp.Or(path, `""`), innermost(err))
}

// replaceable returns the file that is to be replaced for a path, which need not
// be there: what a link leads to, not the link. A rename would put a file in the
// place of a device too, and /dev/null would be gone for everybody.
func replaceable(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(path); err == nil {
			return "", fmt.Errorf("cannot write %s: the symbolic link points to nothing", path)
		}
		return path, nil
	case err != nil:
		return "", notWritten(path, err)
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("cannot write %s: not a regular file", path)
	}
	// Nor can a file be replaced while it is written to, as by /dev/stdout.
	if out, err := os.Stdout.Stat(); err == nil && os.SameFile(info, out) {
		return "", fmt.Errorf("cannot write %s: it is standard output", path)
	}
	return filepath.EvalSymlinks(path)
}

// Replace writes a file that only its owner can read, or that has the mode and
// the owners of like, if that is not nil: all of it or nothing. Whoever reads it
// at this moment sees the old one or the new one. A symbolic link stays; the file
// that it leads to is replaced.
func Replace(path string, text []byte, like fs.FileInfo) error {
	target, err := replaceable(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(target), ".portknock-*") // with mode 0600
	if err != nil {
		return notWritten(path, err)
	}
	if err = fill(f, text, like); err == nil {
		err = os.Rename(f.Name(), target)
	}
	if err != nil {
		os.Remove(f.Name())
		return notWritten(path, err)
	}
	return nil
}

// fill writes text to a new file, gives the file the mode and the owners of like,
// if that is not nil, and closes the file. It changes the open file, never what
// its path means by now.
func fill(f *os.File, text []byte, like fs.FileInfo) error {
	_, err := f.Write(text)
	if err == nil && like != nil {
		if err = giveTo(f, like); err == nil { // which would clear bits of the mode
			err = f.Chmod(like.Mode().Perm())
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
