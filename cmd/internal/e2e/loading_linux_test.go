package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestTrialUndoesItselfUnlessKept: rules on trial undo themselves, unless they are kept.
func TestTrialUndoesItselfUnlessKept(t *testing.T) {
	eachOf(t, lab.Firewalls, onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "mkfifo")
		r := newRig(t, f, family, twoKnocks)
		trials := 0
		// try begins a trial. Instead of a minute, the trial waits until the test calls end.
		try := func() (end func()) {
			t.Helper()
			trials++
			minute := fmt.Sprintf("/run/minute%d", trials)
			r.server.Run(t, "mkfifo", minute)
			r.server.Shell(t, trial(t, r.rules, "read x <"+minute))
			r.expect(t, r.client, lab.Dropped)
			return func() {
				t.Helper()
				r.server.Shell(t, "echo >"+minute)
				awaitProcessEnd(t, r.server, minute)
			}
		}
		try()()
		r.expect(t, r.client, lab.Open)
		if _, err := tryHeaderLine(t, r.server, r.rules, "keep"); err == nil {
			t.Error("keep succeeds after the trial has undone the rules")
		}
		first := try()
		second := try()
		first()
		r.expect(t, r.client, lab.Dropped)
		r.runHeaderLine(t, "keep")
		second()
		r.expect(t, r.client, lab.Dropped)
		r.runHeaderLine(t, "watch")
	})
}

// trial returns the trial command of a rules file. The command minute replaces its sleep
// of one minute.
func trial(t *testing.T, rules, minute string) string {
	t.Helper()
	line := lab.RulesLine(t, rules, "trial")
	changed := strings.Replace(line, "sleep 60", minute, 1)
	if changed == line {
		t.Fatal(line)
	}
	return changed
}

// awaitProcessEnd waits until no process of a host has this file in its command line.
func awaitProcessEnd(t *testing.T, h *lab.Host, file string) {
	t.Helper()
	lab.Require(t, "pgrep")
	h.Shell(t, "while pgrep -f '[/]"+file[1:]+"' >/dev/null; do sleep .01; done") // the [/] keeps this shell out
}

// TestFailedTrialLeavesLoadedGuard: a trial of rules that cannot be loaded does not
// remove the rules that are loaded, neither at once nor after its minute.
func TestFailedTrialLeavesLoadedGuard(t *testing.T) {
	eachOf(t, append(slices.Clone(lab.Firewalls), fwknopd), onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings := []string{twoKnocks}
		if f.Name == fwknopd.Name {
			settings = fwknopSettings(t)
		}
		web := append([]string{"Host web", "OpenPorts 8080"}, settings...)
		r := newGuardedRig(t, f, family, append(settings, web...)...)
		fails := func(what, rules string) {
			t.Helper()
			if out, err := r.server.Try("sh", "-c", trial(t, rules, "sleep 0.1")); err == nil {
				t.Errorf("%s: the trial succeeds: %s", what, out)
			}
			awaitProcessEnd(t, r.server, "/run/portknock.trial")
			r.expect(t, r.attacker, lab.Dropped)
		}
		lab.EditFile(t, r.rules, "chain guard {", "chain guard { nonsense", "-i lo ", "-m nonsense ")
		fails("rules with an error", r.rules)
		if out, err := r.server.Try("cat", "/run/portknock.trial"); err == nil {
			t.Errorf("the trial continues after its load has failed: %s", out)
		}

		// These rules pass the check, but the load fails because they would open port 22.
		// An earlier trial that has not ended continues.
		r.server.Shell(t, "echo earlier >/run/portknock.trial")
		fails("rules that open a guarded port", emitRulesFor(t, r.server, f, r.profile, "web"))
		if got := r.server.Run(t, "cat", "/run/portknock.trial"); got != "earlier\n" {
			t.Errorf("the earlier trial is now %q", got)
		}
	})
}

// TestLoadRefusesToOpenGuardedPorts: the load of one file fails if it would open a port
// that a loaded file guards. PORTKNOCK_FORCE=1 forces the load.
func TestLoadRefusesToOpenGuardedPorts(t *testing.T) {
	eachOf(t, lab.Firewalls, onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 22 3000-3005 500/udp",
			"Host web", "Sequence 1000/udp 2000/udp", "OpenPorts 8080")
		emitOpening := func(open, name string) string {
			t.Helper()
			return emitRulesFor(t, r.server, f, r.profile, "-o", "OpenPorts="+open, name)
		}
		refused := func(rules, line, named string) {
			t.Helper()
			out, err := tryHeaderLine(t, r.server, rules, line)
			want := "this would open guarded ports: " + named + ". Put all"
			if err == nil || !strings.Contains(out, want) || !strings.Contains(out, forceAdvice) {
				t.Errorf("%s prints %q, %v, want %q and the advice to force it", line, out, err, want)
			}
			r.expect(t, r.client, lab.Dropped)
		}
		r.runHeaderLine(t, "load")
		r.expect(t, r.client, lab.Dropped)
		other := emitOpening("8080", "web")
		refused(other, "load", "22/tcp 3000-3005/tcp 500/udp")
		refused(other, "trial", "22/tcp 3000-3005/tcp 500/udp")
		refused(emitOpening("22 3000-3003 3005 500/tcp", "vps"), "load", "3000-3005/tcp 500/udp")

		both := emitRules(t, r.server, f, r.profile, "web")
		for _, covers := range []string{r.rules, both, emitOpening("20-23 2000-3002 3003-4000 500/udp 8080", "vps")} {
			runHeaderLine(t, r.server, covers, "load")
			r.expect(t, r.client, lab.Dropped)
		}
		r.server.Shell(t, "export "+forceAdvice+"; "+lab.RulesLine(t, other, "load"))
		r.expect(t, r.client, lab.Open)
	})
}

