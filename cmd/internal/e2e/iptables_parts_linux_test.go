package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// The tests in this file run the shell functions of knock/rules/sh/iptables.sh. A script
// for tests replaces the rest of what emit-rules --script prints.

// eachIptablesFamily runs a test against every iptables and both families.
func eachIptablesFamily(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	isOther := func(f lab.Firewall) bool { return format(f) != "iptables" }
	eachOf(t, slices.DeleteFunc(slices.Clone(lab.Firewalls), isOther), lab.Families, test)
}

// These profiles are in most tests. Both guard port 22.
var twoProfiles = []string{twoKnocks, "OpenFor 5m", "KnockTimeout 5m",
	"Host web", "Sequence 1000/udp 2000/udp 3000/udp", "OpenPorts 22 8080", "OpenFor 5m", "KnockTimeout 5m"}

// iptScriptID is the id of the scripts that iptScript writes.
const iptScriptID = "3f9a12c0d4e1"

// iptScript writes a script with the rules of these profiles. Its arguments are a
// function of iptables.sh and the arguments of the function.
func (r *rig) iptScript(t testing.TB, names []string, flags ...string) string {
	t.Helper()
	text := "format=iptables id=" + iptScriptID + "\n"
	for _, name := range names {
		rules := emitRulesFor(t, r.server, r.firewall, r.profile, append(slices.Clone(flags), name)...)
		_, rest, found := strings.Cut(lab.ReadFile(t, rules), "\n# In mangle")
		if !found {
			t.Fatal("the rules do not begin as expected")
		}
		text += fmt.Sprintf("ports_%[1]s=22/tcp\nstages_%[1]s=3\n", name)
		text += fmt.Sprintf("rules_%s() {\ncat <<'END_OF_RULES'\n# In mangle%sEND_OF_RULES\n}\n", name, rest)
	}
	shell := lab.ReadFile(t, filepath.Join("..", "..", "..", "knock", "rules", "sh", "iptables.sh"))
	return lab.File(t, "script", text+shell+`value() { eval "printf '%s\n' \"\${$1_$2-}\""; }`, "trusted() { :; }", `"$@"`)
}

// fw runs a function of a script that must succeed, and returns its output.
func (r *rig) fw(t testing.TB, script string, args ...string) string {
	t.Helper()
	return r.server.Run(t, "sh", append([]string{script}, args...)...)
}

// awaitIptTrialEnd waits until no trial is in force.
func (r *rig) awaitIptTrialEnd(t testing.TB, script string) {
	t.Helper()
	lab.Await(t, 3*time.Minute, func() string { // a test cannot fake the kernel's clock
		if left := r.fw(t, script, "fw_trial_left"); left != "" {
			return "the trial lasts for " + left
		}
		return ""
	})
	// The rules use the kernel's coarse clock. A second begins there up to a tick later than
	// for date.
	time.Sleep(50 * time.Millisecond)
}

// newIptablesRig returns a rig for profiles that are not loaded yet.
func newIptablesRig(t testing.TB, f lab.Firewall, family lab.Family, settings ...string) *rig {
	t.Helper()
	r := newListeningRig(t, f, family)
	r.server.Listen(t, 8080)
	r.profile = r.vpsProfile(t, settings...)
	return r
}

// These sequences open the ports of twoProfiles.
var (
	vpsSequence = sequence("7001/udp 8003/tcp")
	webSequence = sequence("1000/udp 2000/udp 3000/udp")
)

// knockFrom sends knocks from an address of the client.
func (r *rig) knockFrom(t testing.TB, from netip.Addr, steps ...knock.Step) {
	t.Helper()
	r.client.KnockFrom(t, from, r.addr(), steps...)
}

// expectAnswers checks the state of ports for an address of the client.
func (r *rig) expectAnswers(t testing.TB, when string, from netip.Addr, want map[uint16]lab.State) {
	t.Helper()
	for port, state := range want {
		if got := r.client.ProbeFrom(t, from, r.port(port)); got != state {
			t.Errorf("%s: port %d is %v for %v, want %v", when, port, got, from, state)
		}
	}
}

