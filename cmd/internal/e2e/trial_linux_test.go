package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"

	"golang.org/x/sys/unix"
)

// These are the sequences of the rules in force before a trial, and of those on trial.
var (
	oldKnocks = sequence("7001/udp 8003/tcp 9005/udp")
	newKnocks = sequence("7101/udp 8103/tcp 9105/udp")
)

// oldSettings and newSettings are the settings of a profile with these sequences.
func oldSettings(more ...string) []string {
	return append([]string{"Sequence " + oldKnocks.String(), "KnockTimeout 5m"}, more...)
}

func newSettings(more ...string) []string {
	return append([]string{"Sequence " + newKnocks.String(), "KnockTimeout 5m"}, more...)
}

// newTrialRig makes a rig with two scripts for the profile vps, and loads the first. A
// service listens on ports 22 and 8080. The profile token opens port 8080, and both
// scripts have this profile, with another horizon.
func newTrialRig(t testing.TB, shell []string) (r *rig, before, after script, tokens []knock.Step) {
	t.Helper()
	r = newListeningRig(t, nftables, lab.IPv4)
	r.server.Listen(t, 8080)
	settings, s := tokensOn(t, 8080)
	emit := func(settings, token []string, horizon string) script {
		profile := vpsProfile(t, append(append(settings, "Host token"), token...)...)
		return r.emitScript(t, profile, "--horizon", horizon, "vps", "token").with(shell)
	}
	before = emit(oldSettings("OpenFor 5m"), settings, "1h")
	after = emit(newSettings("OpenFor 6m"), settings, "2h")
	before.run(t, "load")
	return r, before, after, r.familyTokens(t, s, time.Now())
}

// tokensOn returns settings of a profile whose tokens open a port, and the schedule.
func tokensOn(t testing.TB, port uint16) ([]string, knock.Token) {
	t.Helper()
	settings, s := tokens(t, periodWithNowAt(t, middle), time.Minute)
	return append(settings, fmt.Sprint("OpenPorts ", port), "OpenFor 5m"), s
}

// expectAnswer checks the state of a port for an address of the client.
func (r *rig) expectAnswer(t testing.TB, what string, from netip.Addr, port uint16, want lab.State) {
	t.Helper()
	if got := r.client.ProbeFrom(t, from, r.port(port)); got != want {
		t.Errorf("%s: port %d is %v, want %v", what, port, got, want)
	}
}

// generation tells which rules guard port 22 now.
func (r *rig) generation(t testing.TB) string {
	t.Helper()
	if r.attacker.Probe(t, r.port(22)) != lab.Dropped {
		return "none"
	}
	byOld, byNew := r.admits(t, r.freshAddr(), oldKnocks...), r.admits(t, r.freshAddr(), newKnocks...)
	switch {
	case byOld && !byNew:
		return "old"
	case byNew && !byOld:
		return "new"
	}
	return fmt.Sprintf("open after old knocks: %v, after new knocks: %v", byOld, byNew)
}

// expectGeneration checks which rules guard port 22 now.
func (r *rig) expectGeneration(t testing.TB, when, want string) {
	t.Helper()
	if got := r.generation(t); got != want {
		t.Fatalf("%s, the rules in force are: %s, want: %s", when, got, want)
	}
}

// onTrial returns what nft prints about a trial that the kernel has not ended, or "".
func (r *rig) onTrial() string {
	if left, _ := r.server.Try("nft", "list", "set", "inet", "portknock", "trial"); strings.Contains(left, "expires") {
		return left
	}
	return ""
}

// awaitTrialEnd waits until the kernel has ended a trial.
func (r *rig) awaitTrialEnd(t testing.TB) {
	t.Helper()
	lab.Await(t, 3*time.Minute, r.onTrial)
}

// duringTrial makes begin start a trial of these seconds, and runs checks in it. If the trial has
// ended before the checks, the machine was too busy, and duringTrial begins a longer trial.
// left returns "" if no trial is in force.
func duringTrial(t testing.TB, seconds int, begin func(seconds int), left func() string, checks func(t testing.TB)) {
	t.Helper()
	for ; ; seconds *= 2 {
		begin(seconds)
		a := &attempt{TB: t}
		ended := make(chan bool)
		go func() { // so that the end of the attempt does not end the test
			defer close(ended)
			checks(a)
		}()
		<-ended
		if left() == "" && seconds < 60 && !t.Failed() {
			t.Logf("on this machine, the checks take longer than a trial of %d s", seconds)
			continue
		}
		if len(a.problems) > 0 || t.Failed() {
			t.Fatal(strings.Join(a.problems, "\n"))
		}
		return
	}
}

