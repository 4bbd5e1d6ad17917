package secret

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// existsError is the error for a path at which a file exists already. It matches
// [fs.ErrExist].
type existsError string

func (e existsError) Error() string {
	return fmt.Sprintf("%s exists already; a key file is never overwritten", string(e))
}

func (e existsError) Is(target error) bool { return target == fs.ErrExist }

// Create writes a new file that only its owner can read. Create never overwrites a file,
// because a lost key locks its owner out. If the file exists, the error matches
// [fs.ErrExist].
//
// If Create cannot write the whole text, it removes the file. Create is not atomic: until
// it returns, other programs of the owner may see an incomplete file.
func Create(path string, text []byte) error {
	f, err := createPrivate(path)
	if errors.Is(err, fs.ErrExist) {
		return existsError(path)
	}
	if err != nil {
		return notWritten(path, err)
	}
	if err := writeAndClose(f, text, nil); err != nil {
		os.Remove(path)
		return notWritten(path, err)
	}
	syncFolder(path)
	return nil
}

// syncFolder makes the name of a file last through a loss of power: a server may already have the
// rules for a new key when the power fails. Some systems cannot do this, so an error has no effect.
func syncFolder(path string) {
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		_ = dir.Sync()
		dir.Close()
	}
}

// notWritten returns the error for a file that could not be written. It leaves out the
// file names of the system's error, because a name may be that of a temporary file which
// no longer exists.
func notWritten(path string, err error) error {
	return fmt.Errorf("cannot write %s: %w", cmp.Or(path, `""`), innermost(err))
}

// replaceable returns the file that Replace may replace for a path. The file may be
// missing. For a symbolic link, replaceable returns the file that the link leads to. A
// device is an error: a rename would replace it, and /dev/null would be gone for all
// users.
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
	// A file that is our standard output, as with /dev/stdout, cannot be replaced while
	// the program writes to it.
	if out, err := os.Stdout.Stat(); err == nil && os.SameFile(info, out) {
		return "", fmt.Errorf("cannot write %s: it is standard output", path)
	}
	return filepath.EvalSymlinks(path)
}

// Replace writes a file completely or not at all. It creates the file if it does not
// exist. If like is nil, only the owner can read the file. Otherwise the file gets the
// mode, the owner and the group of like. On Windows, with or without like, only the user,
// SYSTEM and the administrators have access to the file.
//
// A program that reads the file meanwhile sees the old text or the new text. A symbolic
// link stays; Replace replaces the file that the link leads to.
func Replace(path string, text []byte, like fs.FileInfo) error {
	target, err := replaceable(path)
	if err != nil {
		return err
	}
	f, err := createPrivate(filepath.Join(filepath.Dir(target), ".portknock-"+rand.Text()))
	if err != nil {
		return notWritten(path, err)
	}
	if err = writeAndClose(f, text, like); err == nil {
		err = rename(f.Name(), target)
	}
	if err != nil {
		os.Remove(f.Name())
		return notWritten(path, err)
	}
	syncFolder(target)
	return nil
}

// writeAndClose writes text to a new file and closes the file. If like is not nil, the file
// also gets the mode, the owner and the group of like. These changes apply to the open
// file, because the path may lead to another file by now.
func writeAndClose(f *os.File, text []byte, like fs.FileInfo) error {
	_, err := f.Write(text)
	if err == nil && like != nil {
		if err = setOwner(f, like); err == nil { // setOwner is first: it would clear bits of the mode
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