// These are the states of the guarded ports for addresses that one profile, or none, admits.
var (
	noneOpen = map[uint16]lab.State{22: lab.Dropped, 8080: lab.Dropped}
	vpsOpen  = map[uint16]lab.State{22: lab.Open, 8080: lab.Dropped}
	webOpen  = map[uint16]lab.State{22: lab.Open, 8080: lab.Open}
)

// TestIptablesProfilesLoadedOneAfterAnother: two files with one profile each are loaded in
// both orders. Each profile admits, and a load disturbs only its own profile.
func TestIptablesProfilesLoadedOneAfterAnother(t *testing.T) {
	eachIptablesFamily(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		before := r.ruleset(t)
		files := map[string]string{}
		for _, name := range []string{"vps", "web"} {
			files[name] = emitRulesFor(t, r.server, f, r.profile, name)
		}
		closed := emitRulesFor(t, r.server, f, r.profile, "--policy", "drop", "vps")
		var rulesets []string
		for _, order := range [][]string{{"vps", "web"}, {"web", "vps"}} {
			for _, name := range order {
				runHeaderLine(t, r.server, files[name], "test")
				runHeaderLine(t, r.server, files[name], "load")
			}
			rulesets = append(rulesets, r.ruleset(t))
			when := "loaded in the order " + strings.Join(order, ", ")
			byVPS, byWeb, stopped := r.freshAddr(), r.freshAddr(), r.freshAddr()
			r.knockFrom(t, byVPS, vpsSequence...)
			r.knockFrom(t, byWeb, webSequence...)
			r.knockFrom(t, stopped, webSequence[:2]...)
			r.expectAnswers(t, when, byVPS, vpsOpen)
			r.expectAnswers(t, when, byWeb, webOpen)
			r.expectAnswers(t, when, r.freshAddr(), noneOpen)

			// A load of one profile keeps the openings and the stages of both.
			for _, file := range []string{files["vps"], files["web"], closed, files["vps"]} {
				runHeaderLine(t, r.server, file, "load")
				r.expectAnswers(t, when+", then another load", byVPS, vpsOpen)
				r.expectAnswers(t, when+", then another load", byWeb, webOpen)
			}
			r.expectRuleset(t, rulesets[0])
			r.knockFrom(t, stopped, webSequence[2])
			r.expectAnswers(t, "a sequence continues after loads", stopped, webOpen)

			runHeaderLine(t, r.server, files["vps"], "unload")
			r.expectAnswers(t, "vps unloaded", byVPS, noneOpen)
			r.expectAnswers(t, "vps unloaded", byWeb, webOpen)
			runHeaderLine(t, r.server, files["web"], "unload")
			r.expectRuleset(t, before)
		}
		if rulesets[0] != rulesets[1] {
			t.Errorf("the order of the loads changes the rules from\n%s\nto\n%s", rulesets[0], rulesets[1])
		}
	})
}

// TestIptablesTenProfiles: ten profiles guard one port, and are loaded one after another. Each
// admits. Sweeps of all UDP ports open nothing. The unload of some leaves the others.
func TestIptablesTenProfiles(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		var settings, names []string
		for i := range 10 {
			names = append(names, fmt.Sprint("user", i))
			knocks := fmt.Sprintf("%d/udp %d/udp %d/udp", 7001+i, 9001+i, 8001+i)
			settings = append(settings, "Host "+names[i], "Sequence "+knocks, "OpenFor 1m")
		}
		r.profile = lab.File(t, "config", settings...)
		files := map[string]string{}
		for i := range names {
			name := names[i*7%10]
			files[name] = emitRulesFor(t, r.server, f, r.profile, name)
			runHeaderLine(t, r.server, files[name], "load")
			r.expect(t, r.attacker, lab.Dropped)
		}
		addrs := map[string]netip.Addr{}
		for i, name := range names {
			addrs[name] = r.freshAddr()
			r.knockFrom(t, addrs[name], sequence(fmt.Sprintf("%d/udp %d/udp %d/udp", 7001+i, 9001+i, 8001+i))...)
			if got := r.answer(t, addrs[name]); got != lab.Open {
				t.Errorf("after the knocks of %s, port 22 is %v", name, got)
			}
		}
		r.attacker.Flood(t, 2*65535, func(i int) lab.Packet {
			port := uint16(1 + i%65535)
			if i >= 65535 {
				port = 65535 - uint16(i%65535)
			}
			return lab.Packet{Dst: r.port(port)}
		})
		r.expect(t, r.attacker, lab.Dropped)
		for i, name := range names {
			if i%3 == 0 {
				runHeaderLine(t, r.server, files[name], "unload")
			}
		}
		for i, name := range names {
			want := lab.Open
			if i%3 == 0 {
				want = lab.Dropped
			}
			if got := r.answer(t, addrs[name]); got != want {
				t.Errorf("after the unload of others, port 22 is %v for %s, want %v", got, name, want)
			}
		}
	})
}