// attempt collects the failures of checks that can be tried again.
type attempt struct {
	testing.TB
	problems []string
}

func (a *attempt) Errorf(format string, args ...any) {
	a.problems = append(a.problems, fmt.Sprintf(format, args...))
}

func (a *attempt) Error(args ...any) { a.problems = append(a.problems, fmt.Sprint(args...)) }

func (a *attempt) Fatalf(format string, args ...any) {
	a.Errorf(format, args...)
	runtime.Goexit()
}

func (a *attempt) Fatal(args ...any) {
	a.Error(args...)
	runtime.Goexit()
}

// TestTrialExpiresByItself: during a trial, only the new knocks admit an address. After
// the trial, the rules from before are in force without any process, with their openings,
// their addresses in mid-sequence and their used tokens.
func TestTrialExpiresByItself(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r, _, after, tokens := newTrialRig(t, shell)
		admitted, middle, spender := r.freshAddr(), r.freshAddr(), r.freshAddr()
		if !r.admits(t, admitted, oldKnocks...) {
			t.Fatal("the old knocks do not open port 22")
		}
		r.client.KnockFrom(t, middle, r.addr(), oldKnocks[0])
		r.client.KnockFrom(t, spender, r.addr(), tokens[0])
		r.expectAnswer(t, "after a token", spender, 8080, lab.Open)

		var ends time.Time
		begin := func(seconds int) {
			ends = time.Now().Add(time.Duration(seconds) * time.Second)
			after.run(t, "trial", fmt.Sprint(seconds))
		}
		onTrial := r.freshAddr()
		duringTrial(t, 4, begin, r.onTrial, func(t testing.TB) {
			r.expectGeneration(t, "during the trial", "new")
			r.expectAnswer(t, "an address that the old rules admit, during the trial", admitted, 22, lab.Dropped)
			if !r.admits(t, onTrial, newKnocks...) {
				t.Error("the new knocks do not open port 22 during the trial")
			}
			again := r.freshAddr()
			r.client.KnockFrom(t, again, r.addr(), tokens[0])
			r.expectAnswer(t, "a used token from another address, during the trial", again, 8080, lab.Dropped)
			r.client.KnockFrom(t, spender, r.addr(), tokens[0])
			r.expectAnswer(t, "a used token from its own address, during the trial", spender, 8080, lab.Open)
			r.client.KnockFrom(t, onTrial, r.addr(), tokens[1])
			r.expectAnswer(t, "a token, during the trial", onTrial, 8080, lab.Open)
		})
		r.awaitTrialEnd(t)
		if early := time.Until(ends); early > time.Second {
			t.Errorf("the trial has ended %v too early", early)
		}
		r.expectAnswer(t, "an admitted address, after the trial", admitted, 22, lab.Open)
		r.expectAnswer(t, "an address that the trial admitted, after the trial", onTrial, 22, lab.Dropped)
		r.client.KnockFrom(t, middle, r.addr(), oldKnocks[1:]...)
		r.expectAnswer(t, "an address in mid-sequence, after the trial", middle, 22, lab.Open)
		r.expectGeneration(t, "after the trial", "old")
		for _, token := range tokens[:2] {
			stranger := r.freshAddr()
			r.client.KnockFrom(t, stranger, r.addr(), token)
			r.expectAnswer(t, "a used token from another address, after the trial", stranger, 8080, lab.Dropped)
		}
		r.expectAnswer(t, "the address of the token, after the trial", spender, 8080, lab.Open)
		after.refused(t, "the trial has ended", "keep", "--force")
		after.run(t, "cancel")
		r.expectGeneration(t, "after cancel", "old")
		after.refused(t, "no trial of these rules is running", "keep", "--force")
	})
}

