package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestFDPassHandsSocketToSSH: ssh uses the socket that portknock has connected, and
// portknock has ended.
func TestFDPassHandsSocketToSSH(t *testing.T) {
	t.Parallel()
	for _, family := range lab.Families {
		t.Run(family.String(), func(t *testing.T) {
			t.Parallel()
			r := newGuardedRig(t, nftables, family, threeKnocks)
			r.setFDPass(t, true)

			c := r.openEcho(t, "vps")
			r.awaitNoPortknock(t) // ssh still runs
			c.say(t, "still here")

			// SSH_CONNECTION is the client's address and port, the server's address and port.
			connection := strings.Fields(r.ssh(t, "echo $SSH_CONNECTION"))
			if len(connection) != 4 || connection[0] != r.client.Addr(family).String() || connection[2] != r.addr().String() || connection[3] != "22" {
				t.Errorf("the command on the server has SSH_CONNECTION %q", connection)
			}
			transfer(t, r)
		})
	}
}

// TestFDPassSocketHasKeepAlive: a connection that portknock passes to ssh has
// keep-alive probes, like a connection that ssh makes itself.
func TestFDPassSocketHasKeepAlive(t *testing.T) {
	t.Parallel()
	lab.Require(t, "ss")
	r := newDefaultRig(t)
	r.setFDPass(t, true)
	r.openEcho(t, "vps")
	// While data is in flight, ss shows another timer.
	lab.Await(t, time.Minute, func() string {
		timers := r.client.Run(t, "ss", "-tnoH", "state", "established", "dport", "22")
		if strings.Contains(timers, "timer:(keepalive") {
			return ""
		}
		return "no keep-alive: " + timers
	})
}

// TestFDPassFailureEndsSSH: if portknock fails, ssh ends too, and shows portknock's
// reason.
func TestFDPassFailureEndsSSH(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	r.profile = wrongKnocksProfile(t, "2s")
	r.setFDPass(t, true)
	out, err := r.client.Try("ssh", "-F", r.config, "vps", "true")
	if err == nil || !strings.Contains(out, "did not open within 2s: no answer") {
		t.Errorf("ssh prints %q, %v, want portknock's reason", out, err)
	}
	r.awaitNoPortknock(t)
}

// TestFDPassEndsWhenSSHIsKilled: portknock ends if ssh is killed, because no process
// needs the socket.
func TestFDPassEndsWhenSSHIsKilled(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	r.profile = wrongKnocksProfile(t, "60s")
	r.setFDPass(t, true)
	c := r.client.Command("ssh", "-F", r.config, "vps", "true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, time.Minute, func() string {
		if out, _ := r.client.Try("pgrep", "-a", "portknock"); out != "" {
			return ""
		}
		return "portknock does not start"
	})
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.awaitNoPortknock(t)
}

// TestFDPassWithoutReceiverSendsNoKnock: portknock -F sends no knock if its standard
// output cannot receive the socket.
func TestFDPassWithoutReceiverSendsNoKnock(t *testing.T) {
	t.Parallel()
	client, server := twoHosts(t)
	profile := lab.File(t, "config", "Host *", twoKnocks, "ConnectTimeout 1")
	capture := client.Capture(t)
	try := func(want int, args ...string) (story []string) {
		t.Helper()
		_, stderr, code := portknock(client, append(args, "-c", profile, server.Addr(lab.IPv4).String(), "22")...)
		if code != want {
			t.Errorf("arguments %q: wrong exit code %d: %s", args, code, stderr)
		}
		story, _ = sentByClient(capture.Packets(t))
		return story
	}
	if story := try(exitUsage, "-F"); len(story) > 0 {
		t.Errorf("with -F and without a receiver, the client sent %q", story)
	}
	if story := try(exitClosed); len(story) != 3 {
		t.Errorf("without -F, the client sent %q, want two knocks and a SYN", story)
	}
}
