// Command demo shows what portknock does. It uses only this machine, needs no privileges,
// and leaves nothing behind. It builds the portknock command from this module and logs in
// with ssh to an SSH server of its own.
//
// On Linux, the client, an attacker and the server are hosts of a private network, and the
// kernel's firewall has the rules that portknock makes. On a system that cannot do this, a
// gate stands in for the firewall, on loopback. If ssh is not installed or does not work,
// Go's SSH client replaces it.
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

const watchdog = 2 * time.Minute

// insideName is the name under which the demo starts itself in a private network.
const insideName = "portknock-demo-network"

const introduction = `The demo builds portknock, and logs in with ssh to a server whose port is closed to everyone
else. All of this stays on this computer, needs no root and leaves nothing behind.
`

const quickStart = `
The demo has ended and leaves nothing behind. For your own server, install portknock with
"go install ./cmd/portknock" and run:

    portknock profile add --ssh-config --host ADDRESS vps
    portknock deploy vps
    ssh vps
`

func main() {
	// SIGPIPE is included so that `demo | head` cleans up too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	if os.Args[0] == insideName {
		mainInside(ctx)
		return
	}
	path, err := exec.LookPath("ssh")
	if err != nil {
		path = ""
	}
	if err := run(ctx, os.Stdout, path); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %s\n", oneLine(err.Error()))
		os.Exit(1)
	}
}

// run builds portknock and prints the whole demo to out. It uses the ssh at sshPath. If
// sshPath is "" or that ssh does not work, it uses Go's SSH client.
func run(ctx context.Context, out io.Writer, sshPath string) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, watchdog, fmt.Errorf("not done after %v", watchdog))
	defer cancel()
	fmt.Fprint(out, introduction, "\n")
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
	if err := d.play(ctx); err != nil {
		return err
	}
	fmt.Fprint(out, quickStart)
	return nil
}

// demo has the state of one run.
type demo struct {
	out       io.Writer
	dir       string // folder of all files of this run
	ssh       string // path of ssh, "" if ssh is not installed
	portknock string // path of the portknock command that build makes
}

// unavailable is the reason why this system cannot run the real firewall.
type unavailable string

func (u unavailable) Error() string { return string(u) }

// playGuard plays the story with the real firewall. Tests replace it.
var playGuard = (*demo).playGuard

// play prints the story with the real firewall, or else with the gate.
func (d *demo) play(ctx context.Context) error {
	err := playGuard(d, ctx)
	reason, ok := errors.AsType[unavailable](err)
	if !ok || ctx.Err() != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nThis computer cannot show the real firewall: %s.\n%s", oneLine(string(reason)), gateIntroduction)
	for range 3 {
		if err = d.playGate(ctx); !errors.Is(err, errPortTaken) {
			break
		}
		fmt.Fprintf(d.out, "\nAnother program has just taken that port. The demo starts again with another port.\n")
	}
	return err
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

// command returns a command that starts in d.dir. portknock then keeps its state there, and
// not in the user's home directory.
func (d *demo) command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = d.dir, append(os.Environ(), "XDG_STATE_HOME="+d.dir)
	return cmd
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
