// Package secret handles data that only one user may see. It reads, creates and replaces
// files that only their owner can read, and runs commands that print a secret.
//
// The package does not write to the standard streams, does not open a terminal and does
// not change how the process handles signals. If a command must communicate with the user,
// the program that uses this package sets the fields of a [Runner].
package secret

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// innermost returns the error of the system. The outer errors are left out, because they
// add the names of files and commands.
func innermost(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return err
}

// maxText is the largest size of a secret file, and of a command's output, in bytes.
const maxText = 4096

// Read returns the text of a key file. The file must be regular and have at most 4096
// bytes. The file must meet ssh's rules for a private key. It must belong to the user or
// to root, and no other user may have access to it. On Windows, SYSTEM and the
// administrators take the place of root.
func Read(path string) ([]byte, error) {
	// Opening must not block, because a pipe without a writer would keep ssh waiting.
	f, err := os.OpenFile(path, os.O_RDONLY|nonBlocking, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat() // of the open file: the path may lead to another file by now
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	if err := checkKey(path, info); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxText {
		return nil, fmt.Errorf("%s: the file is too long to be a key", path)
	}
	return text, nil
}