// TestTrialOnServerWithoutGuard: without rules before it, a trial ends with open ports.
// Then cancel leaves no table.
func TestTrialOnServerWithoutGuard(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r := newListeningRig(t, nftables, lab.IPv4)
		before := r.ruleset(t)
		s := r.emitScript(t, vpsProfile(t, newSettings()...)).with(shell)
		s.run(t, "trial", "2")
		r.expect(t, r.attacker, lab.Dropped)
		r.awaitTrialEnd(t)
		r.expect(t, r.attacker, lab.Open)
		s.run(t, "cancel")
		r.expectRuleset(t, before)
		s.run(t, "trial")
		r.expectGeneration(t, "during the second trial", "new")
		s.run(t, "cancel")
		r.expect(t, r.attacker, lab.Open)
		r.expectRuleset(t, before)
		s.run(t, "cancel") // there is no trial to cancel
		s.run(t, "trial", "1")
		r.awaitTrialEnd(t)
		s.run(t, "load")
		r.expectGeneration(t, "loaded after a trial", "new")
		s.run(t, "unload")
		r.expectRuleset(t, before)
	})
}

// TestKeepNeedsProof: keep needs a new connection through the new rules. A connection of
// an address that the old rules admitted does not count, and knocks alone do not either.
func TestKeepNeedsProof(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r := newRig(t, nftables, lab.IPv4, oldSettings()...)
		old := r.emitScript(t, r.profile).with(shell)
		old.run(t, "load")
		r.login(t)
		session := r.openEcho(t, "direct") // the old rules admit this address
		session.say(t, "before the trial")
		changed := r.vpsProfile(t, newSettings("OpenFor 2m")...) // longer than the opening before
		after := r.emitScript(t, changed).with(shell)
		after.run(t, "trial")
		session.say(t, "during the trial")
		r.expect(t, r.client, lab.Dropped)
		const unproved = "no new connection has come through the new rules of vps yet"
		after.refused(t, unproved, "keep")
		knocker := r.freshAddr()
		r.client.KnockFrom(t, knocker, r.addr(), newKnocks...)
		after.refused(t, unproved, "keep")
		r.attacker.Knock(t, r.addr(), oldKnocks...)
		r.expect(t, r.attacker, lab.Dropped)
		after.refused(t, unproved, "keep")
		old.refused(t, "no trial of these rules is running", "keep")
		old.refused(t, "another trial ends in", "trial")
		after.refused(t, "another trial ends in", "trial")

		r.profile = changed
		r.config = r.sshConfig(t, changed)
		r.login(t)
		after.run(t, "keep")
		r.expectAnswer(t, "an address that the trial admitted, after keep", knocker, 22, lab.Open)
		r.expect(t, r.client, lab.Open)
		session.say(t, "after keep")
		r.expectGeneration(t, "after keep", "new")
		if left := r.ruleset(t); strings.Contains(left, "trial") {
			t.Errorf("keep leaves objects of the trial:\n%s", left)
		}
		after.refused(t, "no trial of these rules is running", "keep")
		r.login(t)
		// The rules that were kept are the same as after a load.
		kept := r.ruleset(t)
		after.run(t, "load")
		r.expectRuleset(t, kept)
	})
}

// TestKeepForce: keep --force needs no proof. A trial of unchanged rules needs none either.
func TestKeepForce(t *testing.T) {
	t.Parallel()
	r, before, after, _ := newTrialRig(t, dash)
	after.run(t, "trial")
	after.refused(t, "yet", "keep")
	after.run(t, "keep", "--force")
	r.expectGeneration(t, "after keep --force", "new")
	after.run(t, "trial")
	after.run(t, "keep")
	r.expectGeneration(t, "after a trial of the same rules", "new")
	before.run(t, "load")
	r.expectGeneration(t, "after the load of the old rules", "old")
}

// TestTrialOfOneProfileNeedsOnlyItsProof: a trial needs proof only of the profiles that
// the trial changes.
func TestTrialOfOneProfileNeedsOnlyItsProof(t *testing.T) {
	t.Parallel()
	r := newListeningRig(t, nftables, lab.IPv4)
	web := []string{"Host web", twoKnocks, "OpenPorts 8080"}
	r.emitScript(t, vpsProfile(t, append(oldSettings(), web...)...), "vps", "web").run(t, "load")
	after := r.emitScript(t, vpsProfile(t, append(newSettings(), web...)...), "vps", "web")
	after.run(t, "trial")
	after.refused(t, "new rules of vps yet", "keep")
	if !r.admits(t, r.freshAddr(), newKnocks...) {
		t.Error("the new knocks do not open port 22")
	}
	after.run(t, "keep")
	r.expectGeneration(t, "after keep", "new")
}

