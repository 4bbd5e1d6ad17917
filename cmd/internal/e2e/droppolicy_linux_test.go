package e2e

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestDropPolicy closes everything else, and still lets ssh, pings, the allowed
// ports and the server's own sessions through.
func TestDropPolicy(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "ping")
		r := newRig(t, f, family, twoKnocks)
		r.server.Listen(t, 80)
		r.server.Listen(t, 8080)
		r.emit(t, "--policy", "drop", "--allow", "80")
		before := r.ruleset(t)
		idle := r.echo(t, "direct")
		speak := make(chan bool)
		r.client.Serve(t, 8080, func(c net.Conn) {
			<-speak
			_, _ = io.WriteString(c, "news")
		})
		out := r.server.Dial(t, "tcp", netip.AddrPortFrom(r.client.Addr(family), 8080).String())
		r.header(t, "load")
		close(speak)
		_ = out.SetReadDeadline(time.Now().Add(20 * time.Second))
		if got, err := io.ReadAll(out); string(got) != "news" {
			t.Errorf("from a session of the server's own comes %q, %v", got, err)
		}
		r.knockAndWait(t, r.attacker) // a daemon has started
		r.header(t, "load")
		idle.say(t, "before the first load")
		for port, want := range map[uint16]lab.State{80: lab.Open, 8080: lab.Dropped, 22: lab.Dropped, 1: lab.Dropped} {
			r.expectPort(t, r.client, port, want)
		}
		r.ssh(t, "true")
		r.client.Run(t, "ping", "-c1", "-W5", r.addr().String())
		r.header(t, "undo")
		r.expectPort(t, r.client, 8080, lab.Open)
		r.expectRuleset(t, before)
	})
}

// TestDropPolicyEnds: rules without the drop policy, loaded over rules with it,
// open the other ports again; and the undo of either takes all away.
func TestDropPolicyEnds(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		r.server.Listen(t, 8080)
		dropping := emit(t, r.server, f, r.profile, "--policy", "drop")
		before := r.ruleset(t)
		for _, then := range []string{"load", "undo"} {
			header(t, r.server, dropping, "load")
			r.expectPort(t, r.client, 8080, lab.Dropped)
			r.header(t, then)
			r.expectPort(t, r.client, 8080, lab.Open)
			if then == "load" {
				r.expect(t, r.client, lab.Dropped)
			}
		}
		r.expectRuleset(t, before)
	})
}

// TestDropPolicyKeepsSessions: a session to an allowed port goes on that was idle
// while the server, which did not track connections until then, loaded the rules.
func TestDropPolicyKeepsSessions(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 8080")
		r.emit(t, "--policy", "drop", "--allow", "22")
		idle := r.echo(t, "direct")
		r.quiet(t)
		r.header(t, "load")
		idle.say(t, "after the load")
	})
}
