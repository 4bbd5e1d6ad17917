package e2e

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestFDPass: ssh runs on the socket that portknock has opened, and portknock
// is gone.
func TestFDPass(t *testing.T) {
	for _, family := range lab.Families {
		t.Run(family.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, lab.Firewalls[0], family, "Sequence 7001/udp 8003/tcp 9005/udp")
			header(t, r.Server, r.rules, "load")
			r.fdpass = true
			r.config = r.sshConfig(t, r.profile)

			c := r.echo(t, "vps")
			r.noneLeft(t) // while ssh goes on
			c.say(t, "still here")

			// Client's address and port, server's address and port.
			said := strings.Fields(r.ssh(t, "echo $SSH_CONNECTION"))
			if len(said) != 4 || said[0] != r.Client.Addr(family).String() || said[2] != r.Server.Addr(family).String() || said[3] != "22" {
				t.Errorf("sshd saw %q", said)
			}
			transfer(t, r)
		})
	}
}

// TestFDPassKeepAlive: a connection that ssh was given has keep-alive probes, as
// one that it makes itself.
func TestFDPassKeepAlive(t *testing.T) {
	t.Parallel()
	lab.Require(t, "ss")
	r := newJourney(t)
	r.fdpass = true
	r.config = r.sshConfig(t, r.profile)
	r.echo(t, "vps")
	// While data is on its way another timer runs.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		timers := r.Client.Run(t, "ss", "-tnoH", "state", "established", "dport", "22")
		if strings.Contains(timers, "timer:(keepalive") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no keep-alive: %s", timers)
		}
	}
}

// TestFDPassGivesUp: what stops portknock ends ssh, with portknock's reason.
func TestFDPassGivesUp(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	r.fdpass = true
	wrong := secret(t, "config", "Host *", "Sequence 1111/udp 2222/udp", "ConnectTimeout 2")
	out, err := r.Client.Try("ssh", "-F", r.sshConfig(t, wrong), "vps", "true")
	if err == nil || !strings.Contains(out, "did not open within 2s: no answer") {
		t.Errorf("ssh says %q, %v", out, err)
	}
	r.noneLeft(t)
}

// TestFDPassSSHKilled: without ssh, nobody needs the socket any more.
func TestFDPassSSHKilled(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	r.fdpass = true
	wrong := secret(t, "config", "Host *", "Sequence 1111/udp 2222/udp", "ConnectTimeout 60")
	c := r.Client.Command("ssh", "-F", r.sshConfig(t, wrong), "vps", "true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if out, _ := r.Client.Try("pgrep", "-a", "portknock"); out != "" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("portknock does not start")
		}
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.noneLeft(t)
}

// TestFDPassRefused: no knock leaves if there is nothing to pass the socket to.
func TestFDPassRefused(t *testing.T) {
	t.Parallel()
	client, server := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server)
	profile := secret(t, "config", "Host *", "Sequence 7001/udp 8003/tcp", "ConnectTimeout 1")
	capture := client.Capture(t)
	try := func(want int, args ...string) (story []string) {
		t.Helper()
		var said bytes.Buffer
		c := client.Command("portknock", append(args, "-c", profile, server.Addr(lab.IPv4).String(), "22")...)
		c.Stderr = &said
		_, _ = c.Output()
		if code := c.ProcessState.ExitCode(); code != want {
			t.Errorf("%q: exit code %d: %s", args, code, &said)
		}
		story, _ = sent(capture.Packets(t))
		return story
	}
	if story := try(exitUsage, "-F"); len(story) > 0 {
		t.Errorf("left the client: %q", story)
	}
	if story := try(exitClosed); len(story) != 3 {
		t.Errorf("without -F it would have left: %q", story)
	}
}
