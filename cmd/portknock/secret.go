package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// printSecret writes rules or a key to standard output. It warns if that is a file
// that other users can read: a shell's redirection makes such files. The way out
// is the argument that names a file.
func (a *app) printSecret(text []byte, argument string) error {
	if out, ok := a.stdout.(*os.File); ok && runtime.GOOS != "windows" {
		if info, err := out.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
			a.log.say(always, "warning: other users can read this output file (mode %04o): run chmod 600 on it, or use %s", info.Mode().Perm(), argument)
		}
	}
	_, err := a.stdout.Write(text)
	return err
}

// createSecret writes a new file that only its owner can read. It never
// overwrites: a key that is lost locks its owner out.
func createSecret(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return &failure{code: exitUsage, err: fmt.Errorf("%s exists, and a key is never overwritten", path)}
	}
	if err != nil {
		return notWritten(path, err)
	}
	if err := fill(f, text); err != nil {
		os.Remove(path)
		return notWritten(path, err)
	}
	return nil
}

// notWritten is the error for a file, without the names in the system's own: one
// of them may be that of a file beside it that is no more.
func notWritten(path string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		err = e.Err
	}
	return fmt.Errorf("cannot write %s: %w", cmp.Or(path, `""`), err)
}

// replaceable returns the file that is to be replaced for a path, which need not
// be there: what a link leads to, not the link. A rename would put a file in the
// place of a device too, and /dev/null would be gone for everybody.
func replaceable(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(path); err == nil {
			return "", fmt.Errorf("cannot write %s: a link that leads nowhere", path)
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

// replaceSecret writes a file that only its owner can read, or that has the mode
// and the owners of like, if that is not nil: all of it or nothing. Whoever reads
// it at this moment sees the old one or the new one.
func replaceSecret(path string, text []byte, like fs.FileInfo) error {
	target, err := replaceable(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(target), ".portknock-*") // with mode 0600
	if err != nil {
		return notWritten(path, err)
	}
	if err = fill(f, text); err == nil && like != nil {
		if err = giveTo(f.Name(), like); err == nil { // which would clear bits of the mode
			err = os.Chmod(f.Name(), like.Mode().Perm())
		}
	}
	if err == nil {
		err = os.Rename(f.Name(), target)
	}
	if err != nil {
		os.Remove(f.Name())
		return notWritten(path, err)
	}
	return nil
}

// fill writes text to a new file and closes it.
func fill(f *os.File, text []byte) error {
	_, err := f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
