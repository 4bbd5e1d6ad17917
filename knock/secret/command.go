package secret

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// Runner runs commands that print a secret. The zero Runner is ready to use.
type Runner struct {
	// Stderr receives what a command writes to its standard error. If Stderr is nil,
	// that output is discarded.
	Stderr io.Writer

	// Foreground lets a command use the terminal, if Foreground is not nil. Run calls
	// Foreground before the command starts. Foreground may change the SysProcAttr of the
	// command. It returns the function done, which must not be nil. Run calls done after
	// the command has ended or could not start.
	Foreground func(command *exec.Cmd) (done func())

	// Printed keeps what each command has printed, if Printed is not nil. Run then runs
	// each command only once, so that a user unlocks a key store only once. Two calls of
	// Run with one Printed must not run at the same time.
	Printed map[string][]byte

	// Limit is the longest time that a command may take. 0 means 30 seconds, enough for a
	// user to unlock a key store.
	Limit time.Duration
}

// Run runs a command and returns the one line that the command prints, without the
// newline. The output may have at most 4096 bytes. The parameter what names the expected
// text in errors, such as "a key". Errors never contain a word of the command or of its
// output.
//
// The command runs without a shell. It does not get the standard input of this process,
// which may be the connection of ssh. When ctx ends or the time limit passes, Run kills
// the command and all processes that the command has started. On Unix, a process that has
// left the command's process group is not killed. On Windows, a process that has left the
// command's job object is not killed.
//
// If this process is killed, Linux and FreeBSD kill the command, but not the processes that the
// command has started. Windows kills these too.
func (r Runner) Run(ctx context.Context, command []string, what string) ([]byte, error) {
	id := strings.Join(command, "\x00") // no word of a command can contain a zero byte
	if text, ok := r.Printed[id]; ok {
		return text, nil
	}
	text, err := r.run(ctx, command, what)
	if err == nil && r.Printed != nil {
		r.Printed[id] = text
	}
	return text, err
}

// run is Run without Printed.
func (r Runner) run(ctx context.Context, command []string, what string) ([]byte, error) {
	// The system kills the command when the thread that has started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	limit := cmp.Or(r.Limit, 30*time.Second)
	late := fmt.Errorf("did not print %s within %v", what, limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	var out limited
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Stdout, c.Stderr = &out, r.Stderr
	c.WaitDelay = time.Second // time limit for children that keep the pipe open
	run := killable(c)
	done := func() {}
	if r.Foreground != nil {
		done = r.Foreground(c)
	}
	err := run()
	done()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case len(out) > maxText:
		return nil, fmt.Errorf("printed too much text for %s", what)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return nil, innermost(err)
	}
	text, more, _ := bytes.Cut(out, []byte("\n"))
	switch {
	case len(bytes.TrimSpace(out)) == 0:
		return nil, errors.New("printed nothing")
	case len(bytes.TrimSpace(more)) > 0:
		return nil, errors.New("printed more than one line")
	}
	return text, nil
}

// limited keeps what is written to it. Write fails when limited has more than maxText
// bytes.
type limited []byte

func (l *limited) Write(b []byte) (int, error) {
	*l = append(*l, b...)
	if len(*l) > maxText {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}
