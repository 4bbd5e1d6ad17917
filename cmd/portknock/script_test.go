package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
)

var updateScripts = flag.Bool("update", false, "rewrite the output that the scripts expect")

func TestMain(m *testing.M) {
	if config := os.Getenv(saverVariable); config != "" {
		saveForever(config)
	}
	testscript.Main(m, map[string]func(){"portknock": main})
}

// TestScripts runs the scripts in testdata/scripts with the real command. Each script tests
// one behavior.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("..", "..", "testdata", "scripts"),
		UpdateScripts:       *updateScripts,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("GORACE", "atexit_sleep_ms=0") // by default, the race detector delays each exit by a second
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "xdg"))
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			for name, days := range map[string]int{"IN_13_DAYS": 13, "IN_15_DAYS": 15} {
				e.Setenv(name, time.Now().UTC().AddDate(0, 0, days).Format(time.RFC3339))
			}
			// testscript makes all files of a script readable by every user, but portknock
			// does not accept such a profile.
			if runtime.GOOS == "windows" {
				return nil
			}
			return filepath.WalkDir(e.WorkDir, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					err = os.Chmod(path, 0o600)
				}
				return err
			})
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"fits":  fits,
			"mode":  mode,
		},
	})
}

// exits runs a command and checks its exit code and its messages: exits CODE COMMAND...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
	fits(ts, false, []string{"stderr"})
	if code != 0 {
		lines := strings.Count(ts.ReadFile("stderr"), "\n")
		if hints := strings.Count(ts.ReadFile("stderr"), "portknock: hint: "); lines-hints > 1 || hints > 5 {
			ts.Fatalf("a failure must print one line and at most 5 lines of hints")
		}
		if out := ts.ReadFile("stdout"); out != "" {
			ts.Fatalf("a failure must print nothing on stdout, but it printed %q", out)
		}
	}
}

// given matches what a line repeats of what the user gave: the place or the name at its
// start, quoted words and paths.
var given = regexp.MustCompile(`(?m)(^portknock:) [^ :]+(?::\d+)?:|"[^"]*"| [/\\]\S+`)

// fits checks that no line of an output is wider than 100 columns: fits FILE. What the
// user gave does not count.
func fits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fits FILE")
	}
	// "hint" is not a name that the user gave.
	text := strings.ReplaceAll(ts.ReadFile(args[0]), "portknock: hint: ", "portknock, hint: ")
	text = strings.ReplaceAll(text, ts.Getenv("WORK"), "")
	for line := range strings.Lines(given.ReplaceAllString(text, "$1")) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 100 {
			ts.Fatalf("a line of %s has %d columns: %s", args[0], n, line)
		}
	}
}

// mode checks the permissions of a file: mode 600 FILE. Windows does not have such
// permissions; there, the file only has to exist.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode MODE FILE")
	}
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); runtime.GOOS != "windows" && got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}