// TestTrialKeepsOldDurationUntilKept: the openings of a trial survive keep although the
// profile has another OpenFor than before, shorter or longer.
func TestTrialKeepsOldDurationUntilKept(t *testing.T) {
	t.Parallel()
	for _, spans := range [][2]string{{"10s", "5m"}, {"5m", "10s"}} {
		t.Run(spans[0]+" "+spans[1], func(t *testing.T) {
			t.Parallel()
			r := newListeningRig(t, nftables, lab.IPv6)
			r.emitScript(t, vpsProfile(t, oldSettings("OpenFor "+spans[0])...)).run(t, "load")
			both := r.freshAddr()
			r.admits(t, both, oldKnocks...)
			after := r.emitScript(t, vpsProfile(t, newSettings("OpenFor "+spans[1])...))
			after.run(t, "trial")
			only := r.freshAddr()
			for _, from := range []netip.Addr{both, only} {
				if !r.admits(t, from, newKnocks...) {
					t.Error("the new knocks do not open port 22")
				}
			}
			after.run(t, "keep")
			for _, from := range []netip.Addr{both, only} {
				r.expectAnswer(t, "an address that the trial admitted, after keep", from, 22, lab.Open)
			}
		})
	}
}

// TestTrialOnTerminal: on a terminal, a trial counts down. The key Enter keeps the rules,
// if a connection has proved them. Without Enter, the script fails when the trial ends.
func TestTrialOnTerminal(t *testing.T) {
	lab.Require(t, "script")
	eachShell(t, func(t *testing.T, shell []string) {
		r := newListeningRig(t, nftables, lab.IPv4)
		r.emitScript(t, vpsProfile(t, oldSettings()...)).run(t, "load")
		after := r.emitScript(t, vpsProfile(t, newSettings()...)).with(shell)
		start := func(seconds string) (*lab.Cmd, io.Writer, *lab.Log) {
			t.Helper()
			var log lab.Log
			c := r.server.Command("script", "-qec", strings.Join(after.words("trial", seconds), " "), "/dev/null")
			keys, err := c.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			c.Stdout = &log
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			log.Await(t, "seconds left", 1)
			return c, keys, &log
		}
		c, _, log := start("3")
		if err := c.Wait(); err == nil || !strings.Contains(log.String(), "the trial has ended without keep") {
			t.Errorf("the trial without Enter returns %v and prints %q", err, log)
		}
		r.expectGeneration(t, "after the trial", "old")

		c, keys, log := start("60")
		_, _ = io.WriteString(keys, "x\n")
		log.Await(t, "no new connection has come through", 1)
		if !r.admits(t, r.freshAddr(), newKnocks...) {
			t.Error("the new knocks do not open port 22")
		}
		_, _ = io.WriteString(keys, "\n")
		if err := c.Wait(); err != nil {
			t.Errorf("after Enter, the trial returns %v and prints %q", err, log)
		}
		after.refused(t, "no trial of these rules is running", "keep")
		r.expectGeneration(t, "after Enter", "new")

		c, _, log = start("60")
		after.run(t, "keep", "--force")
		if err := c.Wait(); err != nil || !strings.Contains(log.String(), "kept by another run") {
			t.Errorf("after keep by another run, the trial returns %v and prints %q", err, log)
		}
	})
}

