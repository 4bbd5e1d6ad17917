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

// TestTrial: rules on trial undo themselves, unless they are kept.
func TestTrial(t *testing.T) {
	eachOf(t, lab.Firewalls, ipv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "mkfifo")
		r := newRig(t, f, family, twoKnocks)
		trials := 0
		// try begins a trial. Its minute is over when the test says so.
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
				awaitEnd(t, r.server, minute)
			}
		}
		try()()
		r.expect(t, r.client, lab.Open)
		if _, err := tryHeader(t, r.server, r.rules, "keep"); err == nil {
			t.Error("what is undone already can be kept")
		}
		first := try()
		second := try()
		first()
		r.expect(t, r.client, lab.Dropped)
		r.header(t, "keep")
		second()
		r.expect(t, r.client, lab.Dropped)
		r.header(t, "watch")
	})
}

// trial returns the trial of a rules file, with another command in place of its
// minute.
func trial(t *testing.T, rules, minute string) string {
	t.Helper()
	line := lab.RulesLine(t, rules, "trial")
	changed := strings.Replace(line, "sleep 60", minute, 1)
	if changed == line {
		t.Fatal(line)
	}
	return changed
}

// awaitEnd waits until no process of a host has a file in its command line.
func awaitEnd(t *testing.T, h *lab.Host, file string) {
	t.Helper()
	lab.Require(t, "pgrep")
	h.Shell(t, "while pgrep -f '[/]"+file[1:]+"' >/dev/null; do sleep .01; done") // not this one
}

// TestFailedTrialLeavesLoadedGuard: a trial of rules that cannot be loaded does not
// remove the rules that are loaded, neither at once nor after its minute.
func TestFailedTrialLeavesLoadedGuard(t *testing.T) {
	eachOf(t, append(slices.Clone(lab.Firewalls), fwknopd), ipv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings := []string{twoKnocks}
		if f.Name == fwknopd.Name {
			settings = fwknopSettings(t)
		}
		web := append([]string{"Host web", "OpenPorts 8080"}, settings...)
		r := newGuarded(t, f, family, append(settings, web...)...)
		fails := func(what, rules string) {
			t.Helper()
			if out, err := r.server.Try("sh", "-c", trial(t, rules, "sleep 0.1")); err == nil {
				t.Errorf("%s: the trial succeeds: %s", what, out)
			}
			awaitEnd(t, r.server, "/run/portknock.trial")
			r.expect(t, r.attacker, lab.Dropped)
		}
		lab.EditFile(t, r.rules, "chain guard {", "chain guard { nonsense", "-i lo ", "-m nonsense ")
		fails("rules with an error", r.rules)
		if out, err := r.server.Try("cat", "/run/portknock.trial"); err == nil {
			t.Errorf("a trial goes on: %s", out)
		}

		// The check passes and the load fails: it would open port 22. An earlier trial,
		// whose minute is not over, goes on.
		r.server.Shell(t, "echo earlier >/run/portknock.trial")
		fails("rules that open a guarded port", emitOnly(t, r.server, f, r.profile, "web"))
		if got := r.server.Run(t, "cat", "/run/portknock.trial"); got != "earlier\n" {
			t.Errorf("the earlier trial is now %q", got)
		}
	})
}

// TestLoadRefusesToOpen: one file does not silently open what another one guards.
func TestLoadRefusesToOpen(t *testing.T) {
	eachOf(t, lab.Firewalls, ipv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 22 3000-3005 500/udp",
			"Host web", "Sequence 1000/udp 2000/udp", "OpenPorts 8080")
		emitOpening := func(open, name string) string {
			t.Helper()
			return emitOnly(t, r.server, f, r.profile, "-o", "OpenPorts="+open, name)
		}
		refused := func(rules, line, named string) {
			t.Helper()
			out, err := tryHeader(t, r.server, rules, line)
			want := "this would open guarded ports: " + named + ". Put all"
			if err == nil || !strings.Contains(out, want) || !strings.Contains(out, forceAdvice) {
				t.Errorf("%s says %q, %v, want %q", line, out, err, want)
			}
			r.expect(t, r.client, lab.Dropped)
		}
		r.header(t, "load")
		r.expect(t, r.client, lab.Dropped)
		other := emitOpening("8080", "web")
		refused(other, "load", "22/tcp 3000-3005/tcp 500/udp")
		refused(other, "trial", "22/tcp 3000-3005/tcp 500/udp")
		refused(emitOpening("22 3000-3003 3005 500/tcp", "vps"), "load", "3000-3005/tcp 500/udp")

		both := emit(t, r.server, f, r.profile, "web")
		for _, covers := range []string{r.rules, both, emitOpening("20-23 2000-3002 3003-4000 500/udp 8080", "vps")} {
			header(t, r.server, covers, "load")
			r.expect(t, r.client, lab.Dropped)
		}
		r.server.Shell(t, "export "+forceAdvice+"; "+lab.RulesLine(t, other, "load"))
		r.expect(t, r.client, lab.Open)
	})
}

// forceAdvice is what the load tells an administrator who insists.
const forceAdvice = "PORTKNOCK_FORCE=1"

