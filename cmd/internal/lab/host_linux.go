package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// limit bounds every step of the lab that should be quick.
const limit = 30 * time.Second

// Host acts like a separate machine: it has its own network, processes and mounts.
// It shares the files of the test, except for /run.
type Host struct {
	Name string

	pid        int
	namespaces map[int]*os.File // namespaces by clone flag
	path       string           // PATH of its commands
	state      string           // XDG_STATE_HOME of its commands
	machine    bool             // the host is a booted machine with its own files
	ctx        context.Context
	end        func() // ends the host and all its programs

	number    int           // number of the host on its segment, from 1; 0 without a link
	peers     []*Host       // the other hosts on the segment
	portsUsed atomic.Uint32 // number of source ports that raw packets have used

	mu       sync.Mutex
	commands []*Cmd
}

// NewHost starts a host. The host and all its programs end with the test. The host
// has only a loopback interface until [Link] connects it.
func NewHost(t TB, name string) *Host {
	t.Helper()
	Require(t, "ip")
	stdin, keepAlive, err := os.Pipe()
	must(t, err)
	output, stdout, err := os.Pipe()
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"lab-" + name}
	// By default, the race detector delays the exit of every host by one second.
	cmd.Env = []string{hostVariable + "=" + name, "GORACE=atexit_sleep_ms=0"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS,
	}
	err = cmd.Start()
	_, _ = stdin.Close(), stdout.Close()
	if err != nil {
		_, _ = keepAlive.Close(), output.Close()
		if unsupported(err) {
			Missing(t, "namespaces: "+err.Error())
		}
		t.Fatal(err)
	}
	h := &Host{Name: name, pid: cmd.Process.Pid, path: systemPath(), state: t.TempDir(), namespaces: map[int]*os.File{}}
	var cancel context.CancelFunc
	h.ctx, cancel = context.WithCancel(context.Background())
	h.end = sync.OnceFunc(func() {
		cancel()
		_, _ = keepAlive.Close(), output.Close() // the host's init ends, and with it all its processes
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, c := range h.commands {
			_ = c.Wait() // the kernel keeps a PID namespace until its last process has been waited for
		}
		stuck := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		stuck.Stop()
		for _, ns := range h.namespaces {
			_ = ns.Close()
		}
	})
	t.Cleanup(h.end)
	must(t, output.SetReadDeadline(time.Now().Add(limit)))
	answer := make([]byte, 1000)
	if n, err := output.Read(answer); string(answer[:n]) != ready {
		t.Fatalf("host %s does not start (does TestMain call lab.Main?): %s %v", name, answer[:n], err)
	}
	for _, kind := range []int{unix.CLONE_NEWNET, unix.CLONE_NEWPID, unix.CLONE_NEWUTS, unix.CLONE_NEWNS} {
		h.namespaces[kind], err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", h.pid, namespaceNames[kind]))
		must(t, err)
	}
	return h
}

// namespaceNames maps the clone flags of all namespaces that a host may have to their
// names in /proc.
var namespaceNames = map[int]string{
	unix.CLONE_NEWNET: "net", unix.CLONE_NEWPID: "pid", unix.CLONE_NEWUTS: "uts", unix.CLONE_NEWIPC: "ipc",
	unix.CLONE_NEWCGROUP: "cgroup", unix.CLONE_NEWNS: "mnt",
}

// enter moves the calling thread into namespaces of the host. The caller must throw
// the thread away afterwards.
func (h *Host) enter(kinds ...int) error {
	for _, kind := range kinds {
		if err := unix.Setns(int(h.namespaces[kind].Fd()), kind); err != nil {
			return fmt.Errorf("enter the %s namespace of %s: %w", namespaceNames[kind], h.Name, err)
		}
	}
	return nil
}

