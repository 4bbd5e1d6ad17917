//go:build unix

package secret

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadChecksModeAndOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[fs.FileMode]string{ // mode and error; FILE stands for the path
		0o600: "",
		0o400: "",
		0o700: "",
		0o640: "FILE: contains a key and is accessible by other users (mode 0640); run chmod 600 FILE",
		0o604: "FILE: contains a key and is accessible by other users (mode 0604); run chmod 600 FILE",
		0o601: "FILE: contains a key and is accessible by other users (mode 0601); run chmod 600 FILE",
		0o620: "FILE: writable by other users (mode 0620); run chmod 600 FILE",
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Read(path)
		if want := strings.ReplaceAll(want, "FILE", path); err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("mode %04o: got %v, want %s", mode, err, want)
		}
	}
	if os.Getuid() != 0 {
		return // only root can change the owner of a file
	}
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "owned by user 12345") {
		t.Errorf("got %v, want an error for another owner", err)
	}
}

func TestReadDoesNotWaitForPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe") // the pipe has no writer
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || err.Error() != path+": not a regular file" {
		t.Errorf("got %v", err)
	}
}

// Without like, a new file has mode 0600 for every umask. With like, the new file has the
// mode, the owner and the group of like.
func TestReplaceKeepsModeAndOwners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := Replace(path, nil, nil); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("got mode %v, error %v; want 0600", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, 0, 65534); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("text"), before); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	was, is := before.Sys().(*syscall.Stat_t), after.Sys().(*syscall.Stat_t)
	if after.Mode() != before.Mode() || is.Uid != was.Uid || is.Gid != was.Gid || os.SameFile(before, after) {
		t.Errorf("got mode %v, user %d, group %d; want those of like, in a new file", after.Mode(), is.Uid, is.Gid)
	}
}