// TestLoadFails: rules that only one family refuses are not loaded in silence.
func TestLoadFails(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		for _, flag := range []string{"-4", "-6"} {
			r.emit(t)
			lab.EditFile(t, r.rules, "\nCOMMIT", "\n"+flag+" -A PORTKNOCK -j NONSENSE\nCOMMIT")
			if out, err := tryHeader(t, r.server, r.rules, "load"); err == nil {
				t.Errorf("with a fault for %s alone: no failure, but %q", flag, out)
			}
		}
	})
}

// TestDaemonFails: where the daemon that is to open the port cannot run, to load the
// rules closes nothing and says so.
func TestDaemonFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		firewall lab.Firewall
		settings []string
		old, new string // in the rules
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
			if out, err := tryHeader(t, r.server, r.rules, "load"); err == nil || out == "" {
				t.Errorf("%v, %q", err, out)
			}
			r.expect(t, r.client, lab.Open)
		})
	}
}

// TestChainsOfOthers: a chain whose name begins like ours is not taken for it.
func TestChainsOfOthers(t *testing.T) {
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
		r.emit(t, "--policy", "drop")
		for range 2 {
			r.header(t, "load")
			r.expect(t, r.client, lab.Dropped)
			r.expectPort(t, r.client, 8080, lab.Dropped)
		}
		r.header(t, "undo")
		r.expectRuleset(t, before)
	})
}

// TestManyWindows: as many windows as iptables carries, and fewer after that.
// The undo removes all of them. The rules of both families are one file,
// which takes seconds to load: a family for each firewall is enough.
func TestManyWindows(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		if family == lab.IPv4 == (f.Name == "iptables-legacy") {
			return
		}
		r := newHosts(t, f, family)
		before := r.ruleset(t)
		r.profile = r.vps(t, "Scheme rotating", keyFile(t))
		for _, hours := range []int{720, 24, 1} {
			r.emit(t, "--horizon", fmt.Sprint(hours, "h"))
			r.header(t, "check")
			r.header(t, "load")
			once := r.ruleset(t)
			r.header(t, "load")
			if twice := r.ruleset(t); twice != once {
				t.Errorf("%d hours, loaded once, are %d bytes of rules, twice %d", hours, len(once), len(twice))
			}
			if hours > 24 {
				r.header(t, "parts") // beside what is loaded
				if parts := r.ruleset(t); parts != once {
					t.Errorf("%d hours, loaded in parts, are %d bytes of rules, at once %d", hours, len(parts), len(once))
				}
				// An unprivileged container that has nothing yet.
				r.server.Shell(t, "unshare -Urn sh -c '"+lab.RulesLine(t, r.rules, "parts")+"'")
			}
			r.expect(t, r.attacker, lab.Dropped)
			r.client.Run(t, "portknock", "knock", "-c", r.profile, "vps")
			r.expect(t, r.client, lab.Open)
		}
		r.header(t, "undo")
		r.expectRuleset(t, before)
		left, _ := r.server.Try("sh", "-c", "iptables-save | grep PORTKNOCK; ip6tables-save | grep PORTKNOCK; ls /proc/net/xt_recent")
		if format(f) == "iptables" && strings.Contains(strings.ToLower(left), "portknock") {
			t.Errorf("the undo has left\n%s", left)
		}
	})
}

// TestContainer: where a server may not load much at once, it loads in parts.
func TestContainer(t *testing.T) {
	t.Parallel()
	knocks, _ := rotating(t, time.Hour, time.Minute)
	tokens, _ := tokens(t, time.Hour, time.Minute)
	for name, settings := range map[string][]string{"rotating": knocks, "token": tokens} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testContainer(t, settings)
		})
	}
}

// testContainer loads the rules for these settings as a user without privileges.
func testContainer(t *testing.T, settings []string) {
	lab.Require(t, "nft", "unshare", "setpriv", "awk")
	server := lab.NewHost(t, "server")
	// For a user who has no privilege except in a namespace of its own.
	dir, err := os.MkdirTemp("/tmp", "portknock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "rules")
	emit(t, server, nftables, vps(t, settings...), "--horizon", "365d", "--output", file)
	server.Shell(t, "chmod 755 "+dir+" && chmod 644 "+file)
	inside := func(script string) (string, error) {
		return server.Try("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
			"unshare", "-Urn", "sh", "-c", script)
	}
	if out, err := inside("true"); err != nil {
		lab.Missing(t, fmt.Sprintf("namespaces for users: %v %s", err, out))
	}
	if out, err := inside(lab.RulesLine(t, file, "load")); err == nil {
		t.Logf("this kernel takes it all at once: %s", out)
	}
	parts := lab.RulesLine(t, file, "parts")
	out, err := inside(parts + " && " + parts + " && nft list table inet portknock | grep -c 'timeout\\|goto'")
	if err != nil || strings.TrimSpace(out) == "0" {
		t.Errorf("%v: %s", err, out)
	}
	// A part that fails is not passed over.
	server.Shell(t, "echo nonsense >>"+file)
	if _, err := inside(parts); err == nil {
		t.Error("a fault in the last part is no failure")
	}
}