// TestIptablesIncompleteFileChangesNothing: the load of a file that is missing, or that was cut
// off, fails and leaves the loaded rules as they are.
func TestIptablesIncompleteFileChangesNothing(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		file := emitRulesFor(t, r.server, f, r.profile, "vps")
		runHeaderLine(t, r.server, file, "load")
		before := r.ruleset(t)
		load, text := lab.RulesLine(t, file, "load"), lab.ReadFile(t, file)
		n := len(text)
		for _, size := range []int{0, n / 10, n / 3, n - 300, n - 30, n - len("COMMIT\n")} {
			r.server.Shell(t, fmt.Sprintf("head -c %d %s >/run/cut", size, file))
			out, err := r.server.Try("sh", "-c", strings.ReplaceAll(load, file, "/run/cut"))
			if err == nil {
				t.Errorf("the load of the first %d of %d bytes succeeds: %s", size, n, out)
			}
		}
		if out, err := r.server.Try("sh", "-c", strings.ReplaceAll(load, file, "/run/missing")); err == nil {
			t.Errorf("the load of a missing file succeeds: %s", out)
		}
		r.expectRuleset(t, before)
	})
}

// TestIptablesDropPolicySparesOtherProfiles: the drop policy of one profile does not close the
// guarded ports of another, in both orders of the loads.
func TestIptablesDropPolicySparesOtherProfiles(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		r.server.Listen(t, 9999)
		web := emitRulesFor(t, r.server, f, r.profile, "web")
		vps := emitRulesFor(t, r.server, f, r.profile, "--policy", "drop", "vps")
		for _, order := range [][]string{{vps, web}, {web, vps}} {
			for _, file := range order {
				runHeaderLine(t, r.server, file, "load")
			}
			from := r.freshAddr()
			r.knockFrom(t, from, webSequence...)
			r.expectAnswers(t, "drop policy", from, map[uint16]lab.State{22: lab.Open, 8080: lab.Open, 9999: lab.Dropped})
			runHeaderLine(t, r.server, vps, "unload")
			r.expectAnswers(t, "drop policy unloaded", from, map[uint16]lab.State{22: lab.Open, 8080: lab.Open, 9999: lab.Open})
			runHeaderLine(t, r.server, web, "unload")
		}
	})
}

// TestIptablesSpentTokensSurviveRename: a token that was spent with one profile stays spent
// after the profile has another name, during a trial, and while the profile is unloaded.
func TestIptablesSpentTokensSurviveRename(t *testing.T) {
	eachIptablesFamily(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := tokens(t, periodWithNowAt(t, middle), 2*time.Minute)
		r := newIptablesRig(t, f, family, slices.Concat(settings, []string{"Host renamed"}, settings,
			[]string{"Host other", "OpenPorts 8080", twoKnocks})...)
		script := r.iptScript(t, []string{"vps", "renamed", "other"})
		token := r.familyTokens(t, s, time.Now())
		stillSpent := func(when string, n int) {
			t.Helper()
			if r.admits(t, r.freshAddr(), token[n]) {
				t.Errorf("%s: a spent token opens port 22 again", when)
			}
		}
		r.fw(t, script, "fw_load", "vps", "other")
		if !r.admits(t, r.freshAddr(), token[0]) {
			t.Fatal("a token does not open port 22")
		}
		stillSpent("at once", 0)
		r.fw(t, script, "fw_trial", "60", "renamed")
		r.fw(t, script, "fw_trial", "60", "vps")
		stillSpent("during a trial", 0)
		if !r.admits(t, r.freshAddr(), token[1]) {
			t.Error("a token does not open port 22 during a trial")
		}
		r.fw(t, script, "fw_cancel")
		stillSpent("spent during a trial", 1)
		r.fw(t, script, "fw_load", "renamed")
		r.fw(t, script, "fw_unload", "vps")
		stillSpent("renamed", 0)
		stillSpent("renamed", 1)
		r.fw(t, script, "fw_unload", "renamed")
		r.expect(t, r.attacker, lab.Open)
		r.fw(t, script, "fw_load", "vps")
		stillSpent("loaded again", 0)
		stillSpent("loaded again", 1)
		if !r.admits(t, r.freshAddr(), token[2]) {
			t.Error("a token does not open port 22 after all loads")
		}
	})
}

