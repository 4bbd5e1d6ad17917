package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestErrorsEscapeWhatATerminalObeys: an operand or flag from the user, such as a host name that
// a git URL contains, never reaches the terminal raw.
func TestErrorsEscapeWhatATerminalObeys(t *testing.T) {
	home := t.TempDir()
	config := filepath.Join(home, "config")
	if err := os.WriteFile(config, []byte("Host vps\nSequence 7001/udp 8003\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"\x1b[31mred", "a\x1b]0;title\a", "a\u009b31m", "a\xffb\x1b", "a\u202eb", "a\bb", "a\r\nb\x1b"} {
		for _, command := range []string{
			"BAD", "BAD 22", "BAD x", "vps BAD", "BAD x y", "--BAD vps 22", "-BAD vps 22", "-c BAD vps 22", "-o BAD vps 22",
			"-o Scheme=BAD vps 22", "-c CONFIG BAD 22", "-c CONFIG --profile BAD vps 22", "--log-file BAD/x vps 22",
			"knock -c CONFIG BAD", "sequence -c CONFIG --at BAD vps", "emit-rules -c CONFIG --format BAD vps", "deploy -c CONFIG BAD",
			"help BAD", "profile BAD", "profile show -c CONFIG BAD", "profile import BAD", "profile add -c CONFIG BAD", "profile add -c CONFIG new --host BAD",
			"profile add -c CONFIG new --scheme BAD", "profile remove -c CONFIG BAD", "profile rotate -c CONFIG BAD", "profile rotate -c CONFIG --scheme BAD vps", "profile edit BAD", "keygen --from BAD --host vps", "status BAD", "version BAD",
		} {
			var args []string
			for _, word := range strings.Fields(command) {
				args = append(args, strings.NewReplacer("BAD", bad, "CONFIG", config).Replace(word))
			}
			c := exec.CommandContext(t.Context(), "portknock", args...)
			c.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_STATE_HOME="+home)
			out, err := c.CombinedOutput()
			if err == nil {
				t.Errorf("%q: no error", args)
			}
			for line := range strings.Lines(string(out)) {
				for _, r := range strings.TrimSuffix(line, "\n") {
					if !strconv.IsPrint(r) || r == '\uFFFD' {
						t.Errorf("%q prints %q", args, line)
						break
					}
				}
			}
		}
	}
}

// TestOneLine: a text becomes one line, and what a terminal shows as it is stays.
func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		"a\r\nb\n\n\tc\n":           "a b c",
		`C:\new "x" 'y' \x1b`:       `C:\new "x" 'y' \x1b`,
		"größe … 東京":                "größe … 東京",
		"\x1b[0m\x7f\u202e\xff\x00": `\x1b[0m\x7f\u202e\xff\x00`,
	} {
		if got := oneLine(text); got != want {
			t.Errorf("oneLine(%q) is %q, want %q", text, got, want)
		}
	}
}
