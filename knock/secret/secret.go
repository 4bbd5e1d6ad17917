// Package secret handles what only one user may see: it reads, creates and
// replaces files that only their owner can read, and runs commands that print a
// secret.
//
// The package writes to no stream of the process, opens no terminal and changes
// no signals. A program that wants a command to speak with its user passes what
// that takes in a [Runner].
package secret

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// innermost returns what the system said, without what the error adds to it: the
// names of files and commands.
func innermost(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return err
}

// maxText is the most bytes in a secret file, or in the output of a command.
const maxText = 4096

// Read returns the text of a file with a key. The file must be regular and hold
// 4096 bytes or less. On Unix it must be as ssh wants a private key: it belongs
// to the user or to root, and nobody else may read or write it.
func Read(path string) ([]byte, error) {
	// Not blocking: a pipe that nobody writes to would keep ssh waiting.
	f, err := os.OpenFile(path, os.O_RDONLY|nonBlocking, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat() // of what is open, not of what the path has come to mean since
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