// TestIptablesTrialExpires: when a trial expires, the old rules are in force again, with the
// openings and the stages that they had before.
func TestIptablesTrialExpires(t *testing.T) {
	eachIptablesFamily(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		old := r.iptScript(t, []string{"vps", "web"})
		r.fw(t, old, "fw_load", "vps", "web")
		before := r.ruleset(t)
		admitted, stopped, byWeb := r.freshAddr(), r.freshAddr(), r.freshAddr()
		r.knockFrom(t, admitted, vpsSequence...)
		r.knockFrom(t, byWeb, webSequence...)
		r.knockFrom(t, stopped, vpsSequence[0])

		r.profile = r.vpsProfile(t, "Sequence 4001/udp 4003/tcp", "OpenFor 6m", "KnockTimeout 5m")
		script := r.iptScript(t, []string{"vps"}, "--policy", "drop")
		r.fw(t, script, "fw_test", "vps")
		begin := func(seconds int) {
			r.fw(t, script, "fw_cancel")
			r.fw(t, script, "fw_trial", fmt.Sprint(seconds), "vps")
		}
		onTrial := r.freshAddr()
		left := func() string { return r.fw(t, script, "fw_trial_left") }
		duringTrial(t, 4, begin, left, func(t testing.TB) {
			for function, want := range map[string]string{
				"fw_trial_id": iptScriptID + "\n", "fw_trial_parts": "vps\n", "fw_parts": "vps\nweb\n",
			} {
				if got := r.fw(t, script, function); got != want {
					t.Errorf("%s prints %q, want %q", function, got, want)
				}
			}
			r.knockFrom(t, onTrial, sequence("4001/udp 4003/tcp")...)
			r.expectAnswers(t, "on trial", onTrial, vpsOpen)
			r.expectAnswers(t, "on trial", admitted, noneOpen) // the copy has openings of its own
			r.expectAnswers(t, "on trial", byWeb, webOpen)     // the trial does not change web
			r.expectAnswers(t, "on trial", r.freshAddr(), map[uint16]lab.State{22: lab.Dropped, 1: lab.Dropped})
			r.knockFrom(t, stopped, sequence("4001/udp 999/udp")...) // wrong for the old rules
		})
		r.awaitIptTrialEnd(t, script)
		r.expectAnswers(t, "expired", onTrial, noneOpen)
		r.expectAnswers(t, "expired", admitted, vpsOpen)
		r.expectAnswers(t, "expired", byWeb, webOpen)
		r.expect(t, r.attacker, lab.Dropped)
		r.expectPort(t, r.attacker, 1, lab.Refused)
		r.knockFrom(t, stopped, vpsSequence[1])
		r.expectAnswers(t, "expired", stopped, vpsOpen)
		r.fw(t, script, "fw_cancel")
		r.expectRuleset(t, before)
		r.expectAnswers(t, "canceled", admitted, vpsOpen)
	})
}

