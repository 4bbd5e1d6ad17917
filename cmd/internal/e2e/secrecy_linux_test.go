package e2e

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestStatusShowsNoKnocksOrTokens: status shows the counters and the admitted addresses.
// It shows neither knocks nor tokens.
func TestStatusShowsNoKnocksOrTokens(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r := newRig(t, nftables, lab.IPv4, twoKnocks, "Host one", "Scheme token", "OpenPorts 8080", keyFileSetting(t))
		secrets := []string{"7001", "8003"}
		token := strings.Fields(r.server.Run(t, "portknock", "sequence", "-c", r.profile, "one"))[0]
		_, payload, _ := strings.Cut(token, "=")
		secrets = append(secrets, payload[:16])
		s := r.emitScript(t, r.profile, "vps", "one").with(shell)
		s.run(t, "load")
		r.ssh(t, "true")
		for _, verb := range [][]string{{"status"}, {"status", "--json"}} {
			got := s.run(t, verb...)
			for _, secret := range secrets {
				if regexp.MustCompile(`\b` + secret).MatchString(got) {
					t.Errorf("%q shows %q:\n%s", verb, secret, got)
				}
			}
			if client := r.client.Addr(lab.IPv4).String(); !strings.Contains(got, client) {
				t.Errorf("%q does not show the admitted address %s:\n%s", verb, client, got)
			}
			if len(verb) > 1 && !json.Valid([]byte(got)) {
				t.Errorf("%q prints no valid JSON:\n%s", verb, got)
			}
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

// TestFailedLoadPrintsNoRules: if nft cannot load the rules, the script prints the reason.
// It prints no line of the rules, so a journal does not contain one either.
func TestFailedLoadPrintsNoRules(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ scheme, conflict string }{
		{"Scheme token", "add set inet portknock tokens_vps { type ipv4_addr; }"},
		{"Scheme rotating", "add set inet portknock last_vps { type ipv4_addr; }"},
	} {
		t.Run(tt.scheme, func(t *testing.T) {
			eachShell(t, func(t *testing.T, shell []string) {
				h := lab.NewHost(t, "server")
				lab.Require(t, "nft")
				s := emitScript(t, h, nftables, vpsProfile(t, tt.scheme, keyFileSetting(t)), "vps").with(shell)
				h.Shell(t, "nft 'add table inet portknock; "+tt.conflict+"'")
				for _, verb := range []string{"load", "test", "trial"} {
					output, err := s.try(verb)
					if verb == "load" && err == nil {
						t.Fatal("nft has loaded the rules, but this test needs an error of nft")
					}
					if err != nil && !strings.Contains(output, "nft: ") {
						t.Errorf("%s does not print the error of nft: %s", verb, output)
					}
					for line := range strings.Lines(lab.ReadFile(t, s.file)) {
						line = strings.TrimSpace(line)
						if len(line) > 20 && strings.Contains(line, "inet portknock") && strings.Contains(output, line) {
							t.Errorf("%s prints a line of the rules: %s", verb, line)
						}
					}
				}
			})
		})
	}
}