// TestFailedTrialLeavesGuard: a trial whose rules cannot be loaded leaves the rules in
// force as they are, at once and later.
func TestFailedTrialLeavesGuard(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r, before, after, _ := newTrialRig(t, shell)
		text := lab.ReadFile(t, after.file)
		rules := r.ruleset(t)
		for _, fault := range []string{"\tnonsense\n", "\t\tjump nowhere\n", "\t\ttcp dport nonsense drop\n"} {
			const at = "\tchain let_vps.COPY {\n"
			broken := after
			broken.file = lab.File(t, "broken", strings.Replace(text, at, at+fault, 1))
			for _, verb := range [][]string{{"trial", "1"}, {"load"}, {"test"}} {
				out, err := broken.try(verb...)
				if err == nil || !strings.Contains(out, "nft: ") {
					t.Errorf("%q of rules with a fault returns %v and prints %q", verb, err, out)
				}
				r.expectRuleset(t, rules)
			}
		}
		time.Sleep(1500 * time.Millisecond) // the trials would have ended
		r.expectRuleset(t, rules)
		r.expectGeneration(t, "after failed trials", "old")
		before.run(t, "load")
	})
}

// TestTrialEndsWithItsProfile: the load or the unload of the only profile on trial ends the
// trial.
func TestTrialEndsWithItsProfile(t *testing.T) {
	t.Parallel()
	r, before, after, _ := newTrialRig(t, dash)
	after.run(t, "trial", "60", "vps")
	before.run(t, "load", "vps")
	r.expectGeneration(t, "after the load of the old rules", "old")
	after.run(t, "trial", "60", "vps")
	r.expectGeneration(t, "during the second trial", "new")
	after.run(t, "unload", "vps")
	r.expect(t, r.attacker, lab.Open)
	after.run(t, "trial", "60", "vps")
	r.expectGeneration(t, "during the third trial", "new")
	before.run(t, "load", "token") // another profile
	r.expectGeneration(t, "after the load of another profile", "new")
	after.run(t, "keep", "--force")
	r.expectGeneration(t, "after keep", "new")
}

// TestKilledScriptLeavesGuard kills a script at random moments of a trial and of keep. The
// rules in force are then the old ones, or the new ones, but never none. After that, the
// verbs work as usual.
func TestKilledScriptLeavesGuard(t *testing.T) {
	t.Parallel()
	r := newListeningRig(t, nftables, lab.IPv4)
	old := r.emitScript(t, vpsProfile(t, oldSettings()...))
	after := r.emitScript(t, vpsProfile(t, newSettings()...))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	old.run(t, "load")
	began := time.Now()
	after.run(t, "trial")
	whole := max(time.Since(began), 120*time.Millisecond) // of a run that is not killed
	old.run(t, "cancel")
	began, states := time.Now(), map[string]int{}
	for i := range 100 {
		if time.Since(began) > 35*time.Second { // a busy machine
			t.Logf("only %d kills within 35 s", i)
			break
		}
		verb := "trial"
		if i%2 == 1 {
			after.run(t, "trial")
			verb = "keep --force"
		}
		// The group has the script and the programs that the script runs.
		whom := []string{"$p", "-$p"}[random.IntN(2)]
		delay := random.IntN(int(whole.Milliseconds()))
		r.server.Shell(t, fmt.Sprintf("setsid dash '%s' %s >/dev/null 2>&1 & p=$!; exec 2>/dev/null; sleep 0.%03d; kill -9 %s; while kill -0 -$p; do sleep 0.01; done; :",
			after.file, verb, delay, whom))
		when := fmt.Sprintf("kill %d: %s of %s after %d ms", i, whom, verb, delay)
		if got := r.attacker.Probe(t, r.port(22)); got != lab.Dropped {
			t.Fatalf("%s: port 22 is %v", when, got)
		}
		now := r.generation(t)
		if now != "old" && now != "new" || verb != "trial" && now != "new" {
			t.Fatalf("%s: the rules in force are: %s", when, now)
		}
		old.run(t, "cancel")
		ended := r.generation(t)
		if verb == "trial" && ended != "old" || ended != "old" && ended != "new" {
			t.Fatalf("%s, then cancel: the rules in force are: %s", when, ended)
		}
		if ended == "new" {
			old.run(t, "load")
			r.expectGeneration(t, when+", then the load of the old rules", "old")
		}
		states[verb+": "+now+", then "+ended]++
	}
	t.Logf("%v after %v", states, time.Since(began))
	old.run(t, "test")
	if files := r.server.Run(t, "ls", "/run/portknock"); strings.Contains(files, "rules.") {
		t.Errorf("files with rules are left:\n%s", files)
	}
}

