package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// shortTrial returns the trial of a rules file, with a minute that is over at once.
func shortTrial(t *testing.T, rules string) string {
	t.Helper()
	line := headerLine(t, rules, "trial")
	short := strings.Replace(line, "sleep 60", "sleep 0.1", 1)
	if short == line {
		t.Fatal(line)
	}
	return short
}

// awaitTrialEnd waits until the shell that undoes a trial has ended.
func awaitTrialEnd(t *testing.T, h *lab.Host) {
	t.Helper()
	h.Shell(t, "while pgrep -f '[/]run/portknock.trial' >/dev/null; do sleep .01; done")
}

// TestFailedTrialLeavesLoadedGuard: a trial of rules that cannot be loaded does not
// remove the rules that are loaded, neither at once nor after its minute.
func TestFailedTrialLeavesLoadedGuard(t *testing.T) {
	lab.Require(t, "pgrep")
	test := func(t *testing.T, f lab.Firewall, settings ...string) {
		t.Parallel()
		web := append([]string{"Host web", "OpenPorts 8080"}, settings...)
		r := newRig(t, f, lab.IPv4, append(settings, web...)...)
		fails := func(what, rules string) {
			t.Helper()
			if out, err := r.Server.Try("sh", "-c", shortTrial(t, rules)); err == nil {
				t.Errorf("%s: the trial succeeds: %s", what, out)
			}
			awaitTrialEnd(t, r.Server)
			r.expect(t, r.Attacker, lab.Dropped)
		}
		header(t, r.Server, r.rules, "load")

		text, err := os.ReadFile(r.rules)
		if err != nil {
			t.Fatal(err)
		}
		broken := strings.NewReplacer("chain guard {", "chain guard { nonsense", "-i lo ", "-m nonsense ").Replace(string(text))
		if broken == string(text) {
			t.Fatal(broken)
		}
		if err := os.WriteFile(r.rules, []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		fails("rules with an error", r.rules)
		if out, err := r.Server.Try("cat", "/run/portknock.trial"); err == nil {
			t.Errorf("a trial goes on: %s", out)
		}

		// The check passes and the load fails: it would open port 22. An earlier trial,
		// whose minute is not over, goes on.
		r.Server.Shell(t, "echo earlier >/run/portknock.trial")
		other := filepath.Join(t.TempDir(), "rules")
		r.Server.Run(t, "portknock", "emit-rules", "-c", r.profile, "--format", format(f), "--output", other, "web")
		fails("rules that open a guarded port", other)
		if got := r.Server.Run(t, "cat", "/run/portknock.trial"); got != "earlier\n" {
			t.Errorf("the earlier trial is now %q", got)
		}
	}
	for _, f := range lab.Firewalls {
		t.Run(f.Name, func(t *testing.T) { test(t, f, "Sequence 7001/udp 8003/tcp") })
	}
	t.Run(fwknopd.Name, func(t *testing.T) { test(t, fwknopd, fwknopSettings(t)...) })
}

// TestLoadRefusesToOpen: one file does not silently open what another one guards.
func TestLoadRefusesToOpen(t *testing.T) {
	eachOf(t, func(lab.Firewall) bool { return true }, []lab.Family{lab.IPv4}, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp", "OpenPorts 22 3000-3005 500/udp",
			"Host web", "Sequence 1000/udp 2000/udp", "OpenPorts 8080")
		emit := func(open, name string) string {
			t.Helper()
			file := filepath.Join(t.TempDir(), "rules")
			r.Server.Run(t, "portknock", "emit-rules", "-c", r.profile, "-o", "OpenPorts="+open, "--format", format(f), "--output", file, name)
			return file
		}
		refused := func(rules, line, named string) {
			t.Helper()
			out, err := r.Server.Try("sh", "-c", headerLine(t, rules, line))
			if want := "this would open guarded ports: " + named + ". Put all"; err == nil || !strings.Contains(out, want) || !strings.Contains(out, forceAdvice) {
				t.Errorf("%s says %q, %v, want %q", line, out, err, want)
			}
			r.expect(t, r.Client, lab.Dropped)
		}
		header(t, r.Server, r.rules, "load")
		r.expect(t, r.Client, lab.Dropped)
		other := emit("8080", "web")
		refused(other, "load", "22/tcp 3000-3005/tcp 500/udp")
		refused(other, "trial", "22/tcp 3000-3005/tcp 500/udp")
		refused(emit("22 3000-3003 3005 500/tcp", "vps"), "load", "3000-3005/tcp 500/udp")

		both := filepath.Join(t.TempDir(), "rules")
		r.Server.Run(t, "portknock", "emit-rules", "-c", r.profile, "--format", format(f), "--output", both, "web", "vps")
		for _, covers := range []string{r.rules, both, emit("20-23 2000-3002 3003-4000 500/udp 8080", "vps")} {
			header(t, r.Server, covers, "load")
			r.expect(t, r.Client, lab.Dropped)
		}
		insist := "export " + forceAdvice + "; "
		r.Server.Shell(t, insist+headerLine(t, other, "load"))
		r.expect(t, r.Client, lab.Open)
	})
}

