//go:build unix

package profile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoadPermissions(t *testing.T) {
	const withSequence, withoutSequence = "Host vps\n" + sequenceLine, "Host vps\n    Port 22\n"
	path := filepath.Join(t.TempDir(), "config")
	for _, tt := range []struct {
		mode    fs.FileMode
		content string
		want    string // error, in which FILE stands for the path; "" for none
	}{
		{0o600, withSequence, ""},
		{0o400, withSequence, ""},
		{0o700, withSequence, ""},
		{0o640, withSequence, "FILE: contains a Sequence and is readable by other users (mode 0640); run chmod 600 FILE"},
		{0o604, withSequence, "FILE: contains a Sequence and is readable by other users (mode 0604); run chmod 600 FILE"},
		{0o644, withoutSequence, ""},
		{0o620, withSequence, "FILE: writable by other users (mode 0620); run chmod 600 FILE"},
		{0o666, withoutSequence, "FILE: writable by other users (mode 0666); run chmod 600 FILE"},
		{0o602, withoutSequence, "FILE: writable by other users (mode 0602); run chmod 600 FILE"},
	} {
		os.Remove(path)
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if want := strings.ReplaceAll(tt.want, "FILE", path); err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("%04o: got %v, want %s", tt.mode, err, want)
		}
	}
}

func TestLoadRejectsFileOfOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can change the owner of a file")
	}
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	want := path + ": owned by user 12345, not by you or root; run chown, or use a file of your own"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestLoadFollowsSymlink(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "real"), []byte("Host vps\n"+sequenceLine), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "config") // the mode of the link itself is 0777
	if err := os.Symlink("real", link); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(link); err != nil {
		t.Error(err)
	}
}

// The shell decides the mode of a pipe, and the owner of a pipe has no meaning. Load
// checks neither.
func TestLoadAcceptsPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	go os.WriteFile(path, []byte("Host vps\n"+sequenceLine), 0)
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Lookup("vps"); err != nil {
		t.Error(err)
	}

	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		return // on other systems, /dev/fd may not be mounted
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fmt.Fprint(w, "Host vps\n"+sequenceLine)
	w.Close()
	if f, err = Load(fmt.Sprintf("/dev/fd/%d", r.Fd())); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Lookup("vps"); err != nil {
		t.Error(err)
	}
}

func TestLoadOddFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir); err == nil || err.Error() != dir+": not a regular file" {
		t.Errorf("folder: got %v", err)
	}
	if _, err := Load(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: got %v, want ErrNotExist", err)
	}
	if _, err := Load("/dev/null"); err != nil {
		t.Errorf("/dev/null: got %v, want no error", err)
	}
	if runtime.GOOS == "linux" { // /dev/zero never ends
		if _, err := Load("/dev/zero"); err == nil || err.Error() != "/dev/zero: the file is larger than 4194304 bytes" {
			t.Errorf("/dev/zero: got %v", err)
		}
	}
	path := filepath.Join(dir, "config")
	if err := os.WriteFile(path, []byte("\nPrt 22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || err.Error() != path+`:2: unknown keyword "Prt"; did you mean Port?` {
		t.Errorf("unknown keyword: got %v", err)
	}
}