// TestIptablesTrialIsProvedAndKept: a copy that let a connection through is proved. Its
// openings stay after it is kept.
func TestIptablesTrialIsProvedAndKept(t *testing.T) {
	eachIptablesFamily(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		script := r.iptScript(t, []string{"vps", "web"}, "--log")
		r.fw(t, script, "fw_load", "vps")
		r.fw(t, script, "fw_trial", "60", "vps", "web")
		proved := func(name string) bool {
			_, err := r.server.Try("sh", script, "fw_proved", name)
			return err == nil
		}
		changed := func(name string) bool {
			_, err := r.server.Try("sh", script, "fw_changed", name)
			return err == nil
		}
		if changed("vps") || !changed("web") {
			t.Errorf("the trial of the same vps and of a new web: changed are vps %v, web %v", changed("vps"), changed("web"))
		}
		from := r.freshAddr()
		r.knockFrom(t, from, webSequence...)
		if proved("vps") || proved("web") {
			t.Error("a part is proved before a connection")
		}
		r.expectAnswers(t, "on trial", from, webOpen)
		if proved("vps") || !proved("web") {
			t.Errorf("after a connection through web: proved are vps %v, web %v", proved("vps"), proved("web"))
		}
		want := "let_through 2\ndropped 0\nstage1 1\nstage2 1\nstage3 1\n"
		if got := r.fw(t, script, "fw_counters", "web"); got != want {
			t.Errorf("the counters of web are %q, want %q", got, want)
		}
		if got := r.fw(t, script, "fw_admitted", "web"); !strings.HasPrefix(got, from.String()+" ") {
			t.Errorf("admitted by web are %q, want %v", got, from)
		}
		r.fw(t, script, "fw_keep", "vps", "web")
		r.expectAnswers(t, "kept", from, webOpen)
		r.expectAnswers(t, "kept", r.freshAddr(), noneOpen)
		if left, id := r.fw(t, script, "fw_trial_left"), r.fw(t, script, "fw_trial_id"); left+id != "" {
			t.Errorf("after keep, the trial %s lasts for %s", id, left)
		}
		kept := r.ruleset(t)
		if strings.Contains(kept, "TRIAL") {
			t.Errorf("keep leaves copies:\n%s", kept)
		}
		r.fw(t, script, "fw_load", "vps", "web")
		r.expectRuleset(t, kept)
		lists := r.server.Shell(t, "stat -c '%a %n' /proc/net/xt_recent/port*")
		for line := range strings.Lines(lists) {
			if !strings.HasPrefix(line, "600 ") {
				t.Errorf("a list is readable by other users: %s", line)
			}
		}
	})
}

// TestIptablesTrialWithoutOldRules: if there was no guard before a trial, there is none
// after it. A reload during a trial ends the trial of that part.
func TestIptablesTrialWithoutOldRules(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		before := r.ruleset(t)
		script := r.iptScript(t, []string{"vps", "web"}, "--policy", "drop")
		r.fw(t, script, "fw_trial", "4", "vps", "web")
		r.expect(t, r.attacker, lab.Dropped)
		r.awaitPort(t, time.Minute, r.attacker, 22, lab.Open)
		r.expectPort(t, r.attacker, 1, lab.Refused)
		r.fw(t, script, "fw_cancel")
		r.expectRuleset(t, before)

		r.fw(t, script, "fw_trial", "60", "vps", "web")
		r.fw(t, script, "fw_cancel")
		r.expect(t, r.attacker, lab.Open)
		r.expectRuleset(t, before)

		r.fw(t, script, "fw_trial", "60", "vps", "web")
		r.fw(t, script, "fw_load", "vps")
		if got := r.fw(t, script, "fw_trial_parts"); got != "web\n" {
			t.Errorf("after the load of vps, on trial are %q, want web", got)
		}
		from := r.freshAddr()
		r.knockFrom(t, from, vpsSequence...)
		r.expectAnswers(t, "vps loaded, web on trial", from, vpsOpen)
		r.fw(t, script, "fw_load", "web")
		if got := r.fw(t, script, "fw_trial_id"); got != "" {
			t.Errorf("after the load of all parts, the trial of %q goes on", got)
		}
		r.expectAnswers(t, "all loaded", from, vpsOpen)
		r.fw(t, script, "fw_remove")
		r.expectRuleset(t, before)
	})
}

