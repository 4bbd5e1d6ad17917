package e2e

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestDropPolicyDropsAllButAllowedTraffic: --policy drop closes all other ports. It lets
// through pings, connections to the ports of --allow, sessions that the server began, and
// ssh after the knocks.
func TestDropPolicyDropsAllButAllowedTraffic(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "ping")
		r := newRig(t, f, family, twoKnocks)
		r.server.Listen(t, 80)
		r.server.Listen(t, 8080)
		r.emitRules(t, "--policy", "drop", "--allow", "80")
		before := r.ruleset(t)
		idle := r.openEcho(t, "direct")
		speak := make(chan bool)
		r.client.Serve(t, 8080, func(c net.Conn) {
			<-speak
			_, _ = io.WriteString(c, "news")
		})
		out := r.server.Dial(t, "tcp", netip.AddrPortFrom(r.client.Addr(family), 8080).String())
		r.runHeaderLine(t, "load")
		close(speak)
		_ = out.SetReadDeadline(time.Now().Add(20 * time.Second))
		if got, err := io.ReadAll(out); string(got) != "news" {
			t.Errorf("a session that the server began receives %q, %v, want news", got, err)
		}
		r.knockAndWait(t, r.attacker) // now a daemon has started
		r.runHeaderLine(t, "load")
		idle.say(t, "before the first load")
		for port, want := range map[uint16]lab.State{80: lab.Open, 8080: lab.Dropped, 22: lab.Dropped, 1: lab.Dropped} {
			r.expectPort(t, r.client, port, want)
		}
		r.ssh(t, "true")
		r.client.Run(t, "ping", "-c1", "-W5", r.addr().String())
		r.runHeaderLine(t, "unload")
		r.expectPort(t, r.client, 8080, lab.Open)
		r.expectRuleset(t, before)
	})
}

// TestReloadWithoutDropPolicyReopensOtherPorts: rules without the drop policy replace
// rules with the drop policy, and open the other ports again. The unload of rules without
// the drop policy also removes rules that have the drop policy.
func TestReloadWithoutDropPolicyReopensOtherPorts(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		r.server.Listen(t, 8080)
		dropping := emitRules(t, r.server, f, r.profile, "--policy", "drop")
		before := r.ruleset(t)
		for _, then := range []string{"load", "unload"} {
			runHeaderLine(t, r.server, dropping, "load")
			r.expectPort(t, r.client, 8080, lab.Dropped)
			r.runHeaderLine(t, then)
			r.expectPort(t, r.client, 8080, lab.Open)
			if then == "load" {
				r.expect(t, r.client, lab.Dropped)
			}
		}
		r.expectRuleset(t, before)
	})
}

// TestDropPolicyKeepsIdleSessions: a session to an allowed port continues if it was idle
// while the server loaded the rules. The server did not track connections before the
// load.
func TestDropPolicyKeepsIdleSessions(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 8080")
		r.emitRules(t, "--policy", "drop", "--allow", "22")
		idle := r.openEcho(t, "direct")
		r.awaitAllAcknowledged(t)
		r.runHeaderLine(t, "load")
		idle.say(t, "after the load")
	})
}
