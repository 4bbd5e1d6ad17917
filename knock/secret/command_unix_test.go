//go:build unix

package secret

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// run runs a shell script with a time limit that suits a busy machine.
func run(t *testing.T, script string) (string, error) {
	t.Helper()
	text, err := Runner{Limit: 10 * time.Second}.Run(t.Context(), []string{"sh", "-c", script}, "a key")
	return string(text), err
}

func TestRunReturnsTheOneLine(t *testing.T) {
	for script, want := range map[string]string{
		"echo a b":               "a b",
		"printf 'a\\r\\n'":       "a\r",
		"printf 'a\\n \\n'":      "a",
		"head -c 4096 /dev/zero": strings.Repeat("\x00", 4096),
	} {
		if got, err := run(t, script); got != want || err != nil {
			t.Errorf("script %q: got %q, error %v", script, got, err)
		}
	}
	for script, want := range map[string]string{
		"exit 3":                 "exit status 3",
		"kill -9 $$":             "signal: killed",
		"true":                   "printed nothing",
		"echo":                   "printed nothing",
		"cat":                    "printed nothing", // our standard input is for ssh, not for the command
		"echo a; echo b":         "printed more than one line",
		"head -c 4097 /dev/zero": "printed too much text for a key",
		"yes":                    "printed too much text for a key",
	} {
		if got, err := run(t, script); err == nil || err.Error() != want {
			t.Errorf("script %q: got %q, error %v; want the error %s", script, got, err, want)
		}
	}
	for name, want := range map[string]string{
		"no-such-program":  "executable file not found in $PATH",
		"/no/such/program": "no such file or directory",
	} {
		if _, err := (Runner{}).Run(t.Context(), []string{name}, "a key"); err == nil || err.Error() != want {
			t.Errorf("program %s: got %v, want %s", name, err, want)
		}
	}
}

// A Runner passes on what a command writes to its standard error. The Runner calls
// Foreground before the command starts, and done after the command has ended.
func TestRunPassesStderrAndCallsForeground(t *testing.T) {
	var stderr bytes.Buffer
	var order []string
	r := Runner{Stderr: &stderr, Foreground: func(c *exec.Cmd) func() {
		if c.Process != nil || c.SysProcAttr == nil || !c.SysProcAttr.Setpgid {
			t.Errorf("Foreground got a command that runs already or has no process group: %+v", c)
		}
		order = append(order, "foreground")
		return func() {
			if c.ProcessState == nil {
				t.Error("done is called before the command has ended")
			}
			order = append(order, "done")
		}
	}}
	for _, script := range []string{"echo locked >&2; echo key", "echo locked >&2; exit 1"} {
		stderr.Reset()
		order = nil
		_, err := r.Run(t.Context(), []string{"sh", "-c", script}, "a key")
		works := strings.HasSuffix(script, "key")
		if (err == nil) != works || stderr.String() != "locked\n" || strings.Join(order, " ") != "foreground done" {
			t.Errorf("script %q: error %v, standard error %q, calls %q", script, err, stderr.String(), order)
		}
	}
}

// Run kills a command that hangs, and all processes that the command has started.
func TestHangingCommandIsKilledWithChildren(t *testing.T) {
	for name, tt := range map[string]struct {
		limit time.Duration
		want  string
	}{
		"time limit passes":   {3 * time.Second, "did not print a key within 3s"},
		"context is canceled": {time.Minute, "interrupted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pid := filepath.Join(t.TempDir(), "pid")
			ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, errors.New("interrupted"))
			if tt.limit < time.Minute {
				ctx = t.Context()
			}
			defer cancel()
			start := time.Now()
			_, err := Runner{Limit: tt.limit}.Run(ctx, []string{"sh", "-c", "sleep 60 & echo $! >" + pid + "; wait"}, "a key")
			if err == nil || err.Error() != tt.want {
				t.Errorf("got the error %v", err)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("Run took %v", took)
			}
			text, err := os.ReadFile(pid)
			if err != nil {
				t.Fatal(err)
			}
			child, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			for range 100 { // the new parent of the child needs a moment to reap it
				if err := syscall.Kill(child, 0); err != nil || zombie(child) {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Errorf("the child process %d still runs", child)
		})
	}
}

// zombie reports whether a process is dead but not yet waited for.
func zombie(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && strings.Contains(string(text), ") Z ")
}

// Run does not wait for a child that keeps running, such as an agent.
func TestRunDoesNotWaitForChild(t *testing.T) {
	start := time.Now()
	if got, err := run(t, "echo key; sleep 20 2>/dev/null &"); got != "key" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Run took %v", took)
	}
}

// With Printed, each command runs once. A command that fails runs again.
func TestRunKeepsWhatCommandsPrinted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "runs")
	r := Runner{Printed: map[string][]byte{}}
	for _, name := range []string{"a", "b", "a", "b", "fails", "fails"} {
		text, err := r.Run(t.Context(), []string{"sh", "-c", `echo $1 >>"$2"; [ $1 != fails ] && echo "key $1"`, "sh", name, file}, "a key")
		if want := "key " + name; (string(text) != want || err != nil) && name != "fails" {
			t.Errorf("%s: got %q, error %v", name, text, err)
		}
	}
	if got, err := os.ReadFile(file); string(got) != "a\nb\nfails\nfails\n" || err != nil {
		t.Errorf("the commands ran in the order %q, error %v", got, err)
	}
}