// attack makes the attacker send a SYN to port 22 about every 0.5 ms while do runs, and returns
// how many it sent and how many the server answered.
func (r *rig) attack(t testing.TB, do func()) (sent, answers int) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	c := r.attacker.Capture(t)
	defer c.Close()
	for {
		r.attacker.Flood(t, 500, func(i int) lab.Packet {
			if i%3 == 0 { // a sleep takes three times as long as it should
				time.Sleep(500 * time.Microsecond)
			}
			return lab.Packet{Dst: r.port(22), Flags: lab.SYN}
		})
		sent += 500
		for _, p := range c.Packets(t) {
			if p.Src == r.port(22) && p.Flags&lab.SYN != 0 {
				answers++
			}
		}
		select {
		case <-done:
			return sent, answers
		default:
		}
	}
}

// TestNoInstantWithoutGuard: no verb lets a SYN of an attacker through, not even for a
// moment.
func TestNoInstantWithoutGuard(t *testing.T) {
	t.Parallel()
	r := newListeningRig(t, nftables, lab.IPv4)
	web := []string{"Host web", twoKnocks, "OpenPorts 22 8080"}
	old := r.emitScript(t, vpsProfile(t, append(oldSettings(), web...)...))
	after := r.emitScript(t, vpsProfile(t, append(newSettings(), web...)...))
	other := r.emitScript(t, vpsProfile(t, append(oldSettings(), web...)...), "--policy", "drop", "web")
	plain := emitRules(t, r.server, nftables, vpsProfile(t, newSettings()...))
	old.run(t, "load")
	verbs := func(s script, verbs ...string) {
		for _, verb := range verbs {
			if out, err := s.try(strings.Fields(verb)...); err != nil {
				t.Errorf("%s: %v\n%s", verb, err, out)
			}
		}
	}
	sent, answers := r.attack(t, func() {
		for range 3 {
			verbs(other, "load")
			verbs(after, "trial 1")
			time.Sleep(1200 * time.Millisecond)
			verbs(after, "trial", "cancel", "trial")
			verbs(other, "unload", "load")
			verbs(after, "keep --force", "load")
			verbs(other, "unload", "trial", "keep --force", "unload")
			verbs(old, "load")
			if out, err := r.server.Try("nft", "-f", plain); err != nil {
				t.Errorf("nft -f: %v\n%s", err, out)
			}
			verbs(old, "trial", "load")
		}
	})
	t.Logf("%d SYNs", sent)
	if answers > 0 {
		t.Errorf("the server has answered %d of %d SYNs", answers, sent)
	}
	old.run(t, "unload")
	if _, answers := r.attack(t, func() {}); answers == 0 {
		t.Error("the attack does not find an open port either")
	}
}

// TestMarkedPacketFromOutsideIsDropped: a neighbor cannot mark its packets as let through
// with the priority that the rules use for it.
func TestMarkedPacketFromOutsideIsDropped(t *testing.T) {
	t.Parallel()
	for _, family := range lab.Families {
		r := newListeningRig(t, nftables, family)
		r.emitScript(t, vpsProfile(t, oldSettings()...), "--policy=drop").run(t, "load")
		r.server.Listen(t, 8080)
		domain, to := unix.AF_INET, func(port int) unix.Sockaddr { return &unix.SockaddrInet4{Port: port, Addr: r.addr().As4()} }
		if family == lab.IPv6 {
			domain, to = unix.AF_INET6, func(port int) unix.Sockaddr { return &unix.SockaddrInet6{Port: port, Addr: r.addr().As16()} }
		}
		connect := func(port int) (err error) {
			r.client.Do(func() {
				var fd int
				if fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
					return
				}
				defer func() { _ = unix.Close(fd) }()
				if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, 0xffff7070); err != nil {
					return
				}
				if err = unix.Connect(fd, to(port)); err != unix.EINPROGRESS {
					return
				}
				// A signal to this process ends Poll early, so Poll may have to wait again.
				wait := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
				for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
					if n, _ := unix.Poll(wait, 100); n > 0 {
						var code int
						if code, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
							err = unix.Errno(code)
						}
						return
					}
				}
			})
			return err
		}
		for _, port := range []int{22, 8080} {
			if err := connect(port); err != unix.EINPROGRESS {
				t.Errorf("%v: a marked connection to port %d returns %v, want a timeout", family, port, err)
			}
		}
		r.client.Knock(t, r.addr(), oldKnocks...)
		if err := connect(22); err != nil {
			t.Errorf("%v: after the knocks, a marked connection returns %v", family, err)
		}
	}
}

