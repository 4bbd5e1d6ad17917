package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// channel is a shell on a server, at the other end of one ssh connection. Commands go to the
// shell's standard input, one at a time. A marker line with a nonce follows the output of
// each command, so that no output of a command can end it.
//
// If the connection breaks, the shell reads the end of its input and exits.
type channel struct {
	ssh    *exec.Cmd
	in     io.WriteCloser
	lines  chan string // lines of the shell's output; closed at the end of the output
	output chan bool   // receives a value at the start of a line
	shell  bool        // the server runs a shell, because it has answered
	stderr *stderrWatch
	nonce  string
}

// openChannel runs ssh with these arguments, which must start a POSIX shell on the server.
// The messages of ssh go to messages. The channel ends with ctx.
func openChannel(ctx context.Context, ssh []string, messages io.Writer) (*channel, error) {
	c := &channel{
		ssh:    exec.CommandContext(ctx, ssh[0], ssh[1:]...),
		lines:  make(chan string),
		output: make(chan bool, 1),
		nonce:  rand.Text(),
		stderr: &stderrWatch{to: messages, found: make(chan bool, 1)},
	}
	c.ssh.WaitDelay = time.Second // a ControlMaster or a ProxyCommand may keep stderr open
	c.ssh.Stderr = c.stderr
	in, err := c.ssh.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.ssh.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.in = in
	if err := c.ssh.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(c.lines)
		for r := bufio.NewReader(out); ; {
			if _, err := r.Peek(1); err == nil {
				select {
				case c.output <- true:
				default:
				}
			}
			line, err := r.ReadString('\n')
			if line != "" {
				select {
				case c.lines <- strings.TrimRight(line, "\r\n"):
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	// Text before the first marker is a greeting of the login shell.
	greeting, err := c.run(ctx, loginLimit, ":")
	if err != nil {
		c.close()
		greeting, _, _ = strings.Cut(strings.TrimSpace(greeting), "\n")
		if greeting = cmp.Or(greeting, c.stderr.last()); greeting != "" {
			err = fmt.Errorf("%w: %s", err, oneLine(greeting))
		}
		return nil, err
	}
	c.shell = true
	return c, nil
}

// greetingLimit bounds the pauses in the output of the login shell's start files. After a longer
// pause, the server does not run a shell, but another program, such as a menu.
const greetingLimit = 10 * time.Second

// loginLimit bounds the time in which the user can log in. ssh may ask for a passphrase.
const loginLimit = 2 * time.Minute

// close ends the shell and the connection.
func (c *channel) close() {
	_ = c.in.Close()
	_ = c.ssh.Process.Kill()
	for range c.lines {
	}
	_ = c.ssh.Wait()
}

// errChannel is the error of a channel whose connection has ended. The server may or may not
// have run the last command.
var errChannel = errors.New("the connection has ended")

// run runs a script in the shell. It returns the output, including that to standard error.
// The script must not end the shell.
func (c *channel) run(ctx context.Context, limit time.Duration, script string) (string, error) {
	// The marker is the output of printf. An appliance that only repeats its input does not
	// print this line.
	text := fmt.Sprintf("{\n%s\n} </dev/null 2>&1\nprintf '\\n%%s %%s\\n' %s $?\n", script, c.nonce)
	return c.send(ctx, limit, text)
}

// send writes a text to the shell, and returns the output until the marker.
func (c *channel) send(ctx context.Context, limit time.Duration, text string) (string, error) {
	// A shell that does not read must not block this function.
	go func() { _, _ = io.WriteString(c.in, text) }()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
	defer cancel()
	var out []string
	var noShell <-chan time.Time
	for {
		select {
		case <-c.output:
			if !c.shell {
				noShell = time.After(greetingLimit)
			}
		case <-noShell:
			return strings.Join(out, "\n"), errors.New("the login starts another program")
		case line, more := <-c.lines:
			if !more {
				return strings.Join(out, "\n"), errChannel
			}
			if status, marker := strings.CutPrefix(line, c.nonce+" "); marker {
				text := strings.Trim(strings.Join(out, "\n"), "\n")
				if n, err := strconv.Atoi(status); err != nil || n != 0 {
					return text, &statusError{status, text}
				}
				return text, nil
			}
			out = append(out, line)
		case <-ctx.Done():
			return strings.Join(out, "\n"), context.Cause(ctx)
		}
	}
}

// statusError is the error of a command that fails on the server.
type statusError struct{ status, output string }

func (e *statusError) Error() string {
	lines := strings.Split(e.output, "\n")
	if last := lines[len(lines)-1]; last != "" {
		return strings.TrimPrefix(last, "portknock: ")
	}
	return "exit status " + e.status
}

// reasons returns what a failed command printed before its error, or "".
func reasons(err error) string {
	failed, ok := errors.AsType[*statusError](err)
	if !ok {
		return ""
	}
	lines := strings.Split(failed.output, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "portknock: ")
	}
	return strings.Join(lines[:len(lines)-1], "\n")
}

// repeat sends a command to the shell four times a minute, until the channel ends. The command
// must not print anything.
func (c *channel) repeat(command string) {
	for {
		time.Sleep(15 * time.Second)
		if _, err := io.WriteString(c.in, command); err != nil {
			return
		}
	}
}

// upload writes a file on the server, which only its owner can read.
func (c *channel) upload(ctx context.Context, path string, text []byte) error {
	if bytes.Contains(text, []byte("\n"+c.nonce+"\n")) {
		return errors.New("the file contains the marker")
	}
	_, err := c.run(ctx, time.Minute, fmt.Sprintf("(umask 077; cat >%s <<'%s'\n%s\n%[2]s\n)", path, c.nonce, bytes.TrimRight(text, "\n")))
	return err
}

// becomeRoot replaces the shell by one of root. It calls ask for the user's password on the
// server, if sudo wants it.
func (c *channel) becomeRoot(ctx context.Context, ask func(context.Context) (string, error)) error {
	out, err := c.run(ctx, time.Minute, `if [ "$(id -u)" = 0 ]; then echo root
elif ! command -v sudo >/dev/null; then echo none
elif LC_ALL=C sudo -n sh -c : 2>/dev/null; then echo free
else LC_ALL=C sudo -n sh -c : 2>&1 | head -n 1; fi`)
	if err != nil {
		return err
	}
	// The new shell prints the marker. Nothing is sent before, because sudo would read it as
	// a password.
	shell := fmt.Sprintf(`sh -c 'printf "\n%%s 0\n" %s; exec sh'`, c.nonce)
	switch out {
	case "root":
		return nil
	case "none":
		return errors.New("this user is not root, and the server has no sudo")
	case "free":
		_, err = c.send(ctx, time.Minute, "exec sudo -n "+shell+"\n")
		return err
	}
	if !strings.Contains(out, "password") {
		return errors.New(out) // such as: sudo: sorry, you must have a tty to run sudo
	}
	password, err := ask(ctx)
	if err != nil {
		return err
	}
	prompt := "password-" + c.nonce
	c.stderr.watch(prompt)
	done := make(chan error, 1)
	go func() {
		_, err := c.send(ctx, time.Minute, fmt.Sprintf("exec sudo -S -p %s %s\n", prompt, shell))
		done <- err
	}()
	for asked := false; ; {
		select {
		case err := <-done:
			if errors.Is(err, errChannel) {
				c.close() // so that all messages have arrived
				err = errors.New("sudo does not allow this user to become root: " + c.stderr.last())
			}
			return err
		case <-c.stderr.found:
			if asked {
				return errors.New("sudo does not accept this password")
			}
			asked = true
			if _, err := io.WriteString(c.in, password+"\n"); err != nil {
				return errChannel
			}
		}
	}
}

// stderrWatch passes on the messages of ssh, and looks for a prompt in them.
type stderrWatch struct {
	to    io.Writer
	found chan bool // receives a value for each prompt

	mutex  sync.Mutex
	prompt string // "" if no prompt is awaited
	rest   string // text after the last newline
	latest string // last line that is not empty
}

func (w *stderrWatch) Write(b []byte) (int, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.rest += string(b)
	for w.prompt != "" && strings.Contains(w.rest, w.prompt) {
		w.rest = strings.Replace(w.rest, w.prompt, "", 1)
		select {
		case w.found <- true:
		default:
		}
	}
	for {
		line, rest, whole := strings.Cut(w.rest, "\n")
		if !whole {
			return len(b), nil
		}
		w.rest = rest
		// The ProxyCommand of ssh is portknock, which may advise to run what runs now.
		if line = strings.TrimRight(line, "\r"); line != "" && !strings.Contains(line, deployAdvice) {
			w.latest = line
			fmt.Fprintln(w.to, line)
		}
	}
}

// watch sets the prompt to look for.
func (w *stderrWatch) watch(prompt string) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.prompt = prompt
}

// last returns the last line that is not empty.
func (w *stderrWatch) last() string {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.latest
}
