//go:build unix && !darwin

package profile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindSearchesXDGFolders(t *testing.T) {
	home, config, system := t.TempDir(), t.TempDir(), t.TempDir()
	write := func(dir string) string {
		path := filepath.Join(dir, "portknock", "config")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	inHome, inConfig, inSystem := write(filepath.Join(home, ".config")), write(config), write(system)
	empty := t.TempDir()
	for _, tt := range []struct{ name, home, config, dirs, want string }{
		{"HOME", home, "", system, inHome},
		{"XDG_CONFIG_HOME", home, config, system, inConfig},
		{"XDG_CONFIG_HOME without HOME", "", config, system, inConfig},
		{"relative XDG_CONFIG_HOME is ignored", home, "some/where", system, inHome},
		{"XDG_CONFIG_DIRS", empty, "", system, inSystem},
	} {
		t.Setenv("HOME", tt.home)
		t.Setenv("XDG_CONFIG_HOME", tt.config)
		t.Setenv("XDG_CONFIG_DIRS", tt.dirs)
		if got, err := Find(); got != tt.want || err != nil {
			t.Errorf("%s: got %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}

	t.Setenv("HOME", empty)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("XDG_CONFIG_DIRS", empty)
	_, err := Find()
	want := "no profile file " + empty + "/.config/portknock/config: file does not exist"
	if !errors.Is(err, fs.ErrNotExist) || err.Error() != want {
		t.Errorf("no file: got %v, want %s", err, want)
	}
	if entries, _ := os.ReadDir(empty); len(entries) != 0 {
		t.Errorf("Find has created %v", entries)
	}

	// Without HOME, Find searches the home folder of the passwd entry. Without such an entry, it
	// searches only the folders of the system. It never searches the root folder or the
	// working folder.
	t.Chdir(home)
	noEntry := func() string { return "" }
	for _, tt := range []struct{ name, home, config string }{
		{"no HOME, no XDG_CONFIG_HOME", "", ""},
		{"relative XDG_CONFIG_HOME, no HOME", "", ".config"},
		{"XDG_CONFIG_HOME with a tilde, no HOME", "", "~/" + config},
		{"relative HOME", ".", ""},
	} {
		t.Setenv("HOME", tt.home)
		t.Setenv("XDG_CONFIG_HOME", tt.config)
		t.Setenv("XDG_CONFIG_DIRS", empty+":some/where:"+system)
		if got, err := find(noEntry); got != inSystem || err != nil {
			t.Errorf("%s: got %q, %v; want %q", tt.name, got, err, inSystem)
		}
		if got, err := find(func() string { return home }); got != inHome || err != nil {
			t.Errorf("%s, with a passwd entry: got %q, %v; want %q", tt.name, got, err, inHome)
		}
		if got, err := find(func() string { return empty }); got != inSystem || err != nil {
			t.Errorf("%s, with a passwd entry: got %q, %v; want %q", tt.name, got, err, inSystem)
		}
		t.Setenv("XDG_CONFIG_DIRS", empty)
		got, err := find(noEntry)
		want := "no profile file in " + empty + ", and HOME is not an absolute path: file does not exist"
		if got != "" || !errors.Is(err, fs.ErrNotExist) || err.Error() != want {
			t.Errorf("%s: got %q, %v; want %s", tt.name, got, err, want)
		}
		got, err = find(func() string { return empty })
		path := empty + "/.config/portknock/config"
		if got != path || !errors.Is(err, fs.ErrNotExist) || err.Error() != "no profile file "+path+": file does not exist" {
			t.Errorf("%s, with a passwd entry: got %q, %v; want %s", tt.name, got, err, path)
		}
	}
	os.Unsetenv("HOME") // t.Setenv restores the variables after the test
	os.Unsetenv("XDG_CONFIG_HOME")
	os.Unsetenv("XDG_CONFIG_DIRS")
	if got, err := find(noEntry); got != "" || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/etc/xdg") {
		t.Errorf("all variables unset: got %q, %v; want an error that names /etc/xdg", got, err)
	}
}