// TestIptablesCloseAndListing: fw_close drops new connections without the rules of a part. A
// later load replaces it. A listing tells whether the rules of a part changed.
func TestIptablesCloseAndListing(t *testing.T) {
	eachIptablesFamily(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		script := r.iptScript(t, []string{"vps", "web"})
		dropping := r.iptScript(t, []string{"web"}, "--policy", "drop")
		r.fw(t, script, "fw_close", "vps")
		r.expect(t, r.client, lab.Dropped)
		if got := r.fw(t, script, "fw_parts"); got != "" {
			t.Errorf("after fw_close, in force are %q, want nothing", got)
		}
		closed := r.fw(t, script, "fw_listing", "vps")
		r.fw(t, script, "fw_load", "vps")
		loaded := r.fw(t, script, "fw_listing", "vps")
		if loaded == closed {
			t.Error("the listing is the same after fw_close and after fw_load")
		}
		from := r.freshAddr()
		r.knockFrom(t, from, vpsSequence...)
		r.expectAnswers(t, "loaded", from, map[uint16]lab.State{22: lab.Open, 8080: lab.Open})
		r.fw(t, dropping, "fw_load", "web")
		got := r.fw(t, script, "fw_counters", "vps")
		// ip6tables-nft-restore 1.8.9 does not restore counters.
		if lost := f.Name == "iptables-nft" && family == lab.IPv6; !lost && !strings.HasPrefix(got, "let_through 1\n") {
			t.Errorf("the load of web changes the counters of vps to %q", got)
		}
		r.fw(t, script, "fw_load", "vps")
		if again := r.fw(t, script, "fw_listing", "vps"); again != loaded {
			t.Errorf("the listing was\n%s\nand after traffic and another part it is\n%s", loaded, again)
		}
		for _, flush := range []string{"INPUT", "PREROUTING", ""} {
			r.server.Shell(t, "iptables -t mangle -F "+flush)
			if got := r.fw(t, script, "fw_parts"); got != "" {
				t.Errorf("after a flush of %q, in force are %q, want nothing", flush, got)
			}
			if flush != "" {
				r.fw(t, script, "fw_load", "vps")
				if got := r.fw(t, script, "fw_parts"); got != "vps\nweb\n" {
					t.Errorf("after a flush of %q and a load, in force are %q", flush, got)
				}
			}
		}
		r.fw(t, script, "fw_unload", "vps", "web")
		r.expect(t, r.attacker, lab.Open)
	})
}

// TestIptablesTakesOverOldLayout: the first load replaces rules of an earlier portknock, whose
// root rules had no comments, and keeps the openings.
func TestIptablesTakesOverOldLayout(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		before := r.ruleset(t)
		old := lab.File(t, "old", `*mangle
:PORTKNOCK - [0:0]
:PORTKNOCK-vps - [0:0]
:PORTKNOCK-gone - [0:0]
-I PREROUTING -j PORTKNOCK
-I PREROUTING -j PORTKNOCK
-A PORTKNOCK -p tcp --syn --dport 22 -m recent --name portknock_vps_open --rcheck --seconds 20 -j RETURN
-A PORTKNOCK -p tcp --syn --dport 22 -j DROP
-A PORTKNOCK -p udp --dport 9 -j PORTKNOCK-vps
-A PORTKNOCK -p udp -j PORTKNOCK-gone
-A PORTKNOCK-vps -m recent --name portknock_vps_open --set -j RETURN
COMMIT
*filter
:PORTKNOCK - [0:0]
-I INPUT -j PORTKNOCK
-A PORTKNOCK -p tcp --dport 1 -j DROP
COMMIT`)
		r.server.Shell(t, "iptables-restore -n "+old+" && ip6tables-restore -n "+old)
		oldRules := r.ruleset(t)
		from := r.freshAddr()
		r.knockFrom(t, from, sequence("9/udp")...)
		script := r.iptScript(t, []string{"vps"})
		r.fw(t, script, "fw_trial", "60", "vps")
		r.expect(t, r.attacker, lab.Dropped)
		r.expectAnswers(t, "on trial", from, map[uint16]lab.State{22: lab.Dropped, 1: lab.Refused})
		r.fw(t, script, "fw_cancel")
		r.expectAnswers(t, "canceled", from, map[uint16]lab.State{22: lab.Open, 1: lab.Dropped})
		if after := strings.Replace(r.ruleset(t), "-A PREROUTING -j PORTKNOCK\n", "", -1); strings.Contains(after, "TRIAL") ||
			after != strings.Replace(oldRules, "-A PREROUTING -j PORTKNOCK\n", "", -1) && !strings.Contains(after, "PORTSPENT") {
			t.Errorf("a canceled trial changes the old rules from\n%s\nto\n%s", oldRules, after)
		}
		r.fw(t, script, "fw_load", "vps")
		r.expectAnswers(t, "taken over", from, map[uint16]lab.State{22: lab.Open, 1: lab.Refused})
		r.expect(t, r.attacker, lab.Dropped)
		r.fw(t, script, "fw_unload", "vps")
		r.expectRuleset(t, before)
	})
}

