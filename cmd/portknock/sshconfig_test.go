package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestIncludeIsFirstAndOnce: the Include becomes the first line, once, and all other bytes stay. An Include
// that does not apply to all hosts does not count.
func TestIncludeIsFirstAndOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "my home", ".ssh")
	i := sshIncludes{filepath.Join(dir, "portknock.conf"), dir}
	for _, tt := range []struct{ text, first string }{
		{"", "Include portknock.conf\n"},
		{"Host a\n  User b\n", "Include portknock.conf\n"},
		{"# comment\r\nHost a\r\n", "Include portknock.conf\r\n"},
		{"\ufeffHost a\n", "\ufeffInclude portknock.conf\n"},
		{"no line break", "Include portknock.conf\n"},
		{"Host *\nInclude portknock.conf\n", "Include portknock.conf\n"},
		{"match all\n  Include portknock.conf\n", "Include portknock.conf\n"},
		{"#Include portknock.conf\n", "Include portknock.conf\n"},
		{"Include other.conf portknock.conf.d/*\n", "Include portknock.conf\n"},
		{"Include \n", "Include portknock.conf\n"},
	} {
		got, already := i.insert(tt.text)
		if want := tt.first + strings.TrimPrefix(tt.text, "\ufeff"); already || got != want {
			t.Errorf("%q becomes %q (already there: %v), want %q", tt.text, got, already, want)
		}
		if _, already := i.insert(got); !already {
			t.Errorf("%q: the second time, the Include is not found", got)
		}
	}
	for _, text := range []string{
		"Include portknock.conf\n",
		"# comment\n\n\tinclude=\"portknock.conf\"\r\n",
		"INCLUDE other.conf ~/.ssh/portknock.conf",
		"Include *.conf\nHost a\n",
		"Include x \"" + filepath.Join(dir, "portknock.conf") + "\"\n",
	} {
		if _, already := i.insert(text); !already {
			t.Errorf("%q: the Include is not found", text)
		}
	}
	// HOME may differ from the home folder of the user's passwd entry.
	i.base = filepath.Join(t.TempDir(), ".ssh")
	got, already := i.insert("Include portknock.conf\n")
	if want := "Include \"" + i.file + "\"\nInclude portknock.conf\n"; already || got != want {
		t.Errorf("with another HOME, the configuration becomes %q (already there: %v), want %q", got, already, want)
	}
	if _, already := i.insert(got); !already {
		t.Errorf("%q: the second time, the Include is not found", got)
	}
}

// TestHeaderTellsProfileFile: the first line of the installed file tells the profile file and the
// flags, also for the profile file that needs no -c.
func TestHeaderTellsProfileFile(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	usual := filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "portknock", "config")
	if err := os.MkdirAll(filepath.Dir(usual), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(usual, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "my profiles")
	for _, c := range []sshConfig{
		{}, {fdpass: true}, {config: config{path: usual}}, {config: config{path: other}}, {config: config{path: other}, fdpass: true},
	} {
		path, wrong := usual, other
		if c.path == other {
			path, wrong = other, usual
		}
		got := installedBy(c.header(), path)
		if got == nil || got.path != c.path || got.fdpass != c.fdpass {
			t.Errorf("%q: read as %v", c.header(), got)
		}
		if installedBy(c.header(), wrong) != nil {
			t.Errorf("%q: taken as the file for %s", c.header(), wrong)
		}
	}
	if installedBy("# Written by: somebody else", usual) != nil || installedBy("", usual) != nil {
		t.Error("any first line is taken as that of portknock")
	}
}

// TestProxyCommandWithSpacesIsPortknock: a path with spaces is quoted, and still recognized as
// portknock.
func TestProxyCommandWithSpacesIsPortknock(t *testing.T) {
	for command, want := range map[string]bool{
		"":                         true,
		"portknock %h %p":          true,
		"exec /opt/portknock a":    true,
		"nc portknock":             false,
		proxyWords("/a b/nc", "x"): false,
		proxyWords(filepath.Join(string(filepath.Separator), "my programs", "portknock"), "-c", "x y"): true,
	} {
		s := &server{ssh: sshSettings{proxyCommand: command}}
		if got := s.direct(); got != want {
			t.Errorf("%s: direct is %v, want %v", command, got, want)
		}
	}
	if got, want := proxyWords("a b%"), `'a b%%'`; got != want && runtime.GOOS != "windows" {
		t.Errorf("proxyWords returns %s, want %s", got, want)
	}
}