const forceAdvice = "PORTKNOCK_FORCE=1"

// TestWatchShowsNoSecret: what shows the counters and the admitted addresses shows
// neither knocks nor tokens.
func TestWatchShowsNoSecret(t *testing.T) {
	eachOf(t, func(lab.Firewall) bool { return true }, []lab.Family{lab.IPv4}, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp", "Host one", "Scheme token", "OpenPorts 8080", "KeyFile "+secret(t, "key", windowKey))
		secrets := []string{"7001", "8003"}
		if !f.Async {
			r.rules = emit(t, r.Server, f, r.profile, "one")
			token := strings.Fields(r.Server.Run(t, "portknock", "sequence", "-c", r.profile, "one"))[0]
			_, payload, _ := strings.Cut(token, "=")
			secrets = append(secrets, payload[:16])
		}
		header(t, r.Server, r.rules, "load")
		r.ssh(t, "true")
		got := header(t, r.Server, r.rules, "watch")
		for _, s := range secrets {
			if regexp.MustCompile(`\b` + s).MatchString(got) {
				t.Errorf("%q is in\n%s", s, got)
			}
		}
		if client := r.Client.Addr(family).String(); !strings.Contains(got, client) {
			t.Errorf("the admitted address %s is not in\n%s", client, got)
		}
	})
}

// TestRecentListsArePrivate: the lists of xt_recent tell how far an address has got,
// and with that the knocks, to every user of the server who may read them.
func TestRecentListsArePrivate(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		header(t, r.Server, r.rules, "load")
		modes := strings.Fields(r.Server.Shell(t, "stat -c %a /proc/net/xt_recent/portknock_*"))
		if len(modes) == 0 || slices.ContainsFunc(modes, func(m string) bool { return m != "600" }) {
			t.Errorf("the lists have the modes %v", modes)
		}
		r.ssh(t, "true")
	})
}

// TestRefreshPrintsNoSecret: when nft refuses the rules, the service reports that,
// and no line of the rules gets into the journal.
func TestRefreshPrintsNoSecret(t *testing.T) {
	for _, test := range []struct {
		format, conflict string
		lines            []string
	}{
		{"nftables", "add set inet portknock tokens_vps { type ipv4_addr; }", []string{"Scheme token"}},
		{"nftables", "add set inet portknock last_vps { type ipv4_addr; }", []string{"Scheme rotating"}},
		{"knockd", "add set inet portknock open4_vps { type ipv6_addr; }", []string{"Scheme rotating"}},
	} {
		t.Run(test.format+" "+test.lines[0], func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t, "server")
			lab.Require(t, "nft")
			profile := secret(t, "config", append([]string{"Host vps", "KeyFile " + secret(t, "key", windowKey)}, test.lines...)...)
			text, rules := printedUnits(t, h, test.format, profile)
			h.Shell(t, "nft 'add table inet portknock; "+test.conflict+"'")
			err := runAll(h, unitCommands(t, text)[:1])
			if err == nil {
				t.Fatal("nft has loaded the rules")
			}
			_, said, _ := strings.Cut(err.Error(), "\n") // below the command itself
			if !strings.Contains(said, ": Error: ") || !strings.Contains(said, "nft did not load the rules") {
				t.Errorf("the service does not say what is wrong: %s", said)
			}
			written, err := os.ReadFile(rules)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(written)) {
				if line = strings.TrimSpace(line); len(line) > 20 && !strings.HasPrefix(line, "# ") && strings.Contains(said, line) {
					t.Errorf("the service prints %s", line)
				}
			}
		})
	}
}