// TestIptablesGuardHasNoGap: while rules are loaded, tried, kept and canceled, and while
// these functions are killed, no SYN of an attacker is answered.
func TestIptablesGuardHasNoGap(t *testing.T) {
	lab.Require(t, "timeout")
	eachIptablesFamily(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		script := r.iptScript(t, []string{"vps", "web"})
		r.fw(t, script, "fw_load", "vps", "web")
		before := r.ruleset(t)
		admitted := r.freshAddr()
		r.knockFrom(t, admitted, vpsSequence...)

		capture := r.attacker.Capture(t)
		end, ended := make(chan bool), make(chan int)
		go func() {
			for sent := 0; ; sent++ {
				select {
				case <-end:
					ended <- sent
					return
				case <-time.After(500 * time.Microsecond):
					r.attacker.Knock(t, r.addr(), knock.Step{Port: lab.GuardedPort})
				}
			}
		}()
		r.fw(t, script, "fw_trial", "2", "vps", "web") // expires during the next calls
		r.fw(t, script, "fw_load", "web")
		r.fw(t, script, "fw_trial", "60", "vps")
		r.fw(t, script, "fw_keep", "vps")
		r.fw(t, script, "fw_trial", "60", "vps", "web")
		r.fw(t, script, "fw_cancel")
		for i := range 12 {
			for _, call := range []string{"fw_trial 2 vps web", "fw_keep vps web", "fw_cancel", "fw_load vps"} {
				// timeout kills the shell and the programs that it runs.
				_, _ = r.server.Try("sh", "-c", fmt.Sprintf("timeout -s KILL 0.%02d sh %s %s", 3*i+2, script, call))
			}
		}
		r.fw(t, script, "fw_cancel")
		close(end)
		sent := <-ended
		for _, p := range capture.Packets(t) {
			if p.Src.Port() == lab.GuardedPort {
				t.Fatalf("the server answers the attacker: %v", p)
			}
		}
		t.Logf("the attacker sent %d SYNs", sent)
		r.fw(t, script, "fw_load", "vps", "web")
		r.expectRuleset(t, before)
		if r.client.ProbeFrom(t, admitted, r.port(22)) != lab.Open {
			t.Log("the opening has ended meanwhile")
		}
	})
}

// TestIptablesKilledTrialLeavesOldRules: a trial whose process is killed at any moment ends
// with the old rules in force, with their openings and stages.
func TestIptablesKilledTrialLeavesOldRules(t *testing.T) {
	lab.Require(t, "timeout")
	eachIptablesFamily(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoKnocks, "OpenFor 1m", "KnockTimeout 1m",
			"Host web", "Sequence 1000/udp 2000/udp", "OpenPorts 22 8080")
		old := r.iptScript(t, []string{"vps", "web"})
		r.fw(t, old, "fw_load", "vps", "web")
		r.profile = r.vpsProfile(t, "Sequence 4001/udp 4003/tcp")
		script := r.iptScript(t, []string{"vps"}, "--policy", "drop")
		for i := range 8 {
			admitted, stopped := r.freshAddr(), r.freshAddr()
			r.knockFrom(t, admitted, vpsSequence...)
			r.knockFrom(t, stopped, vpsSequence[0])
			// timeout kills the shell and the programs that it runs.
			_, _ = r.server.Try("sh", "-c", fmt.Sprintf("timeout -s KILL 0.%02d sh %s fw_trial 2 vps", 3*i+3, script))
			r.awaitIptTrialEnd(t, script)
			when := fmt.Sprintf("killed after %d ms", 30*i+30)
			r.expectAnswers(t, when, admitted, vpsOpen)
			r.expectAnswers(t, when, r.freshAddr(), noneOpen)
			r.expectPort(t, r.attacker, 1, lab.Refused)
			r.knockFrom(t, stopped, vpsSequence[1])
			r.expectAnswers(t, when, stopped, vpsOpen)
			if i%2 == 0 {
				r.fw(t, script, "fw_cancel")
			}
		}
	})
}

