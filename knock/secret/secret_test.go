package secret

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestCreateAndRead: what one direction writes, the other one reads.
func TestCreateAndRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	text := bytes.Repeat([]byte("x"), maxText)
	if err := Create(path, text); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	err := Create(path, []byte("other"))
	if want := path + " exists already; a key file is never overwritten"; !errors.Is(err, fs.ErrExist) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if got, err := Read(path); err != nil || !bytes.Equal(got, text) {
		t.Errorf("overwritten: %d bytes, %v", len(got), err)
	}
	if err := Replace(path, append(text, 'x'), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || err.Error() != path+": the file is too long to be a key" {
		t.Errorf("got %v", err)
	}
}

// TestReplace: a file is replaced as a whole, and nothing else is left beside it.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rules")
	for _, text := range []string{"one", "two"} {
		if err := Replace(path, []byte(text), nil); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); err != nil || string(got) != text {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if err := Replace(dir, nil, nil); err == nil || err.Error() != "cannot write "+dir+": not a regular file" {
		t.Errorf("got %v", err)
	}
	if err := Replace(filepath.Join(dir, "no", "file"), nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if runtime.GOOS == "windows" {
		return // links need a privilege
	}
	link, loose := filepath.Join(dir, "link"), filepath.Join(dir, "loose")
	if err := errors.Join(os.Symlink("rules", link), os.Symlink("nowhere", loose)); err != nil {
		t.Fatal(err)
	}
	if err := Replace(link, []byte("three"), nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(link); err != nil || got != "rules" {
		t.Errorf("the link leads to %q, %v", got, err)
	}
	if got, err := Read(path); err != nil || string(got) != "three" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := Replace(loose, nil, nil); err == nil || err.Error() != "cannot write "+loose+": the symbolic link points to nothing" {
		t.Errorf("got %v", err)
	}
}
