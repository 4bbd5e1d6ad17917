package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestLoadFailsWhenOneFamilyFails: the load fails if only iptables or only ip6tables
// cannot load the rules.
func TestLoadFailsWhenOneFamilyFails(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		for _, flag := range []string{"-4", "-6"} {
			r.emitRules(t)
			lab.EditFile(t, r.rules, "\nCOMMIT", "\n"+flag+" -A PORTKNOCK -j NONSENSE\nCOMMIT")
			if out, err := tryHeaderLine(t, r.server, r.rules, "load"); err == nil {
				t.Errorf("the rules have a fault for %s alone, and the load succeeds: %q", flag, out)
			}
		}
	})
}

// TestLoadFailsWhenDaemonCannotRun: if the daemon that opens the port cannot run, the
// load fails with a message and does not close any port.
func TestLoadFailsWhenDaemonCannotRun(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		firewall lab.Firewall
		settings []string
	}{{
		firewall: fwknopd,
		settings: fwknopSettings(t),
	}, {
		firewall: firewallNamed("knockd"),
		settings: []string{"Sequence 7001/udp 8003"},
	}} {
		t.Run(tt.firewall.Name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, tt.firewall, lab.IPv4, tt.settings...)
			r.emitRules(t, "--interface", "eth0")
			lab.EditFile(t, r.rules, "eth0", "nowhere")
			if out, err := tryHeaderLine(t, r.server, r.rules, "load"); err == nil || out == "" {
				t.Errorf("the load returns %v and prints %q, want an error and a message", err, out)
			}
			r.expect(t, r.client, lab.Open)
		})
	}
}

// TestChainsWithSimilarNamesAreKept: load and unload keep a chain of another program whose
// name begins like the name of our chain.
func TestChainsWithSimilarNamesAreKept(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		r.server.Listen(t, 8080)
		for _, chain := range []string{"mangle PREROUTING", "filter INPUT"} {
			table, hook, _ := strings.Cut(chain, " ")
			r.server.Shell(t, fmt.Sprintf(`iptables -t %[1]s -N PORTKNOCKING
				iptables -t %[1]s -A PORTKNOCKING -p tcp --dport 9 -j DROP
				iptables -t %[1]s -A %[2]s -j PORTKNOCKING`, table, hook))
		}
		before := r.ruleset(t)
		r.emitRules(t, "--policy", "drop")
		for range 2 {
			r.runHeaderLine(t, "load")
			r.expect(t, r.client, lab.Dropped)
			r.expectPort(t, r.client, 8080, lab.Dropped)
		}
		r.runHeaderLine(t, "unload")
		r.expectRuleset(t, before)
	})
}

// TestManyWindowsLoadAndUnload: a server loads as many windows as iptables supports, and
// then fewer windows. The unload removes all of them. Both families are in one rules file,
// which takes seconds to load, so each firewall runs this test with one family only.
func TestManyWindowsLoadAndUnload(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		if family == lab.IPv4 == (f.Name == "iptables-legacy") {
			return
		}
		r := newListeningRig(t, f, family)
		before := r.ruleset(t)
		r.profile = r.vpsProfile(t, "Scheme rotating", keyFileSetting(t))
		for _, hours := range []int{720, 24, 1} {
			r.emitRules(t, "--horizon", fmt.Sprint(hours, "h"))
			r.runHeaderLine(t, "test")
			r.runHeaderLine(t, "load")
			once := r.ruleset(t)
			r.runHeaderLine(t, "load")
			if twice := r.ruleset(t); twice != once {
				t.Errorf("horizon of %d hours: %d bytes of rules after the first load, %d after the second", hours, len(once), len(twice))
			}
			r.expect(t, r.attacker, lab.Dropped)
			r.client.Run(t, "portknock", "knock", "-c", r.profile, "vps")
			r.expect(t, r.client, lab.Open)
		}
		r.runHeaderLine(t, "unload")
		r.expectRuleset(t, before)
		left, _ := r.server.Try("sh", "-c", "iptables-save | grep PORTKNOCK; ip6tables-save | grep PORTKNOCK; ls /proc/net/xt_recent")
		if format(f) == "iptables" && strings.Contains(strings.ToLower(left), "portknock") {
			t.Errorf("the unload left chains or lists:\n%s", left)
		}
	})
}
