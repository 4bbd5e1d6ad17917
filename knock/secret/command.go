package secret

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// Runner runs commands that print a secret. The zero Runner is ready to use.
type Runner struct {
	// Stderr receives what a command writes to its standard error. A nil Stderr
	// discards that.
	Stderr io.Writer

	// Foreground, if it is not nil, lets a command use the terminal. It is
	// called before the command starts and may change the command's
	// SysProcAttr. Done is called after the command has ended.
	Foreground func(command *exec.Cmd) (done func())

	// Limit is how long a command may take. 0 means 30 seconds: a human may have
	// to unlock something.
	Limit time.Duration
}

// Run returns the one line that a command prints. What it should print, such as
// "a key", is for the errors; none of them holds a word of the command or of what
// it has printed. It runs without a shell and without our standard input, which
// may be ssh's connection. When ctx ends or the time is up, the command and all
// that it has started are killed.
func (r Runner) Run(ctx context.Context, command []string, what string) ([]byte, error) {
	limit := cmp.Or(r.Limit, 30*time.Second)
	late := fmt.Errorf("did not print %s within %v", what, limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	var out limited
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Stdout, c.Stderr = &out, r.Stderr
	c.WaitDelay = time.Second // for children that keep the pipe open
	killChildren(c)
	done := func() {}
	if r.Foreground != nil {
		done = r.Foreground(c)
	}
	err := c.Run()
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

// limited keeps what is written to it. It takes no more once it has more than
// maxText bytes.
type limited []byte

func (l *limited) Write(b []byte) (int, error) {
	*l = append(*l, b...)
	if len(*l) > maxText {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}
