package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestReasonIsPrintedWhenCallerGivesUp: if the calling program gives up before portknock
// has connected, portknock prints its usual lines on stderr and in the log. After ^C or
// ^\ it prints only that it was interrupted.
func TestReasonIsPrintedWhenCallerGivesUp(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nft", "mount")
	client, server := twoHosts(t)
	server.Shell(t, dropAllInput)
	addr := server.Addr(lab.IPv4).String()

	client.Shell(t, "mount --bind "+lab.File(t, "resolv.conf", "nameserver 127.0.0.1", "options timeout:30")+" /etc/resolv.conf")
	dns := lab.Socket(t, client, func() (net.PacketConn, error) { return net.ListenPacket("udp4", "127.0.0.1:53") })

	label := "" // each portknock resolves a name with a new label
	for _, stage := range []struct {
		name     string
		settings []string // LABEL in these is replaced by the label
		await    func(*testing.T, *caller)
		code     int
		stderr   string // regular expression for stderr; CAUSE in it is replaced by end.cause
	}{{
		name:     "knocking",
		settings: []string{"HostName " + addr, "Sequence 7001/udp 8003"},
		await:    func(t *testing.T, c *caller) { c.log.Await(t, "round 0: dialing", 1) },
		code:     exitClosed,
		stderr:   `portknock: vps: port 22 did not open within [0-9.]+m?s: no answer\n(portknock: hint: .*\n){3}`,
	}, {
		name:     "resolving",
		settings: []string{"HostName LABEL.example", "Sequence 7001/udp 8003"},
		await: func(t *testing.T, _ *caller) {
			query := make([]byte, 512)
			_ = dns.SetReadDeadline(time.Now().Add(10 * time.Second))
			for !bytes.Contains(query, []byte(label+"\x07example")) {
				if _, _, err := dns.ReadFrom(query); err != nil {
					t.Fatal(err)
				}
			}
		},
		code:   exitFailed,
		stderr: `portknock: vps: cannot resolve "LABEL.example": no answer in time\n`,
	}, {
		name:     "KeyCommand",
		settings: []string{"Scheme rotating", `KeyCommand sh -c "cat FIFO; true"`},
		await:    func(t *testing.T, c *caller) { c.awaitKeyCommand(t) },
		code:     exitProfile,
		stderr:   `portknock: vps: KeyCommand sh: CAUSE\n`,
	}} {
		for n, end := range []struct {
			name  string
			end   func(*caller) error
			cause string // the reason in the error, "" for an interrupt
		}{
			{"SIGHUP", func(c *caller) error { return c.cmd.Process.Signal(syscall.SIGHUP) }, "stopped by the calling program"},
			{"SIGTERM", func(c *caller) error { return c.cmd.Process.Signal(syscall.SIGTERM) }, "stopped by the calling program"},
			{"stdout closed", func(c *caller) error { return c.out.Close() }, "the calling program no longer reads standard output"},
			{"SIGINT", func(c *caller) error { return c.cmd.Process.Signal(os.Interrupt) }, ""},
			{"SIGQUIT", func(c *caller) error { return c.cmd.Process.Signal(syscall.SIGQUIT) }, ""},
		} {
			t.Run(stage.name+", "+end.name, func(t *testing.T) {
				label = fmt.Sprintf("label%d", n)
				settings := strings.ReplaceAll(strings.Join(stage.settings, "\n"), "LABEL", label)
				c := startCaller(t, client, []string{settings})
				stage.await(t, c)
				if err := end.end(c); err != nil {
					t.Fatal(err)
				}
				_ = c.cmd.Wait()
				code, want := stage.code, strings.NewReplacer("CAUSE", end.cause, "LABEL", label).Replace(stage.stderr)
				if end.cause == "" {
					code, want = exitFailed, "portknock: interrupted\n"
				}
				if got := c.cmd.ProcessState.ExitCode(); got != code || !regexp.MustCompile("^"+want+"$").MatchString(c.stderr.String()) {
					t.Errorf("exit code %d, stderr %q; want %d, %q", got, c.stderr.String(), code, want)
				}
				for line := range strings.Lines(c.stderr.String()) {
					c.log.Await(t, "] "+strings.TrimPrefix(line, "portknock: "), 1)
				}
				c.expectKeyCommandGone(t)
			})
		}
	}
}

// caller is a running portknock and what its calling program sees of it.
type caller struct {
	cmd    *lab.Cmd
	stderr *lab.Log
	log    *lab.Log // contents of portknock's log file
	out    *os.File // end of the pipe that reads portknock's standard output
	fifo   string   // path that replaces FIFO in the settings
	key    *os.File // the opened fifo, nil before awaitKeyCommand
}

