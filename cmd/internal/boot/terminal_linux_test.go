package boot

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

// columns is the width of a terminal.
const columns = 100

// startAtTerminal starts a command at a terminal of its own. It passes what the command prints to
// show, until the last process has closed the terminal. What is written to screen is typed at the
// terminal. The function wait waits until the command has ended and show has everything.
func startAtTerminal(t *testing.T, c *lab.Cmd, show func(screen io.Writer, text []byte)) (screen io.Writer, wait func() error) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(user.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: columns}); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
	err = c.Start()
	_ = tty.Close()
	if err != nil {
		t.Fatal(err)
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := user.Read(buf)
			if n > 0 {
				show(user, buf[:n])
			}
			if err != nil {
				return
			}
		}
	})
	return user, func() error {
		err := c.Wait()
		reader.Wait()
		return err
	}
}

// terminal runs a command at a terminal of its own. It types a line after each prompt that ends
// with a colon and a space. It returns all that the command prints.
func terminal(t *testing.T, c *lab.Cmd, lines ...string) (out string, err error) {
	t.Helper()
	var all bytes.Buffer
	_, wait := startAtTerminal(t, c, func(screen io.Writer, text []byte) {
		all.Write(text)
		if len(lines) > 0 && bytes.HasSuffix(all.Bytes(), []byte(": ")) {
			_, _ = io.WriteString(screen, lines[0]+"\n")
			lines = lines[1:]
		}
	})
	err = wait()
	return all.String(), err
}

// shell is a shell of a user at a terminal. A test types lines there, as the user would.
type shell struct {
	screen io.Writer

	mu    sync.Mutex
	shown []shown
	more  chan struct{} // has a value after each change of shown
}

// shown is what a terminal shows at one moment: a text that a program prints, or a line that
// the user types.
type shown struct {
	at    time.Time
	text  string
	typed bool
}

// newShell starts a shell of a user, with only the environment that a login sets. The shell does
// not edit lines, so that the terminal shows no control characters.
func newShell(t *testing.T, h *lab.Host, user string) *shell {
	t.Helper()
	c := h.Command("setsid", "--ctty", "setpriv", "--reuid", user, "--regid", user, "--init-groups", "--reset-env",
		"env", "-u", "TERM", "TERM=dumb", "PS1=$ ", "sh", "-c", "cd && exec sh -i")
	s := &shell{more: make(chan struct{}, 1)}
	s.screen, _ = startAtTerminal(t, c, func(_ io.Writer, text []byte) {
		s.mu.Lock()
		s.shown = append(s.shown, shown{at: time.Now(), text: strings.ReplaceAll(string(text), "\r", "")})
		s.mu.Unlock()
		select {
		case s.more <- struct{}{}:
		default:
		}
	})
	t.Cleanup(c.End)
	s.await(t, 0)
	return s
}

// asks matches a text after which a user types: the prompt of a shell, or a question.
var asks = regexp.MustCompile(`(^|\n)(\w+@\w+:~)?[$#] $|assword( of sudo on \S+)?: $|\[fingerprint\]\)\? $`)

// answerLimit bounds the time of a command at a terminal.
const answerLimit = 3 * time.Minute

// await waits until the terminal, after its first n texts, shows a text after which a user
// types. It returns the output since then.
func (s *shell) await(t *testing.T, n int) string {
	t.Helper()
	late := time.After(answerLimit)
	for {
		s.mu.Lock()
		out := output(s.shown[n:])
		s.mu.Unlock()
		if asks.MatchString(out) {
			return out
		}
		select {
		case <-s.more:
		case <-late:
			t.Fatalf("no prompt after %v; the terminal shows\n%s", answerLimit, out)
		}
	}
}

// enter types a line and returns what the terminal then shows, up to and with the next prompt.
func (s *shell) enter(t *testing.T, line string) string {
	t.Helper()
	s.mu.Lock()
	s.shown = append(s.shown, shown{at: time.Now(), text: line, typed: true})
	n := len(s.shown)
	s.mu.Unlock()
	if _, err := io.WriteString(s.screen, line+"\n"); err != nil {
		t.Fatal(err)
	}
	return s.await(t, n)
}

// output returns the texts that programs have printed. The terminal echoes what the user types,
// unless it is a password.
func output(all []shown) string {
	var b strings.Builder
	for _, s := range all {
		if !s.typed {
			b.WriteString(s.text)
		}
	}
	return b.String()
}

// all returns everything that the terminal has shown.
func (s *shell) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return output(s.shown)
}