// TestIptablesTrialLosesDropPolicy: rules on trial without the drop policy open the other
// ports, until the trial expires.
func TestIptablesTrialLosesDropPolicy(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		dropping := r.iptScript(t, []string{"vps"}, "--policy", "drop", "--allow", "8080")
		script := r.iptScript(t, []string{"vps", "web"})
		r.fw(t, dropping, "fw_load", "vps")
		before := r.ruleset(t)
		expect := func(when string, other, web lab.State) {
			t.Helper()
			r.expectAnswers(t, when, r.freshAddr(), map[uint16]lab.State{22: lab.Dropped, 1: other, 8080: web})
		}
		expect("old rules", lab.Dropped, lab.Open)
		r.fw(t, script, "fw_trial", "60", "vps", "web")
		expect("on trial", lab.Refused, lab.Dropped)
		r.fw(t, script, "fw_cancel")
		expect("canceled", lab.Dropped, lab.Open)
		r.expectRuleset(t, before)
		r.fw(t, script, "fw_trial", "60", "web")
		expect("only web on trial", lab.Dropped, lab.Dropped)
		r.fw(t, script, "fw_trial", "60", "vps", "web")
		r.fw(t, script, "fw_keep", "vps", "web")
		expect("kept", lab.Refused, lab.Dropped)
		if rules := r.ruleset(t); strings.Contains(rules, "INPUT -j PORTKNOCK\n") {
			t.Errorf("without a drop policy, the table filter still has rules:\n%s", rules)
		}
		r.fw(t, script, "fw_remove")
	})
}

// TestIptablesScriptRunsInBusybox: the functions work in the shell and with the programs of
// busybox.
func TestIptablesScriptRunsInBusybox(t *testing.T) {
	lab.Require(t, "busybox")
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, twoProfiles...)
		before := r.ruleset(t)
		script := r.iptScript(t, []string{"vps", "web"})
		dir := t.TempDir()
		fw := func(args ...string) string {
			t.Helper()
			return r.server.Shell(t, fmt.Sprintf("PATH=%s:$PATH busybox sh %s %s", dir, script, strings.Join(args, " ")))
		}
		r.server.Shell(t, "for a in awk sed grep date cat sort tr chmod sleep zcat uname unshare; do "+
			"ln -s $(command -v busybox) "+dir+"/$a; done")
		fw("fw_test", "vps", "web")
		fw("fw_load", "vps")
		fw("fw_trial", "60", "web")
		from := r.freshAddr()
		r.knockFrom(t, from, webSequence...)
		r.expectAnswers(t, "on trial", from, webOpen)
		fw("fw_proved", "web")
		fw("fw_keep", "web")
		r.expectAnswers(t, "kept", from, webOpen)
		if got := fw("fw_admitted", "web"); !strings.HasPrefix(got, from.String()+" ") {
			t.Errorf("admitted by web are %q, want %v", got, from)
		}
		fw("fw_unload", "vps", "web")
		r.expectRuleset(t, before)
	})
}

// TestIptablesPartsStayInTheirTable: when the rules are loaded in parts, each part goes to
// the table that it was written for.
func TestIptablesPartsStayInTheirTable(t *testing.T) {
	t.Parallel()
	server := lab.NewHost(t, "server")
	shell := lab.ReadFile(t, filepath.Join("..", "..", "..", "knock", "rules", "sh", "iptables.sh"))
	script := lab.File(t, "script", shell, "cd /run", `PATH=/run:$PATH`,
		`cat >fake-restore <<-"END"`,
		`[ -e called ] || { : >called; echo "Message too long"; exit 1; }`,
		`grep -e "^\*" -e "^-" >>loaded`,
		"END", "sed -i '1i #!/bin/sh' fake-restore", "chmod 700 fake-restore",
		`ipt_merged='*mangle`, "-N a", "# part", "-N b", "COMMIT", "*filter", "-N c", "# part", "-X d", `COMMIT'`,
		"ipt_restore fake && cat loaded")
	got := strings.Join(strings.Fields(server.Run(t, "sh", script)), " ")
	if want := "*mangle -N a *mangle -N b *filter -N c *filter -X d"; got != want {
		t.Errorf("iptables-restore reads %q, want %q", got, want)
	}
}