// startCaller starts portknock for the profile vps with these settings. If shell is not
// empty, it is the command that runs portknock.
func startCaller(t *testing.T, h *lab.Host, settings []string, shell ...string) *caller {
	t.Helper()
	c := &caller{stderr: &lab.Log{}, log: &lab.Log{}, fifo: filepath.Join(t.TempDir(), "fifo")}
	logFile := filepath.Join(t.TempDir(), "log")
	for _, path := range []string{c.fifo, logFile} {
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.OpenFile(logFile, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(c.log, log)
	text := strings.ReplaceAll(strings.Join(settings, "\n"), "FIFO", c.fifo)
	config := vpsProfile(t, text, "ConnectTimeout 60")
	args := append(shell, "portknock", "-c", config, "--log-file", logFile, "vps", "22")
	c.cmd = h.Command(args[0], args[1:]...)
	out, childOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out, c.cmd.Stdout, c.cmd.Stderr = out, childOut, c.stderr
	err = c.cmd.Start()
	childOut.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.cmd.End()
		out.Close()
		log.Close()
	})
	return c
}

// awaitKeyCommand waits until the KeyCommand reads the fifo.
func (c *caller) awaitKeyCommand(t *testing.T) {
	t.Helper()
	var err error
	if c.key, err = os.OpenFile(c.fifo, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.key.Close() })
}

// expectKeyCommandGone checks that no process of the KeyCommand reads the fifo.
func (c *caller) expectKeyCommandGone(t *testing.T) {
	t.Helper()
	if c.key == nil {
		return
	}
	if _, err := c.key.WriteString("x"); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the KeyCommand still reads the fifo: %v", err)
	}
}

// TestIgnoredSIGHUPDoesNotEndPortknock: if the calling program ignores SIGHUP, as nohup
// does, a SIGHUP does not end portknock's attempts to connect.
func TestIgnoredSIGHUPDoesNotEndPortknock(t *testing.T) {
	t.Parallel()
	client := lab.NewHost(t, "client")
	c := startCaller(t, client, []string{"HostName 127.0.0.1", "Sequence 7001/udp 8003"}, "sh", "-c", `trap "" HUP; exec "$@"`, "sh")
	c.log.Await(t, "round 0: refused", 1)
	if err := c.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	rounds := strings.Count(c.log.String(), "knocked")
	c.log.Await(t, "knocked", rounds+2)
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = c.cmd.Wait()
	if code := c.cmd.ProcessState.ExitCode(); code != exitClosed || !strings.Contains(c.stderr.String(), "connection refused") {
		t.Errorf("exit code %d, stderr %q, want 5 and connection refused", code, c.stderr.String())
	}
}

// TestSecondSIGQUITPrintsNoTraceback: portknock prints no traceback after the first ^\,
// and none after the second.
func TestSecondSIGQUITPrintsNoTraceback(t *testing.T) {
	t.Parallel()
	c := startCaller(t, lab.NewHost(t, "client"), []string{"HostName 127.0.0.1", "Sequence 7001/udp 8003"})
	c.log.Await(t, "round 0: refused", 1)
	for range 2 {
		if err := c.cmd.Process.Signal(syscall.SIGQUIT); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
	_ = c.cmd.Wait()
	if stderr := c.stderr.String(); c.cmd.ProcessState.ExitCode() != exitFailed || stderr != "" && stderr != "portknock: interrupted\n" {
		t.Errorf("portknock ended with %v and printed %q, want at most the line: interrupted", c.cmd.ProcessState, stderr)
	}
}

// TestOnlySIGHUPAndSIGTERMEndConnection: ^C, ^\ and ^Z neither end nor stop a connection,
// because ssh's master must survive them. SIGHUP and SIGTERM end the connection, and portknock prints
// nothing.
func TestOnlySIGHUPAndSIGTERMEndConnection(t *testing.T) {
	t.Parallel()
	for _, last := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		t.Run(last.String(), func(t *testing.T) {
			t.Parallel()
			s := newStream(t)
			pass := func() {
				t.Helper()
				if _, err := io.WriteString(s.peer, "data"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(s.out, make([]byte, 4)); err != nil {
					t.Fatal(err)
				}
			}
			pass()
			for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP} {
				if !ignoresSignal(t, fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid), sig) {
					t.Errorf("portknock does not ignore %v", sig)
				}
				if err := s.cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				pass()
			}
			if err := s.cmd.Process.Signal(last); err != nil {
				t.Fatal(err)
			}
			_ = s.cmd.Wait()
			if status := s.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != last {
				t.Errorf("portknock was not ended by the signal, but with %v", s.cmd.ProcessState)
			}
			if stderr := s.stderr.String(); stderr != "" {
				t.Errorf("portknock prints %q, want nothing", stderr)
			}
		})
	}
}

