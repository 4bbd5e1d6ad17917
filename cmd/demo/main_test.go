package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// tempFolder makes all temporary files of the test go to a folder with an unusual name.
// The test fails if it leaves a file in that folder.
func tempFolder(t *testing.T) {
	name := "a b"
	if runtime.GOOS != "windows" {
		name = "a 'b' \"c\" $HOME `d` %h \\ #"
	}
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"TMPDIR", "TMP", "TEMP"} {
		t.Setenv(v, dir)
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("files left in the temporary folder: %v, error %v", left, err)
		}
	})
}

// numbers matches the parts of the output that differ from run to run.
var numbers = regexp.MustCompile(` *\d+\.\d m?s|127\.0\.0\.1(:\d+)?|\[?::1\]?(:\d+)?|\d+/(udp|tcp)|port \d+`)

// knockLine is the line for one knock, after numbers has been replaced by N. The number of
// these lines varies: on a busy machine, portknock may need more than one round, and the
// next round can begin before the connection is made.
const knockLine = "N  gate  received knock N from N\n"

var knocks = regexp.MustCompile("(" + knockLine + "){3,}(N  gate  all knocks arrived in order)")

func testDemo(t *testing.T, ssh, client string) {
	tempFolder(t)
	var out bytes.Buffer
	ends := make(chan time.Time, 1)
	endOpeningsBy(t, openFor, ends)
	tell := writerFunc(func(s string) {
		out.WriteString(s)
		// On a busy machine, the login may take longer than openFor, so the clock starts after it.
		if strings.Contains(s, "Hello from") {
			time.AfterFunc(openFor, func() { ends <- time.Now() })
		}
	})
	if err := run(t.Context(), tell, ssh); err != nil {
		t.Fatalf("%v, after:\n%s", err, &out)
	}
	_, story, _ := strings.Cut(numbers.ReplaceAllString(out.String(), "N"), "\n1. ")
	story = strings.ReplaceAll(knocks.ReplaceAllString(story, "KNOCKS\n$2"), knockLine, "")
	want := `The port is closed
N  you   connect to N: connection refused

2. ssh demo hello
N  CLIENT   starts; portknock sends the knocks
KNOCKS
N  gate  all knocks arrived in order: N opens for 2s
N  CLIENT   Hello from behind a closed port.

3. The opening ends; the session stays open
N  gate  2s have passed: N closes
N  you   connect to N: connection refused
N  CLIENT   This session is still open, although the port is closed again.
N  CLIENT   exit status 0

4. The port is closed again
N  you   connect to N: connection refused

`
	if runtime.GOOS == "windows" {
		// Some versions of Windows drop a SYN to a port without a listener.
		story = strings.ReplaceAll(story, "no answer", "connection refused")
	}
	want = strings.ReplaceAll(want, "CLIENT ", client+strings.Repeat(" ", 4-len(client)))
	if !strings.HasPrefix(story, want) {
		t.Errorf("got:\n%s\nwant, with N for each number:\n%s", &out, want)
	}
}

func TestDemoWithSSH(t *testing.T) {
	path, err := exec.LookPath("ssh")
	if err != nil || !sshWorks(t.Context(), path, sshFolder(t)) {
		if os.Getenv("PORTKNOCK_LAB") == "require" {
			t.Fatal("this machine has no working ssh")
		}
		t.Skip("this machine has no working ssh")
	}
	testDemo(t, path, "ssh")
}

func sshFolder(t *testing.T) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ssh_config"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDemoWithGoClient(t *testing.T) { testDemo(t, "", "go") }

// TestDemoWithUnusableSSHUsesGoClient: the demo treats an ssh that cannot run like a missing ssh.
func TestDemoWithUnusableSSHUsesGoClient(t *testing.T) {
	testDemo(t, filepath.Join(t.TempDir(), "ssh"), "go")
}

// writerFunc is a writer: a function that gets the text of each write.
type writerFunc func(string)

func (f writerFunc) Write(b []byte) (int, error) { f(string(b)); return len(b), nil }

func TestInterruptedDemoReturnsCauseAndCleansUp(t *testing.T) {
	for _, text := range []string{"Building", "starts", "opens for", "Hello", "still open"} {
		t.Run(text, func(t *testing.T) {
			tempFolder(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			interrupted := errors.New("interrupted")
			out := writerFunc(func(s string) {
				if strings.Contains(s, text) {
					cancel(interrupted)
				}
			})
			if err := run(ctx, out, ""); err != interrupted {
				t.Errorf("the demo ended with error %v, want the cause of the cancellation", err)
			}
		})
	}
}

func TestBuildFailureIsOneLine(t *testing.T) {
	tempFolder(t)
	t.Chdir(t.TempDir())
	err := run(t.Context(), &bytes.Buffer{}, "")
	if err == nil || !strings.HasPrefix(err.Error(), "cannot build portknock: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("want one line that starts with \"cannot build portknock: \", got: %v", err)
	}
}

func TestLinesPassesCompleteLines(t *testing.T) {
	var got []string
	l := &lines{pass: func(s string) { got = append(got, s) }}
	for _, s := range []string{"a", "b\nc", "\r\n\n", "rest"} {
		l.Write([]byte(s))
	}
	if s := strings.Join(got, "|"); s != "ab|c|" {
		t.Errorf("lines passed %q, want \"ab|c|\"", s)
	}
}
