package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// exitUnavailable is the exit code of the inner process if this system cannot run the real
// firewall. Its stderr then has the reason.
const exitUnavailable = 3

// playGuard plays the story with the real firewall, in a process with a network of its own.
func (d *demo) playGuard(ctx context.Context) error {
	if os.Geteuid() == 0 {
		// Without a user namespace, root can use all files of this machine.
		err := d.playInside(ctx, &syscall.SysProcAttr{})
		if _, failed := errors.AsType[unavailable](err); !failed || ctx.Err() != nil {
			return err
		}
	}
	return d.playInside(ctx, newUser())
}

// newUser returns the attributes of a process that is root in a user namespace of its own.
func newUser() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
}

// playInside starts the inner process and waits for its end. The process is the first one of
// a PID namespace, so that the kernel ends all programs that the process has started.
func (d *demo) playInside(ctx context.Context, attr *syscall.SysProcAttr) error {
	attr.Cloneflags |= unix.CLONE_NEWNET | unix.CLONE_NEWPID
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{insideName, d.dir, d.portknock, d.ssh}
	cmd.SysProcAttr = attr
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = d.out, &stderr
	stdin, err := cmd.StdinPipe() // the inner process ends when stdin ends
	if err != nil {
		return err
	}
	cmd.Cancel, cmd.WaitDelay = stdin.Close, 10*time.Second
	if err := cmd.Start(); err != nil {
		if e := syscall.Errno(0); errors.As(err, &e) {
			err = e // without the path of the program, which did not fail
		}
		return noNetwork(err)
	}
	err = cmd.Wait()
	switch reason := stderr.String(); {
	case cmd.ProcessState.ExitCode() == exitUnavailable:
		return unavailable(reason)
	case err != nil && reason != "":
		return errors.New(reason)
	}
	return err
}

// noNetwork returns the error for a system on which a step of the network's setup failed.
func noNetwork(err error) error {
	return unavailable(fmt.Sprintf("it cannot make a private network (%v)", err))
}

// mainInside is the main function of the inner process.
func mainInside(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		io.Copy(io.Discard, os.Stdin) // returns when the outer process has ended, even by SIGKILL
		cancel()
	}()
	// A user's PATH may lack the folders of an administrator's programs.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	d := &demo{out: os.Stdout, dir: os.Args[1], portknock: os.Args[2], ssh: os.Args[3]}
	err := d.guardStory(ctx)
	if err == nil {
		return
	}
	fmt.Fprint(os.Stderr, oneLine(err.Error()))
	if _, ok := errors.AsType[unavailable](err); ok {
		os.Exit(exitUnavailable)
	}
	os.Exit(1)
}

// The hosts have addresses that are reserved for documentation (RFC 5737).
var (
	serverAddr   = netip.MustParseAddr("203.0.113.10")
	youAddr      = netip.MustParseAddr("192.0.2.10")
	attackerAddr = netip.MustParseAddr("198.51.100.66")
)

// host is a client of the server, in a network namespace of its own. The server's network is
// that of the inner process.
type host struct {
	addr netip.Addr
	work chan func() // functions to run on the only thread in the namespace
}

// newHost makes a host, and a cable from the host to the server.
func newHost(name string, addr netip.Addr) (*host, error) {
	h := &host{addr: addr, work: make(chan func())}
	var err error
	thread := make(chan int)
	go func() {
		runtime.LockOSThread()
		err = unix.Unshare(unix.CLONE_NEWNET)
		thread <- unix.Gettid()
		for f := range h.work {
			f()
		}
	}()
	tid := <-thread
	if err != nil {
		return nil, err
	}
	err = ip((*exec.Cmd).Start, fmt.Sprintf(`link add %[1]s type veth peer name server netns %[2]d
address add %[3]v peer %[4]v dev %[1]s
link set %[1]s up
`, name, tid, serverAddr, addr))
	if err == nil {
		err = ip(h.start, fmt.Sprintf("address add %v peer %v dev server\nlink set server up\n", addr, serverAddr))
	}
	return h, err
}

// ip runs lines of ip(8).
func ip(start func(*exec.Cmd) error, lines string) error {
	cmd := exec.Command("ip", "-batch", "-")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(lines), &stderr
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return explain("ip", err, &stderr)
}

// do runs f on the host's thread. Sockets that f makes, and programs that f starts, belong to
// the host.
func (h *host) do(f func()) {
	done := make(chan struct{})
	h.work <- func() { defer close(done); f() }
	<-done
}

// start starts a program on the host.
func (h *host) start(cmd *exec.Cmd) (err error) {
	h.do(func() { err = cmd.Start() })
	return err
}
