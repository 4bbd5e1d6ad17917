package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestFDPass: ssh runs on the socket that portknock has opened, and portknock
// is gone.
func TestFDPass(t *testing.T) {
	t.Parallel()
	for _, family := range lab.Families {
		t.Run(family.String(), func(t *testing.T) {
			t.Parallel()
			r := newGuarded(t, nftables, family, threeKnocks)
			r.passSocket(t, true)

			c := r.echo(t, "vps")
			r.noneLeft(t) // while ssh goes on
			c.say(t, "still here")

			// Client's address and port, server's address and port.
			said := strings.Fields(r.ssh(t, "echo $SSH_CONNECTION"))
			if len(said) != 4 || said[0] != r.client.Addr(family).String() || said[2] != r.addr().String() || said[3] != "22" {
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
	r.passSocket(t, true)
	r.echo(t, "vps")
	// While data is on its way another timer runs.
	lab.Await(t, 10*time.Second, func() string {
		timers := r.client.Run(t, "ss", "-tnoH", "state", "established", "dport", "22")
		if strings.Contains(timers, "timer:(keepalive") {
			return ""
		}
		return "no keep-alive: " + timers
	})
}

// TestFDPassGivesUp: what stops portknock ends ssh, with portknock's reason.
func TestFDPassGivesUp(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	r.profile = wrongKnocks(t, "2s")
	r.passSocket(t, true)
	out, err := r.client.Try("ssh", "-F", r.config, "vps", "true")
	if err == nil || !strings.Contains(out, "did not open within 2s: no answer") {
		t.Errorf("ssh says %q, %v", out, err)
	}
	r.noneLeft(t)
}

// TestFDPassSSHKilled: without ssh, nobody needs the socket any more.
func TestFDPassSSHKilled(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	r.profile = wrongKnocks(t, "60s")
	r.passSocket(t, true)
	c := r.client.Command("ssh", "-F", r.config, "vps", "true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, 10*time.Second, func() string {
		if out, _ := r.client.Try("pgrep", "-a", "portknock"); out != "" {
			return ""
		}
		return "portknock does not start"
	})
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.noneLeft(t)
}

// TestFDPassRefused: no knock leaves if there is nothing to pass the socket to.
func TestFDPassRefused(t *testing.T) {
	t.Parallel()
	client, server := twoHosts(t)
	profile := lab.File(t, "config", "Host *", twoKnocks, "ConnectTimeout 1")
	capture := client.Capture(t)
	try := func(want int, args ...string) (story []string) {
		t.Helper()
		_, said, code := portknock(client, append(args, "-c", profile, server.Addr(lab.IPv4).String(), "22")...)
		if code != want {
			t.Errorf("%q: exit code %d: %s", args, code, said)
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
