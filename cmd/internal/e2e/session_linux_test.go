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

// sshConfig returns a configuration file for ssh. In it, portknock uses this profile
// file.
func (r *rig) sshConfig(t testing.TB, profile string) string {
	t.Helper()
	if r.fdpass {
		return r.proxyConfig(t, "portknock -F -c "+profile+" %h %p", "ProxyUseFdpass yes")
	}
	return r.proxyConfig(t, "portknock -c "+profile+" %h %p")
}

// proxyConfig returns a configuration file for ssh. Its host vps has this ProxyCommand,
// and its host direct has none.
func (r *rig) proxyConfig(t testing.TB, command string, more ...string) string {
	t.Helper()
	addr := "HostName " + r.addr().String()
	lines := append([]string{"Host vps", addr, "ProxyCommand " + command}, more...)
	return r.sshd.ClientConfig(t, append(lines, "Host direct", addr)...)
}

// setFDPass sets whether portknock passes its socket to ssh from now on.
func (r *rig) setFDPass(t testing.TB, pass bool) {
	t.Helper()
	r.fdpass = pass
	r.config = r.sshConfig(t, r.profile)
}

// withAndWithoutFDPass runs a test twice: in one run portknock copies the stream, in the
// other run portknock passes its socket to ssh.
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

// login checks that ssh runs a command on the server through portknock.
func (r *rig) login(t testing.TB) {
	t.Helper()
	if got := r.ssh(t, "echo in"); got != "in\n" {
		t.Errorf("%s, %v: ssh prints %q, want in", r.firewall.Name, r.family, got)
	}
}

// sshOutput returns the standard output of ssh. It ignores stderr, because the login
// shell of the machine that runs the tests may print there.
func sshOutput(t testing.TB, h *lab.Host, args ...string) string {
	t.Helper()
	var stderr lab.Log
	c := h.Command("ssh", args...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Errorf("ssh %q: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

// portknock runs portknock until it ends. It returns the output of portknock and the exit
// code.
func portknock(h *lab.Host, args ...string) (stdout, stderr string, code int) {
	var stderrLog lab.Log
	c := h.Command("portknock", args...)
	c.Stderr = &stderrLog
	out, _ := c.Output()
	return string(out), stderrLog.String(), c.ProcessState.ExitCode()
}

// transfer sends 20 MB to the server and back through ssh, after new knocks.
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
		t.Errorf("sent %d bytes and received %d, which differ", len(data), back.Len())
	}
}

// awaitAllAcknowledged waits until every segment of the sessions has been acknowledged.
// From then on, neither side sends a packet without new data.
func (r *rig) awaitAllAcknowledged(t testing.TB) {
	t.Helper()
	lab.Await(t, time.Minute, func() (unacknowledged string) {
		for _, h := range []*lab.Host{r.client, r.server} {
			unacknowledged += h.Shell(t, "ss -Htn state established | awk '$2 > 0'") // $2 is Send-Q
		}
		return unacknowledged
	})
}

// awaitNoPortknock waits until no portknock runs on the client.
func (r *rig) awaitNoPortknock(t testing.TB) {
	t.Helper()
	lab.Require(t, "pgrep")
	lab.Await(t, time.Minute, func() string {
		left, err := r.client.Try("pgrep", "-a", "portknock")
		if err == nil || left != "" {
			return "portknock still runs: " + left
		}
		return ""
	})
}

// echoSession is an ssh session with a program that repeats its input.
type echoSession struct {
	in  io.Writer
	out *lab.Log
	n   int // number of lines that were sent
}

// openEcho starts an ssh session with cat on a host.
func (r *rig) openEcho(t testing.TB, host string) *echoSession {
	t.Helper()
	return startEcho(t, r.client.Command("ssh", "-F", r.config, host, "cat"))
}

// startEcho starts a command that repeats its input, and waits until it has repeated the
// first line.
func startEcho(t testing.TB, c *lab.Cmd) *echoSession {
	t.Helper()
	// The input is a real pipe. With another reader, the end of c would wait until this
	// reader ends.
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

// say sends a line to the session, and waits until the session has repeated the line.
func (e *echoSession) say(t testing.TB, what string) {
	t.Helper()
	e.n++
	line := fmt.Sprintf("%d %s\n", e.n, what)
	if _, err := io.WriteString(e.in, line); err != nil {
		t.Fatal(err)
	}
	e.out.Await(t, line, 1)
}
