package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// sshConfig returns a configuration for ssh that uses a profile file.
func (r *rig) sshConfig(t testing.TB, profile string) string {
	t.Helper()
	if r.fdpass {
		return r.proxyConfig(t, "portknock -F -c "+profile+" %h %p", "ProxyUseFdpass yes")
	}
	return r.proxyConfig(t, "portknock -c "+profile+" %h %p")
}

// proxyConfig returns a configuration for ssh in which the host vps is reached by a
// ProxyCommand, and the host direct without one.
func (r *rig) proxyConfig(t testing.TB, command string, more ...string) string {
	t.Helper()
	addr := "HostName " + r.addr().String()
	lines := append([]string{"Host vps", addr, "ProxyCommand " + command}, more...)
	return r.sshd.ClientConfig(t, append(lines, "Host direct", addr)...)
}

// setFDPass says whether portknock hands ssh the socket from now on.
func (r *rig) setFDPass(t testing.TB, pass bool) {
	t.Helper()
	r.fdpass = pass
	r.config = r.sshConfig(t, r.profile)
}

// withAndWithoutFDPass runs a test on a journey of portknock's own stream, and on one of a
// socket that is ssh's.
func withAndWithoutFDPass(t *testing.T, test func(*testing.T, *rig)) {
	t.Parallel()
	for _, fdpass := range []bool{false, true} {
		t.Run(fmt.Sprintf("fdpass=%v", fdpass), func(t *testing.T) {
			t.Parallel()
			r := newDefaultRig(t)
			r.setFDPass(t, fdpass)
			test(t, r)
		})
	}
}

// ssh runs a command on the server through portknock and returns its output.
func (r *rig) ssh(t testing.TB, command string) string {
	t.Helper()
	return sshOutput(t, r.client, "-F", r.config, "vps", command)
}

// login checks that ssh gets through.
func (r *rig) login(t testing.TB) {
	t.Helper()
	if got := r.ssh(t, "echo in"); got != "in\n" {
		t.Errorf("%s, %v: ssh prints %q", r.firewall.Name, r.family, got)
	}
}

// sshOutput returns the output of ssh without stderr, where the login shell of the
// machine that runs the tests may print something.
func sshOutput(t testing.TB, h *lab.Host, args ...string) string {
	t.Helper()
	var said lab.Log
	c := h.Command("ssh", args...)
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		t.Errorf("ssh %q: %v\n%s", args, err, said.String())
	}
	return string(out)
}

// portknock runs portknock to its end. It returns what portknock has printed, and
// the exit code.
func portknock(h *lab.Host, args ...string) (stdout, stderr string, code int) {
	var said lab.Log
	c := h.Command("portknock", args...)
	c.Stderr = &said
	out, _ := c.Output()
	return string(out), said.String(), c.ProcessState.ExitCode()
}

// transfer moves 20 MB to the server and back through a new knock.
func transfer(t *testing.T, r *rig) {
	t.Helper()
	data := make([]byte, 20<<20)
	rand.Read(data)
	var back bytes.Buffer
	c := r.client.Command("ssh", "-F", r.config, "vps", "cat")
	c.Stdin, c.Stdout = bytes.NewReader(data), &back
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(back.Bytes()) != sha256.Sum256(data) {
		t.Errorf("of %d bytes %d came back, and not the same", len(data), back.Len())
	}
}

// quiet waits until every segment of the sessions has been acknowledged: from
// then on neither side sends anything by itself.
func (r *rig) awaitAllAcknowledged(t testing.TB) {
	t.Helper()
	lab.Await(t, 10*time.Second, func() (unacknowledged string) {
		for _, h := range []*lab.Host{r.client, r.server} {
			unacknowledged += h.Shell(t, "ss -Htn state established | awk '$2 > 0'") // Send-Q
		}
		return unacknowledged
	})
}

// awaitNoPortknock waits until no portknock runs on the client any more.
func (r *rig) awaitNoPortknock(t testing.TB) {
	t.Helper()
	lab.Require(t, "pgrep")
	lab.Await(t, 10*time.Second, func() string {
		left, err := r.client.Try("pgrep", "-a", "portknock")
		if err == nil || left != "" {
			return "left behind: " + left
		}
		return ""
	})
}

// echo is an ssh session with a program that repeats what it is told.
type echoSession struct {
	in  io.Writer
	out *lab.Log
	n   int // how many lines it was told
}

// echo starts an ssh session with cat.
func (r *rig) openEcho(t testing.TB, host string) *echoSession {
	t.Helper()
	return startEcho(t, r.client.Command("ssh", "-F", r.config, host, "cat"))
}

// startEcho starts a command that repeats its input, and has it do so once.
func startEcho(t testing.TB, c *lab.Cmd) *echoSession {
	t.Helper()
	// A real pipe: with any other reader the end of c would wait for its end.
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	e := &echoSession{in: w, out: &lab.Log{}}
	c.Stdin, c.Stdout, c.Stderr = in, e.out, e.out
	err = c.Start()
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); c.End() })
	e.say(t, "hello")
	return e
}

// say has the session repeat a line.
func (e *echoSession) say(t testing.TB, what string) {
	t.Helper()
	e.n++
	line := fmt.Sprintf("%d %s\n", e.n, what)
	if _, err := io.WriteString(e.in, line); err != nil {
		t.Fatal(err)
	}
	e.out.Await(t, line, 1)
}
