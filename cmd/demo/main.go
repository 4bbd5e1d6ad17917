// Command demo shows what portknock does. It uses only this machine and loopback, needs no
// privileges, and leaves nothing behind. It runs a gate, which stands in for a server's
// firewall, an SSH server, the portknock command built from this module, and ssh. If ssh
// is not installed or does not work, Go's SSH client replaces it.
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
	watchdog = 2 * time.Minute

	// knockDelay is longer than the default. The gate receives UDP and TCP knocks on
	// different sockets. On a busy machine, with the default pause, the gate could
	// receive two knocks in the wrong order.
	knockDelay = 20 * time.Millisecond
)

// after is the clock that ends openings. Tests replace it.
var after = time.After

func main() {
	// SIGPIPE is included so that `demo | head` cleans up too.
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

// run builds portknock and prints the whole demo to out. It uses the ssh at sshPath. If
// sshPath is "" or that ssh does not work, it uses Go's SSH client.
func run(ctx context.Context, out io.Writer, sshPath string) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, watchdog, fmt.Errorf("not done after %v", watchdog))
	defer cancel()
	dir, err := os.MkdirTemp("", "portknock-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil && err != nil {
			err = context.Cause(ctx) // the cause, not an error that followed from it
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
		if err = d.play(ctx); !errors.Is(err, errPortTaken) {
			break
		}
		fmt.Fprintf(out, "\nAnother program has just taken that port. The demo starts again with another port.\n")
	}
	return err
}

// remove deletes the folder. It tries several times, because Windows keeps a program's
// file for a moment after the program has ended.
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

// demo has the state of one run.
type demo struct {
	out       io.Writer
	dir       string // folder of all files of this run
	ssh       string // path of ssh, "" if ssh is not installed
	portknock string // path of the portknock command that build makes
}

// build builds the portknock command at d.portknock.
func (d *demo) build(ctx context.Context) error {
	fmt.Fprint(d.out, "Building portknock ... ")
	began := time.Now()
	// With -buildvcs the build would fail if another user has cloned the module, because
	// git then refuses to report the module's state.
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", d.portknock, "github.com/portknock/portknock/cmd/portknock")
	cmd.Env = append(os.Environ(), "GOTMPDIR="+d.dir) // files of an interrupted build are removed with d.dir
	cmd.WaitDelay = time.Second
	text, err := cmd.CombinedOutput()
	if err != nil {
		fmt.Fprintln(d.out)
		if said := oneLine(string(text)); said != "" {
			err = errors.New(said)
		}
		return fmt.Errorf("cannot build portknock: %w", err)
	}
	fmt.Fprintf(d.out, "%.1f s\n", time.Since(began).Seconds())
	return nil
}