// forceAdvice is the variable that a failed load names. It forces the load.
const forceAdvice = "PORTKNOCK_FORCE=1"

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
		old, new string // old is a text in the rules, new replaces it
	}{{
		firewall: fwknopd,
		settings: fwknopSettings(t),
		old:      "PCAP_INTF eth0;",
		new:      "PCAP_INTF nowhere;",
	}, {
		firewall: firewallNamed("knockd"),
		settings: []string{"Sequence 7001/udp 8003"},
		old:      "[options]\n",
		new:      "[options]\n\tInterface = nowhere\n",
	}} {
		t.Run(tt.firewall.Name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, tt.firewall, lab.IPv4, tt.settings...)
			lab.EditFile(t, r.rules, tt.old, tt.new)
			if out, err := tryHeaderLine(t, r.server, r.rules, "load"); err == nil || out == "" {
				t.Errorf("the load returns %v and prints %q, want an error and a message", err, out)
			}
			r.expect(t, r.client, lab.Open)
		})
	}
}

// TestChainsWithSimilarNamesAreKept: load and undo keep a chain of another program whose
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

// TestManyWindowsLoadAndUndo: a server loads as many windows as iptables supports, and
// then fewer windows. The undo removes all of them. Both families are in one rules file,
// which takes seconds to load, so each firewall runs this test with one family only.
func TestManyWindowsLoadAndUndo(t *testing.T) {
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
			if hours > 24 {
				r.runHeaderLine(t, "parts") // the same rules are loaded already
				if parts := r.ruleset(t); parts != once {
					t.Errorf("horizon of %d hours: loaded in parts %d bytes of rules, at once %d", hours, len(parts), len(once))
				}
				// This namespace is like an unprivileged container that has no rules yet.
				r.server.Shell(t, "unshare -Urn sh -c '"+lab.RulesLine(t, r.rules, "parts")+"'")
			}
			r.expect(t, r.attacker, lab.Dropped)
			r.client.Run(t, "portknock", "knock", "-c", r.profile, "vps")
			r.expect(t, r.client, lab.Open)
		}
		r.runHeaderLine(t, "unload")
		r.expectRuleset(t, before)
		left, _ := r.server.Try("sh", "-c", "iptables-save | grep PORTKNOCK; ip6tables-save | grep PORTKNOCK; ls /proc/net/xt_recent")
		if format(f) == "iptables" && strings.Contains(strings.ToLower(left), "portknock") {
			t.Errorf("the undo left chains or lists:\n%s", left)
		}
	})
}

// TestRulesLoadInPartsInContainer: a server that cannot load many rules at once loads
// them in parts.
func TestRulesLoadInPartsInContainer(t *testing.T) {
	t.Parallel()
	knocks, _ := rotating(t, time.Hour, time.Minute)
	tokens, _ := tokens(t, time.Hour, time.Minute)
	for name, settings := range map[string][]string{"rotating": knocks, "token": tokens} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testLoadInParts(t, settings)
		})
	}
}

// testLoadInParts loads the rules for these settings as a user without privileges.
func testLoadInParts(t *testing.T, settings []string) {
	lab.Require(t, "nft", "unshare", "setpriv", "awk")
	server := lab.NewHost(t, "server")
	// This folder is for a user who has privileges only in a namespace of that user.
	dir, err := os.MkdirTemp("/tmp", "portknock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "rules")
	emitRules(t, server, nftables, vpsProfile(t, settings...), "--horizon", "365d", "--output", file)
	server.Shell(t, "chmod 755 "+dir+" && chmod 644 "+file)
	inside := func(script string) (string, error) {
		return server.Try("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
			"unshare", "-Urn", "sh", "-c", script)
	}
	if out, err := inside("true"); err != nil {
		lab.Missing(t, fmt.Sprintf("user namespaces: %v %s", err, out))
	}
	if out, err := inside(lab.RulesLine(t, file, "load")); err == nil {
		t.Logf("this kernel loads all rules at once: %s", out)
	}
	parts := lab.RulesLine(t, file, "parts")
	out, err := inside(parts + " && " + parts + " && nft list table inet portknock | grep -c 'timeout\\|goto'")
	if err != nil || strings.TrimSpace(out) == "0" {
		t.Errorf("the load in parts, twice, returns %v, or loads no windows or tokens: %s", err, out)
	}
	// If a part fails, the command fails.
	server.Shell(t, "echo nonsense >>"+file)
	if _, err := inside(parts); err == nil {
		t.Error("the load in parts succeeds although its last part has a fault")
	}
}