// oldLayout is the file of a version in which all profiles of a file had one chain,
// without the profile's comments and IPv6.
const oldLayout = `table inet portknock {
	map even_vps { typeof meta time : meta priority; flags interval; }
	map odd_vps { typeof meta time : meta priority; flags interval; }
	map next_vps { typeof meta priority . meta l4proto . th dport : meta priority; }
	set last_vps { typeof meta priority . meta l4proto . th dport; }
	set ignore_vps { typeof meta l4proto . th dport; flags interval; }
	set open4_vps { typeof ip saddr; flags dynamic,timeout; timeout 1m; size 65536; }
	map at4_vps { typeof ip saddr : meta priority; flags dynamic,timeout; timeout 1m; size 65536; }
	set made4_vps { typeof ip saddr . meta l4proto . th dport; flags dynamic,timeout; timeout 1m; size 65536; }
	set pace4_vps { typeof ip saddr; flags dynamic,timeout; timeout 10s; size 65536; }
}
flush map inet portknock next_vps
flush set inet portknock last_vps
add element inet portknock next_vps { 0:0 . udp . 7001 : 0:1, 0:1 . tcp . 8003 : 0:2 }
add element inet portknock last_vps { 0:2 . udp . 9005 }
flush table inet portknock
table inet portknock {
	chain guard {
		type filter hook prerouting priority -150; policy accept;
		iif lo accept
		tcp dport { 22 } tcp flags & (fin|syn|rst|ack) == syn jump door_vps
		tcp dport { 22 } tcp flags & (fin|syn|rst|ack) == syn fib daddr type { local, broadcast, anycast, multicast } counter drop
		ct state established,related accept comment "also makes the kernel put fragments together first"
		fib daddr type != local accept
		tcp flags & (fin|syn|rst|ack) != syn accept
		meta nfproto ipv4 meta l4proto { tcp, udp } jump knock4_vps
		meta priority set 0:0
	}
	chain door_vps {
		ip saddr @open4_vps accept
	}
	chain knock4_vps {
		meta priority set ip saddr map @at4_vps goto mid4_vps
		goto start4_vps
	}
	chain mid4_vps {
		meta priority set meta priority . meta l4proto . th dport map @next_vps goto advance4_vps
		meta priority . meta l4proto . th dport @last_vps goto admit4_vps
		ip saddr . meta l4proto . th dport @made4_vps return comment "a repeat"
		meta l4proto . th dport @ignore_vps return
		delete @at4_vps { ip saddr : meta priority } comment "a wrong knock"
		goto start4_vps
	}
	chain start4_vps {
		meta priority set 0:0 meta priority set meta priority . meta l4proto . th dport map @next_vps goto begin4_vps
	}
	chain begin4_vps {
		update @pace4_vps { ip saddr timeout 10s limit rate over 20/second burst 60 packets } return
		goto advance4_vps
	}
	chain advance4_vps {
		delete @at4_vps { ip saddr : meta priority }
		add @at4_vps { ip saddr timeout 1m : meta priority }
		update @made4_vps { ip saddr . meta l4proto . th dport timeout 1m }
	}
	chain admit4_vps {
		delete @at4_vps { ip saddr : meta priority }
		update @open4_vps { ip saddr timeout 1m } counter
	}
	chain input {
		type filter hook input priority 0; policy accept;
		meta l4proto tcp tcp dport 22 accept
		tcp flags & (fin|syn|rst|ack) != syn accept
		meta l4proto tcp drop
	}
}
`