// TestSSHMasterSurvivesStop: ^Z stops the command that has started ssh's master. The other
// sessions of the master go on.
func TestSSHMasterSurvivesStop(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	socket := filepath.Join(t.TempDir(), "master")
	c := r.client.Command("ssh", "-F", r.config, "-o", "ControlMaster=auto", "-S", socket, "-o", "ControlPersist=yes", "vps", "cat")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a shell also starts a process group
	startEcho(t, c)
	if err := syscall.Kill(-c.Process.Pid, syscall.SIGTSTP); err != nil { // ^Z signals the whole process group
		t.Fatal(err)
	}
	lab.Await(t, 10*time.Second, func() string {
		if state := lab.ReadFile(t, fmt.Sprintf("/proc/%d/stat", c.Process.Pid)); !strings.Contains(state, ") T ") {
			return "^Z did not stop the command: " + state
		}
		return ""
	})
	startEcho(t, r.client.Command("ssh", "-F", r.config, "-S", socket, "-o", "ProxyCommand=false", "vps", "cat"))
	r.client.Run(t, "ssh", "-F", r.config, "-S", socket, "-O", "exit", "vps")
	if err := syscall.Kill(-c.Process.Pid, syscall.SIGCONT); err != nil { // so that it waits for portknock
		t.Fatal(err)
	}
	r.awaitNoPortknock(t)
}

// TestPortknockEndsWhenSSHIsKilled: if ssh is killed during a session, portknock ends
// too.
func TestPortknockEndsWhenSSHIsKilled(t *testing.T) {
	withAndWithoutFDPass(t, func(t *testing.T, r *rig) {
		c := r.client.Command("ssh", "-F", r.config, "vps", "cat")
		startEcho(t, c)
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		r.awaitNoPortknock(t)
	})
}

// TestKeyCommandInheritsNoIgnoredSignals: portknock handles some signals, but its
// KeyCommand does not start with these signals ignored.
func TestKeyCommandInheritsNoIgnoredSignals(t *testing.T) {
	t.Parallel()
	key, status := lab.File(t, "key", windowKey), filepath.Join(t.TempDir(), "status")
	c := startCaller(t, lab.NewHost(t, "client"), []string{"HostName 127.0.0.1", "Scheme rotating",
		fmt.Sprintf(`KeyCommand sh -c "cat /proc/self/status >%s; cat %s"`, status, key)})
	c.log.Await(t, "round 0: dialing", 1)
	for _, sig := range []syscall.Signal{syscall.SIGPIPE, syscall.SIGQUIT, syscall.SIGTERM} {
		if ignoresSignal(t, status, sig) {
			t.Errorf("the KeyCommand ignores %v", sig)
		}
	}
}

// ignoresSignal reports whether a process ignores a signal, by the process's status file
// from /proc.
func ignoresSignal(t *testing.T, status string, sig syscall.Signal) bool {
	t.Helper()
	_, after, _ := strings.Cut(lab.ReadFile(t, status), "SigIgn:")
	mask, err := strconv.ParseUint(strings.Fields(after)[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mask>>(sig-1)&1 != 0
}

// pipeWithoutReader returns the write end of a pipe that has no reader.
func pipeWithoutReader(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	t.Cleanup(func() { w.Close() })
	return w
}

// expiringSettings returns the settings of a profile that expires in 3 days. portknock
// warns at each use of this profile.
func expiringSettings(t *testing.T) []string {
	end := time.Now().UTC().AddDate(0, 0, 3).Format(time.RFC3339)
	return []string{"Scheme rotating", keyFileSetting(t), "ValidUntil " + end}
}

// TestWarningWithoutReaderIsLogged: if stderr has no reader, warnings and errors are still
// in the log. The missing reader changes neither the login nor the exit code.
func TestWarningWithoutReaderIsLogged(t *testing.T) {
	t.Parallel()
	r := newGuardedRig(t, nftables, lab.IPv4, expiringSettings(t)...)
	log := filepath.Join(t.TempDir(), "log")
	logged := func(what string) {
		t.Helper()
		if text := lab.ReadFile(t, log); !strings.Contains(text, what) {
			t.Errorf("the log does not contain %q: %s", what, text)
		}
		_ = os.Remove(log)
	}

	c := r.client.Command("ssh", "-F", r.config, "vps", "echo in")
	c.Env, c.Stderr = append(c.Env, "PORTKNOCK_LOG="+log), pipeWithoutReader(t)
	if out, err := c.Output(); string(out) != "in\n" || err != nil {
		t.Errorf("ssh prints %q, %v, want in", out, err)
	}
	logged("the rules expire at")

	c = r.client.Command("portknock", "-c", r.profile, "-o", "ConnectTimeout=1us", "--log-file", log, "vps", "22")
	c.Stderr = pipeWithoutReader(t)
	if _ = c.Run(); c.ProcessState.ExitCode() != exitClosed {
		t.Errorf("a closed port: portknock ended with %v, want exit code 5", c.ProcessState)
	}
	logged("did not open")
}

// TestMissingStdoutReaderIsNotReported: if stdout has no reader, portknock fails with exit
// code 1 and prints no error.
func TestMissingStdoutReaderIsNotReported(t *testing.T) {
	t.Parallel()
	var stderr lab.Log
	c := lab.NewHost(t, "client").Command("portknock", "help")
	c.Stdout, c.Stderr = pipeWithoutReader(t), &stderr
	if _ = c.Run(); c.ProcessState.ExitCode() != exitFailed || stderr.String() != "" {
		t.Errorf("portknock ended with %v and printed %q, want exit code 1 and nothing", c.ProcessState, stderr.String())
	}
}
