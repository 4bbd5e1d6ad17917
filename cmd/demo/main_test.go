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
func tempFolder(t *testing.T) string {
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
	return dir
}

func TestMain(m *testing.M) {
	if os.Args[0] == insideName || os.Getenv(mainVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// mainVariable is an environment variable that makes the test binary run main.
const mainVariable = "PORTKNOCK_DEMO_MAIN"

// withoutFirewall makes the demo use the gate.
func withoutFirewall(t *testing.T) {
	was := playGuard
	playGuard = func(*demo, context.Context) error { return unavailable("the test does not want it") }
	t.Cleanup(func() { playGuard = was })
}

// missing skips the test because the machine lacks what. Under PORTKNOCK_LAB=require it fails
// the test instead.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("PORTKNOCK_LAB") == "require" {
		t.Fatalf("the test needs %s, and PORTKNOCK_LAB=require", what)
	}
	t.Skipf("the test needs %s", what)
}

// numbers matches the parts of the output that differ from run to run.
var numbers = regexp.MustCompile(` *\d+ ms|127\.0\.0\.1(:\d+)?|\[?::1\]?(:\d+)?|\d+/(udp|tcp)|port \d{3,}`)

// knockLine is the line for one knock, after numbers has been replaced by N. The number of
// these lines varies: on a busy machine, portknock may need more than one round, and the
// next round can begin before the connection is made.
const knockLine = "N  gate      received knock N from N\n"

var knocks = regexp.MustCompile("(" + knockLine + "){3,}(N  gate      all knocks arrived in order)")

// story returns the part of the demo's output that follows the first "1. ", with N for each
// part that matches numbers.
func storyOf(out string) string {
	_, story, _ := strings.Cut(numbers.ReplaceAllString(out, "N"), "\n1. ")
	return story
}

func testGateDemo(t *testing.T, ssh, client string) {
	withoutFirewall(t)
	tempFolder(t)
	var out bytes.Buffer
	ends := make(chan time.Time, 1)
	endOpeningsBy(t, gateOpenFor, ends)
	tell := writerFunc(func(s string) {
		out.WriteString(s)
		// On a busy machine, the login may take longer than the opening, so the clock starts after it.
		if strings.Contains(s, "Hello from") {
			time.AfterFunc(gateOpenFor, func() { ends <- time.Now() })
		}
	})
	if err := run(t.Context(), tell, ssh); err != nil {
		t.Fatalf("%v, after:\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "\nThis computer cannot show the real firewall: the test does not want it.\n"+gateIntroduction) {
		t.Errorf("the demo does not introduce the gate:\n%s", &out)
	}
	story := strings.ReplaceAll(knocks.ReplaceAllString(storyOf(out.String()), "KNOCKS\n$2"), knockLine, "")
	want := `The port is closed
N  you       connect to N without knocks: connection refused

2. ssh demo hello
N  CLIENT       starts; portknock sends the knocks
KNOCKS
N  gate      all knocks arrived in order: N opens for 2s
N  CLIENT       Hello from behind a closed port.

3. The opening ends; the session stays open
N  gate      2s have passed: N closes
N  you       connect to N without knocks: connection refused
N  CLIENT       This session is still open, although the port is closed again.
N  CLIENT       exit status 0

4. The port is closed again
N  you       connect to N without knocks: connection refused
`
	if runtime.GOOS == "windows" {
		// Some versions of Windows drop a SYN to a port without a listener.
		story = strings.ReplaceAll(story, "no answer", "connection refused")
	}
	want = strings.ReplaceAll(want, "CLIENT ", client+strings.Repeat(" ", 4-len(client))) + quickStart
	if story != want {
		t.Errorf("got:\n%s\nwant, with N for each number:\n%s", &out, want)
	}
}

func TestGateDemoWithSSH(t *testing.T) { testGateDemo(t, workingSSH(t), "ssh") }

// workingSSH returns the path of ssh. It skips the test on a machine without a working ssh.
func workingSSH(t *testing.T) string {
	path, err := exec.LookPath("ssh")
	if err != nil || exec.Command(path, "-G", "-F", os.DevNull, "demo").Run() != nil {
		missing(t, "a working ssh")
	}
	return path
}

func TestGateDemoWithGoClient(t *testing.T) { testGateDemo(t, "", "go") }

// TestGateDemoWithUnusableSSHUsesGoClient: the demo treats an ssh that cannot run like a missing ssh.
func TestGateDemoWithUnusableSSHUsesGoClient(t *testing.T) {
	testGateDemo(t, filepath.Join(t.TempDir(), "ssh"), "go")
}

// writerFunc is a writer: a function that gets the text of each write.
type writerFunc func(string)

func (f writerFunc) Write(b []byte) (int, error) { f(string(b)); return len(b), nil }

func TestInterruptedGateDemoCleansUp(t *testing.T) {
	testInterrupts(t, withoutFirewall, "Building", "starts", "opens for", "Hello", "still open")
}

// testInterrupts interrupts the demo when it prints one of the texts. The demo must return the
// cause and leave no file behind.
func testInterrupts(t *testing.T, prepare func(*testing.T), texts ...string) {
	for _, text := range texts {
		t.Run(text, func(t *testing.T) {
			prepare(t)
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