// TestRulesOfOlderLayoutAreReplaced: a load replaces the rules of an older version, in
// one transaction. A trial of rules over them leaves them as they are when it ends, and
// cancel and keep work.
func TestRulesOfOlderLayoutAreReplaced(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r := newListeningRig(t, nftables, lab.IPv4)
		old := lab.File(t, "old.nft", oldLayout)
		plain := emitRules(t, r.server, nftables, vpsProfile(t, newSettings()...))
		after := r.emitScript(t, vpsProfile(t, newSettings()...)).with(shell)
		reset := func() {
			t.Helper()
			r.server.Shell(t, "nft 'add table inet portknock; delete table inet portknock'; nft -f "+old)
			r.expectGeneration(t, "with rules of the older layout", "old")
		}
		load := map[string]func(){
			"nft -f": func() { _, _ = r.server.Try("nft", "-f", plain) },
			"load":   func() { _, _ = after.try("load") },
			"trial": func() {
				_, _ = after.try("trial")
				_, _ = after.try("keep", "--force")
			},
		}
		for name, do := range load {
			reset()
			admitted := r.freshAddr()
			r.admits(t, admitted, oldKnocks...)
			if _, answers := r.attack(t, do); answers > 0 {
				t.Errorf("%s: the server has answered %d SYNs", name, answers)
			}
			r.expectGeneration(t, name, "new")
			r.expectAnswer(t, name+": an address that was admitted before", admitted, 22, lab.Open)
			if listing := r.ruleset(t); strings.Contains(listing, "chain guard") || strings.Contains(listing, "chain input") {
				t.Errorf("%s leaves chains of the older layout:\n%s", name, listing)
			}
		}
		for _, end := range []string{"cancel", "expire"} {
			reset()
			before := r.ruleset(t)
			admitted := r.freshAddr()
			r.admits(t, admitted, oldKnocks...)
			if end == "cancel" {
				after.run(t, "cancel") // there is no trial
				r.expectRuleset(t, before)
				after.run(t, "trial")
				r.expectGeneration(t, "during the trial", "new")
				after.run(t, "cancel")
			} else {
				after.run(t, "trial", "2")
				r.awaitTrialEnd(t)
				r.expectGeneration(t, "after the trial", "old")
				after.run(t, "cancel")
			}
			r.expectAnswer(t, end+": an address that was admitted before", admitted, 22, lab.Open)
			r.expectGeneration(t, "after the trial: "+end, "old")
			// The chain that joins fragments may stay.
			now := regexp.MustCompile(`(?m)^\tchain begin \{\n(\t\t.*\n)*\t\}\n`).ReplaceAllString(r.ruleset(t), "")
			if strings.Join(strings.Fields(now), " ") != strings.Join(strings.Fields(before), " ") {
				t.Errorf("%s: the rules were\n%s\nand are now\n%s", end, before, now)
			}
		}
	})
}

// TestRulesOfOlderLayoutWithOtherProfilesStay: a script does not replace the rules of an
// older version if they guard ports of a profile that the script does not have.
func TestRulesOfOlderLayoutWithOtherProfilesStay(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r := newListeningRig(t, nftables, lab.IPv4)
		r.server.Listen(t, 8080)
		const guard = "\t\tct state established,related accept comment"
		const web = "\t\ttcp dport 8080 tcp flags & (fin|syn|rst|ack) == syn"
		text := strings.Replace(oldLayout, guard, web+" jump door_web\n"+web+" drop\n"+guard, 1)
		text = strings.Replace(text, "\tchain guard {", "\tchain door_web { }\n\tchain guard {", 1)
		r.server.Run(t, "nft", "-f", lab.File(t, "old.nft", text))
		before := r.ruleset(t)
		profile := vpsProfile(t, append(newSettings(), "Host web", twoKnocks, "OpenPorts 8080")...)
		one := r.emitScript(t, profile).with(shell)
		for _, verb := range []string{"load", "unload"} {
			one.refused(t, `this would open the ports of "web"`, verb)
			r.expectRuleset(t, before)
		}
		one.run(t, "trial")
		r.expectGeneration(t, "during the trial", "new")
		r.expectPort(t, r.attacker, 8080, lab.Dropped)
		one.refused(t, `this would open the ports of "web"`, "keep", "--force")
		one.run(t, "cancel")
		r.expectGeneration(t, "after cancel", "old")
		both := r.emitScript(t, profile, "vps", "web").with(shell)
		both.run(t, "load")
		r.expectGeneration(t, "loaded", "new")
		r.expectPort(t, r.attacker, 8080, lab.Dropped)
		one.run(t, "load")
		r.expectPort(t, r.attacker, 8080, lab.Dropped)
	})
}
