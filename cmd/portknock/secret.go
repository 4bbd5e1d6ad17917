package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// createSecret writes a new file that only its owner can read. It never
// overwrites: a key that is lost locks its owner out.
func createSecret(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return &failure{code: exitUsage, err: fmt.Errorf("%s exists, and a key is never overwritten", path)}
	}
	if err != nil {
		return fmt.Errorf("cannot write the key: %w", err)
	}
	if err := fill(f, text); err != nil {
		os.Remove(path)
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// replaceSecret writes a file that only its owner can read, or that has the mode
// and the owners of like, if that is not nil: all of it or nothing. Whoever reads
// it at this moment sees the old one or the new one.
func replaceSecret(path string, text []byte, like fs.FileInfo) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".portknock-*") // with mode 0600
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err = fill(f, text); err == nil && like != nil {
		if err = giveTo(f.Name(), like); err == nil { // which would clear bits of the mode
			err = os.Chmod(f.Name(), like.Mode().Perm())
		}
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("cannot write %s: %w", path, err)
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
