// Command demo shows what portknock does, on this machine alone and without
// any privilege: a gate and an SSH server on loopback, the portknock command
// as it is in this module, and ssh, if there is one. It leaves nothing behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

const (
	openFor  = 2 * time.Second
	watchdog = time.Minute

	// UDP and TCP knocks reach the gate through different sockets. On a busy
	// machine the default pause would leave open which it hears first.
	knockDelay = 20 * time.Millisecond
)

func main() {
	// With SIGPIPE among them, `demo | head` cleans up too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	path, err := exec.LookPath("ssh")
	if err != nil {
		path = ""
	}
	err = run(ctx, os.Stdout, path)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %s\n", oneLine(err.Error()))
		os.Exit(1)
	}
}

// run shows it all on out, with the ssh at a path, or with Go's if that is "".
func run(ctx context.Context, out io.Writer, sshPath string) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, watchdog, fmt.Errorf("not done after %v", watchdog))
	defer cancel()
	dir, err := os.MkdirTemp("", "portknock-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil && err != nil {
			err = context.Cause(ctx) // and not what came of it
		}
		if rest := remove(dir); err == nil {
			err = rest
		}
	}()
	d := &demo{out: out, dir: dir, ssh: sshPath, portknock: filepath.Join(dir, "portknock")}
	if runtime.GOOS == "windows" {
		d.portknock += ".exe"
	}
	if err := d.build(ctx); err != nil {
		return err
	}
	for range 3 {
		if err = d.play(ctx); !errors.Is(err, errTaken) {
			break
		}
		fmt.Fprintf(out, "\nAnother program has just taken that port. Once more with another.\n")
	}
	return err
}

// remove deletes the folder. Windows keeps a program's file for a moment after
// its end.
func remove(dir string) error {
	var err error
	for range 20 {
		if err = os.RemoveAll(dir); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// demo is one run.
type demo struct {
	out       io.Writer
	dir       string // where all files are
	ssh       string // its path, or ""
	portknock string
}

// build makes the command that is shown.
func (d *demo) build(ctx context.Context) error {
	fmt.Fprint(d.out, "Building portknock ... ")
	began := time.Now()
	// Who has cloned the module may not be who runs this: git refuses to tell
	// its state then, and the build would fail for want of it.
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", d.portknock, "github.com/portknock/portknock/cmd/portknock")
	cmd.Env = append(os.Environ(), "GOTMPDIR="+d.dir) // what an interrupted build leaves goes with the folder
	cmd.WaitDelay = time.Second
	text, err := cmd.CombinedOutput()
	if err != nil {
		fmt.Fprintln(d.out)
		if said := oneLine(string(text)); said != "" {
			err = errors.New(said)
		}
		return fmt.Errorf("portknock does not build: %w", err)
	}
	fmt.Fprintf(d.out, "%.1f s\n", time.Since(began).Seconds())
	return nil
}
