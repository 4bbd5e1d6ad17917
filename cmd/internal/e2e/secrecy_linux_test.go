package e2e

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestWatchShowsNoKnocksOrTokens: the watch command shows the counters and the admitted
// addresses. It shows neither knocks nor tokens.
func TestWatchShowsNoKnocksOrTokens(t *testing.T) {
	eachOf(t, lab.Firewalls, onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "Host one", "Scheme token", "OpenPorts 8080", keyFileSetting(t))
		secrets := []string{"7001", "8003"}
		if !f.Async {
			r.emitRules(t, "one")
			token := strings.Fields(r.server.Run(t, "portknock", "sequence", "-c", r.profile, "one"))[0]
			_, payload, _ := strings.Cut(token, "=")
			secrets = append(secrets, payload[:16])
		}
		r.runHeaderLine(t, "load")
		r.ssh(t, "true")
		got := r.runHeaderLine(t, "watch")
		for _, s := range secrets {
			if regexp.MustCompile(`\b` + s).MatchString(got) {
				t.Errorf("the watch command shows %q:\n%s", s, got)
			}
		}
		if client := r.client.Addr(family).String(); !strings.Contains(got, client) {
			t.Errorf("the watch command does not show the admitted address %s:\n%s", client, got)
		}
	})
}

// TestRecentListsAreReadableByRootOnly: the lists of xt_recent have mode 600. They contain
// the stage of each address, which reveals the knocks to every user who can read them.
func TestRecentListsAreReadableByRootOnly(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newGuardedRig(t, f, family, twoKnocks)
		modes := strings.Fields(r.server.Shell(t, "stat -c %a /proc/net/xt_recent/portknock_*"))
		if len(modes) == 0 || slices.ContainsFunc(modes, func(m string) bool { return m != "600" }) {
			t.Errorf("the lists have the modes %v, want 600", modes)
		}
		r.ssh(t, "true")
	})
}

// TestFailedRefreshPrintsNoRules: if nft cannot load the rules, the service reports this.
// The service prints no line of the rules, so the journal does not contain one either.
func TestFailedRefreshPrintsNoRules(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ format, scheme, conflict string }{
		{"nftables", "Scheme token", "add set inet portknock tokens_vps { type ipv4_addr; }"},
		{"nftables", "Scheme rotating", "add set inet portknock last_vps { type ipv4_addr; }"},
		{"knockd", "Scheme rotating", "add set inet portknock open4_vps { type ipv6_addr; }"},
	} {
		t.Run(tt.format+" "+tt.scheme, func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t, "server")
			lab.Require(t, "nft")
			text, rules := printedUnits(t, h, tt.format, vpsProfile(t, tt.scheme, keyFileSetting(t)))
			h.Shell(t, "nft 'add table inet portknock; "+tt.conflict+"'")
			err := runAll(h, unitCommands(t, text)[:1])
			if err == nil {
				t.Fatal("nft has loaded the rules, but this test needs an error of nft")
			}
			_, output, _ := strings.Cut(err.Error(), "\n") // the first line is the command
			if !strings.Contains(output, ": Error: ") || !strings.Contains(output, "nft did not load the rules") {
				t.Errorf("the service does not print nft's error: %s", output)
			}
			for line := range strings.Lines(lab.ReadFile(t, rules)) {
				line = strings.TrimSpace(line)
				if len(line) > 20 && !strings.HasPrefix(line, "# ") && strings.Contains(output, line) {
					t.Errorf("the service prints a line of the rules: %s", line)
				}
			}
		})
	}
}
