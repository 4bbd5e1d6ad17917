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

// Read returns what Create has written. Create never overwrites a file.
func TestCreateNeverOverwrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	text := bytes.Repeat([]byte("x"), maxText)
	if err := Create(path, text); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || !bytes.Equal(got, text) {
		t.Errorf("after Create, Read returns %d bytes, error %v", len(got), err)
	}
	err := Create(path, []byte("other"))
	if want := path + " exists already; a key file is never overwritten"; !errors.Is(err, fs.ErrExist) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if got, err := Read(path); err != nil || !bytes.Equal(got, text) {
		t.Errorf("after a second Create, Read returns %d bytes, error %v", len(got), err)
	}
	if err := Replace(path, append(text, 'x'), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || err.Error() != path+": the file is too long to be a key" {
		t.Errorf("a file of 4097 bytes: got %v", err)
	}
}

// Replace replaces the whole file, and leaves no other file in the folder.
func TestReplaceLeavesNoOtherFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "rules")
	for _, text := range []string{"one", "two"} {
		if err := Replace(path, []byte(text), nil); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); err != nil || string(got) != text {
			t.Errorf("Read returns %q, error %v", got, err)
		}
	}
	if err := Replace(dir, nil, nil); err == nil || err.Error() != "cannot write "+dir+": not a regular file" {
		t.Errorf("a folder: got %v", err)
	}
	if err := Replace(filepath.Join(dir, "no", "file"), nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing folder: got %v, want fs.ErrNotExist", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("got the files %v, error %v; want only one", entries, err)
	}
	if runtime.GOOS == "windows" {
		return // symbolic links need a privilege on Windows
	}
	link, broken := filepath.Join(dir, "link"), filepath.Join(dir, "broken")
	if err := errors.Join(os.Symlink("rules", link), os.Symlink("nowhere", broken)); err != nil {
		t.Fatal(err)
	}
	if err := Replace(link, []byte("three"), nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(link); err != nil || got != "rules" {
		t.Errorf("the link leads to %q, error %v; want rules", got, err)
	}
	if got, err := Read(path); err != nil || string(got) != "three" {
		t.Errorf("after Replace by the link, Read returns %q, error %v", got, err)
	}
	if err := Replace(broken, nil, nil); err == nil || err.Error() != "cannot write "+broken+": the symbolic link points to nothing" {
		t.Errorf("a link to a missing file: got %v", err)
	}
}
