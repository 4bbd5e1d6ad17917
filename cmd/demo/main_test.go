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
)

// tempFolder has all temporary files go to a folder with an unusual name, and
// fails the test if one is left.
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
			t.Errorf("left behind: %v, error %v", left, err)
		}
	})
}

// numbers are what differs from run to run.
var numbers = regexp.MustCompile(` *\d+\.\d m?s|127\.0\.0\.1(:\d+)?|\[?::1\]?(:\d+)?|\d+/(udp|tcp)|port \d+`)

// On a busy machine knocks can take more than one round, and the next round can
// begin before the connection is there.
const knockLine = "N  gate  knock at N from N\n"

var knocks = regexp.MustCompile("(" + knockLine + "){3,}(N  gate  all in order)")

func testStory(t *testing.T, ssh, who string) {
	tempFolder(t)
	var out bytes.Buffer
	if err := run(t.Context(), &out, ssh); err != nil {
		t.Fatalf("%v, after:\n%s", err, &out)
	}
	_, story, _ := strings.Cut(numbers.ReplaceAllString(out.String(), "N"), "\n1. ")
	story = strings.ReplaceAll(knocks.ReplaceAllString(story, "KNOCKS\n$2"), knockLine, "")
	want := `The port is closed
N  you   connect to N: refused

2. ssh demo hello
N  WHO   starts; portknock knocks for it
KNOCKS
N  gate  all in order: N opens for 2s
N  WHO   Hello from behind a closed port.

3. The opening ends, the session does not
N  gate  2s are over: N closes
N  you   connect to N: refused
N  WHO   Still here: a session outlives the opening.
N  WHO   exit status 0

4. The port is closed again
N  you   connect to N: refused

`
	if runtime.GOOS == "windows" {
		story = strings.ReplaceAll(story, "no answer", "refused") // some versions drop what nobody listens for
	}
	want = strings.ReplaceAll(want, "WHO ", who+strings.Repeat(" ", 4-len(who)))
	if !strings.HasPrefix(story, want) {
		t.Errorf("got:\n%s\nwant it to be:\n%s", &out, want)
	}
}

func TestStorySSH(t *testing.T) {
	path, err := exec.LookPath("ssh")
	if err != nil || !sshWorks(t.Context(), path, sshFolder(t)) {
		if os.Getenv("PORTKNOCK_LAB") == "require" {
			t.Fatal("no ssh that works")
		}
		t.Skip("no ssh that works")
	}
	testStory(t, path, "ssh")
}

func sshFolder(t *testing.T) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ssh_config"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestStoryGo(t *testing.T) { testStory(t, "", "go") }

// An ssh that cannot be used is as good as none.
func TestStoryBrokenSSH(t *testing.T) {
	testStory(t, filepath.Join(t.TempDir(), "ssh"), "go")
}

// writerFunc is told what is written.
type writerFunc func(string)

func (f writerFunc) Write(b []byte) (int, error) { f(string(b)); return len(b), nil }

func TestInterrupted(t *testing.T) {
	for _, at := range []string{"Building", "starts", "opens for", "Hello", "Still here"} {
		t.Run(at, func(t *testing.T) {
			tempFolder(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			enough := errors.New("enough")
			out := writerFunc(func(s string) {
				if strings.Contains(s, at) {
					cancel(enough)
				}
			})
			if err := run(ctx, out, ""); err != enough {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestBuildFails(t *testing.T) {
	tempFolder(t)
	t.Chdir(t.TempDir())
	err := run(t.Context(), &bytes.Buffer{}, "")
	if err == nil || !strings.HasPrefix(err.Error(), "portknock does not build: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
}

func TestLines(t *testing.T) {
	var got []string
	l := &lines{pass: func(s string) { got = append(got, s) }}
	for _, s := range []string{"a", "b\nc", "\r\n\n", "rest"} {
		l.Write([]byte(s))
	}
	if s := strings.Join(got, "|"); s != "ab|c|" {
		t.Errorf("got %q", s)
	}
}
