//go:build unix && !darwin

package profile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFind(t *testing.T) {
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
		{"home", home, "", system, inHome},
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
	if want := "no profile file " + empty + "/.config/portknock/config: file does not exist"; !errors.Is(err, fs.ErrNotExist) || err.Error() != want {
		t.Errorf("no file: got %v, want %s", err, want)
	}
	if entries, _ := os.ReadDir(empty); len(entries) != 0 {
		t.Errorf("Find has created %v", entries)
	}

	// A file that would be found in the root, or beside the program.
	t.Chdir(home)
	for _, tt := range []struct{ name, home, config string }{
		{"nothing", "", ""},
		{"relative XDG_CONFIG_HOME, no HOME", "", ".config"},
		{"tilde, no HOME", "", "~/" + config},
		{"relative HOME", ".", ""},
	} {
		t.Setenv("HOME", tt.home)
		t.Setenv("XDG_CONFIG_HOME", tt.config)
		t.Setenv("XDG_CONFIG_DIRS", system)
		got, err := Find()
		if want := "no profile file: neither HOME nor XDG_CONFIG_HOME is set to an absolute path"; err == nil || err.Error() != want {
			t.Errorf("%s: got %q, %v", tt.name, got, err)
		}
	}
	os.Unsetenv("HOME") // t.Setenv puts it back
	os.Unsetenv("XDG_CONFIG_HOME")
	if got, err := Find(); err == nil {
		t.Errorf("unset: got %q", got)
	}
}
