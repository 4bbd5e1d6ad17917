package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// status is the output of the verb status with --json, as far as tests read it.
type status struct {
	Trial    *int `json:"trial_seconds_left"`
	ListSize *int `json:"list_size"`
	Profiles []struct {
		Name, Rules, Trial, Installed string
		Trusted                       []string
		Counters                      map[string]int
		Admitted                      []struct {
			Address string
			Seconds int `json:"seconds_left"`
		}
	}
	Others []string `json:"other_profiles"`
}

// status runs the verb status. The exit status of the verb must be 0 exactly if want.
func (s script) status(t testing.TB, want bool) (got status) {
	t.Helper()
	out, err := s.try("status", "--json")
	if (err == nil) != want {
		t.Errorf("status returns %v, want success %v", err, want)
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("status prints invalid JSON: %v\n%s", err, out)
	}
	return got
}

// TestStatusCountsAndNames: status counts knocks, connections and drops for each profile,
// keeps the counts over a load, and tells loaded rules from other, changed and missing ones.
func TestStatusCountsAndNames(t *testing.T) {
	eachOf(t, kernelFirewalls(), onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		r.profile = r.vpsProfile(t, threeKnocks, "OpenFor 5m", "Host web", "Sequence 7011/udp 8013/tcp 9015/udp", "OpenPorts 8080")
		vps, web := r.emitScript(t, r.profile, "vps"), r.emitScript(t, r.profile, "web")
		if got := vps.status(t, false); got.Profiles[0].Rules != "not loaded" {
			t.Errorf("before the load, the rules are %q", got.Profiles[0].Rules)
		}
		vps.run(t, "load")
		web.run(t, "load")
		r.expect(t, r.attacker, lab.Dropped)
		knocks := sequence(strings.TrimPrefix(threeKnocks, "Sequence "))
		if !r.admits(t, r.client.Addr(family), knocks...) { // portknock may connect twice on a busy machine
			t.Fatal("the knocks do not open port 22")
		}
		check := func(when string, wantStages int) {
			t.Helper()
			got := vps.status(t, true)
			p := got.Profiles[0]
			if p.Name != "vps" || p.Rules != "as loaded" || p.Trial != "none" || p.Installed != "no" || got.Trial != nil || !slices.Equal(got.Others, []string{"web"}) {
				t.Errorf("%s: %+v", when, got)
			}
			if p.Counters["let_through"] != 1 || p.Counters["dropped"] < 1 || p.Counters["stage3"] < wantStages {
				t.Errorf("%s: the counters are %v", when, p.Counters)
			}
			if len(p.Admitted) != 1 || p.Admitted[0].Address != r.client.Addr(family).String() || p.Admitted[0].Seconds < 1 || p.Admitted[0].Seconds > 300 {
				t.Errorf("%s: the admitted addresses are %v", when, p.Admitted)
			}
		}
		check("after a connection", 1)
		if format(f) == "nftables" { // iptables counts since the last load
			vps.run(t, "load")
			check("after a second load", 1)
		}
		file, _ := os.ReadFile("/sys/module/xt_recent/parameters/ip_list_tot")
		kernelSize := strings.TrimSpace(string(file))
		size, line := vps.status(t, true).ListSize, "\nlists      hold "+kernelSize+" addresses each\n"
		if has := strings.Contains(vps.run(t, "status"), line); has != (format(f) == "iptables") || has != (size != nil && fmt.Sprint(*size) == kernelSize) {
			t.Errorf("a list holds %s addresses; status prints this line: %v, with --json %v", kernelSize, has, size)
		}
		if other := web.status(t, true).Profiles[0]; other.Counters["let_through"] != 0 || len(other.Admitted) != 0 {
			t.Errorf("the other profile has the counts of the first: %+v", other)
		}
		changed := r.emitScript(t, r.profile, "--log", "vps")
		if got := changed.status(t, false).Profiles[0].Rules; got != "other" {
			t.Errorf("for another script of the profile, the rules are %q", got)
		}
		remove := "nft flush chain inet portknock drop_vps"
		if format(f) == "iptables" {
			remove = "iptables -t mangle -D PORTKNOCK $(iptables -t mangle -S PORTKNOCK | grep -n -- '-j DROP' | sed 's/:.*//; q' | { read n; echo $((n - 1)); })"
		}
		r.server.Shell(t, remove)
		if got := vps.status(t, false).Profiles[0].Rules; got != "changed" {
			t.Errorf("after a change by another program, the rules are %q", got)
		}
	})
}