func must(t TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Do runs f on a thread in the host's network. Sockets that f itself makes belong to
// the host for as long as they live. Goroutines that f starts run outside the host's
// network, so f must dial literal addresses. f must not call t.Fatal.
func (h *Host) Do(f func()) {
	onThread(func() {
		if err := h.enter(unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		f()
	})
}

// Socket calls open in a host's network, and returns the connection or listener that
// open makes. The socket is closed when the test ends. open must dial literal addresses,
// as in [Host.Do].
func Socket[S io.Closer](t TB, h *Host, open func() (S, error)) S {
	t.Helper()
	var s S
	var err error
	h.Do(func() { s, err = open() })
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Dial connects from the host to a literal address. The connection is closed when the
// test ends.
func (h *Host) Dial(t TB, network, address string) net.Conn {
	t.Helper()
	return Socket(t, h, func() (net.Conn, error) { return net.DialTimeout(network, address, limit) })
}

// onThread runs f on a thread and throws the thread away afterwards, because f changes
// properties of the thread.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // without an unlock, the thread ends with the goroutine
		defer close(done)
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and /proc/self describes it. This
			// goroutine therefore occupies the main thread while another
			// thread runs f.
			onThread(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

// Cmd is an exec.Cmd that starts inside a host. A caller may set only Stdin, Stdout,
// Stderr, Dir and Env, and should add to Env.
type Cmd struct {
	*exec.Cmd
	host   *Host
	cancel context.CancelFunc
	wait   func() error
}

// Command returns a command of the host, found in the host's PATH. The command is
// killed when the host ends.
func (h *Host) Command(name string, args ...string) *Cmd {
	ctx, cancel := context.WithCancel(h.ctx)
	return h.command(ctx, cancel, name, args)
}

func (h *Host) command(ctx context.Context, cancel context.CancelFunc, name string, args []string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), host: h, cancel: cancel}
	if h.machine {
		// This process cannot follow the links in a machine's folders, so env(1) finds
		// the program there.
		c.Path, c.Args, c.Err = "/usr/bin/env", append([]string{"env", name}, args...), nil
		c.Env, c.Dir = []string{"PATH=" + h.path, "HOME=/root"}, "/"
	} else {
		c.Path, c.Err = lookPath(h.path, name)
		// A host's programs do not share what they remember with other hosts.
		c.Env = append(os.Environ(), "PATH="+h.path, "XDG_STATE_HOME="+h.state)
	}
	// Children may hold the pipes after the command has ended. On a busy machine,
	// another command that is about to start may hold them too: it has a copy of
	// all open files until it starts.
	c.WaitDelay = limit
	c.wait = sync.OnceValue(func() error {
		defer cancel()
		return c.Cmd.Wait()
	})
	return c
}

// Start is like exec.Cmd.Start, inside the host.
func (c *Cmd) Start() (err error) {
	if c.Dir == "" {
		c.Dir, _ = os.Getwd() // a thread that enters a mount namespace is moved to its root
	}
	h := c.host
	onThread(func() {
		// Threads share their working directory and root. A thread that shares them
		// cannot enter another mount namespace.
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		kinds := []int{unix.CLONE_NEWNET, unix.CLONE_NEWPID, unix.CLONE_NEWUTS}
		if h.machine {
			kinds = append(kinds, unix.CLONE_NEWIPC, unix.CLONE_NEWCGROUP)
		}
		if err = h.enter(append(kinds, unix.CLONE_NEWNS)...); err != nil {
			return
		}
		err = c.Cmd.Start()
	})
	if err != nil {
		c.cancel()
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commands = append(h.commands, c)
	return nil
}

// Wait is like exec.Cmd.Wait, but may be called more than once.
func (c *Cmd) Wait() error { return c.wait() }

// Run is like exec.Cmd.Run, inside the host.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is like exec.Cmd.Output, inside the host. Stderr gets all that the command
// prints there.
func (c *Cmd) Output() ([]byte, error) {
	var out lockedBuffer
	c.Stdout = &out
	err := c.Run()
	return out.bytes(), err
}

// CombinedOutput is like exec.Cmd.CombinedOutput, inside the host.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out lockedBuffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.bytes(), err
}

// StartUntil starts the command, and returns when the command has printed a line for which
// found returns true, or has ended. It returns the output so far, whether such a line came,
// and a reader of the output that follows. The output includes that to stderr.
func (c *Cmd) StartUntil(t TB, found func(line string) bool) (out string, came bool, rest io.Reader) {
	t.Helper()
	pipe, err := c.StdoutPipe()
	must(t, err)
	c.Stderr = c.Stdout
	must(t, c.Start())
	t.Cleanup(c.End)
	lines := bufio.NewReader(pipe)
	for {
		line, err := lines.ReadString('\n')
		out += line
		if came = err == nil && found(line); came || err != nil {
			return out, came, lines
		}
	}
}

// ExpectEnd checks the exit code of a command that has ended with err, and that its output
// contains texts.
func ExpectEnd(t TB, err error, out string, code int, texts ...string) {
	t.Helper()
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		must(t, err)
	}
	if got != code {
		t.Errorf("the command ends with exit code %d, want %d\n%s", got, code, out)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("the command does not print %q:\n%s", text, out)
		}
	}
}

// End kills the command and waits until it is gone.
func (c *Cmd) End() {
	c.cancel()
	_ = c.Wait()
}

// runLimit bounds [Host.Try], [Host.Run], [Host.RunInput] and [Host.Shell].
const runLimit = 3 * time.Minute

// Try runs a command to its end and returns all that the command printed.
func (h *Host) Try(name string, args ...string) (string, error) {
	return h.run(nil, name, args)
}

// Run is [Host.Try] for a command that must succeed.
func (h *Host) Run(t TB, name string, args ...string) string {
	t.Helper()
	return h.RunInput(t, nil, name, args...)
}

// RunInput is [Host.Run] for a command that reads stdin.
func (h *Host) RunInput(t TB, stdin io.Reader, name string, args ...string) string {
	t.Helper()
	out, err := h.run(stdin, name, args)
	if err != nil {
		t.Fatalf("%s: %s %q: %v\n%s", h.Name, name, args, err, out)
	}
	return out
}

func (h *Host) run(stdin io.Reader, name string, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(h.ctx, runLimit)
	c := h.command(ctx, cancel, name, args)
	c.Stdin = stdin
	out, err := c.CombinedOutput()
	if ctx.Err() == context.DeadlineExceeded {
		err = fmt.Errorf("not finished after %v", runLimit)
	}
	return string(out), err
}

// Addr returns the host's address on its segment.
func (h *Host) Addr(f Family) netip.Addr { return f.addr(h.number) }

// Source returns the nth of 65,535 further addresses of the host, from 1. An address
// needs no setup, because the whole range is routed to the host.
func (h *Host) Source(f Family, n uint16) netip.Addr { return f.source(h.number, n) }
