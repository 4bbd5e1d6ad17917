package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// script is a script that portknock emit-rules --script has written for a host.
type script struct {
	host *lab.Host
	file string
	// command runs a shell. The arguments that follow are a script and its verb.
	command []string
}

// dash runs scripts in most tests.
var dash = []string{"dash"}

// eachShell runs a test with each shell that scripts support, in parallel.
func eachShell(t *testing.T, test func(t *testing.T, shell []string)) {
	t.Parallel()
	t.Run("dash", func(t *testing.T) {
		t.Parallel()
		lab.Require(t, "dash")
		test(t, dash)
	})
	t.Run("busybox", func(t *testing.T) {
		t.Parallel()
		test(t, busybox(t))
	})
}

// busybox returns a command for script that runs the shell of busybox. All other programs
// that busybox has are those of busybox too. Its flock does not know -w.
func busybox(t testing.TB) []string {
	t.Helper()
	lab.Require(t, "busybox")
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if err := os.Symlink(path, filepath.Join(dir, applet)); err != nil {
			t.Fatal(err)
		}
	}
	flock := filepath.Join(dir, "flock")
	_ = os.Remove(flock)
	text := "#!/bin/sh\ncase $1 in -w) echo 'flock: invalid option -- w' >&2; exit 1 ;; esac\nexec /usr/bin/flock \"$@\"\n"
	if err := os.WriteFile(flock, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{"env", "PATH=" + dir + ":" + os.Getenv("PATH"), path, "sh"}
}

// emitScript makes portknock write a script for the profiles that the arguments name.
func emitScript(t testing.TB, h *lab.Host, f lab.Firewall, profile string, args ...string) script {
	t.Helper()
	return script{h, emitRulesFor(t, h, f, profile, append([]string{"--script"}, args...)...), dash}
}

// emitScript makes portknock write a script for the rig's server. Without a name among the
// arguments, the script has the profile vps.
func (r *rig) emitScript(t testing.TB, profile string, args ...string) script {
	t.Helper()
	if len(args) == 0 || strings.HasPrefix(args[len(args)-1], "-") {
		args = append(args, "vps")
	}
	return emitScript(t, r.server, r.firewall, profile, args...)
}

// with returns a script that another shell runs.
func (s script) with(shell []string) script {
	s.command = shell
	return s
}

// words returns the command that runs a verb.
func (s script) words(verb ...string) []string {
	return append(append(append([]string{}, s.command...), s.file), verb...)
}

// try runs a verb that may fail.
func (s script) try(verb ...string) (string, error) {
	words := s.words(verb...)
	return s.host.Try(words[0], words[1:]...)
}

// run runs a verb that must succeed.
func (s script) run(t testing.TB, verb ...string) string {
	t.Helper()
	out, err := s.try(verb...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", filepath.Base(s.file), verb, err, out)
	}
	return out
}

// refused runs a verb that must fail with this text.
func (s script) refused(t testing.TB, text string, verb ...string) {
	t.Helper()
	if out, err := s.try(verb...); err == nil || !strings.Contains(out, text) {
		t.Errorf("%q returns %v and prints %q, want an error with %q", verb, err, out, text)
	}
}

// call runs a shell function of the script, which must succeed.
func (s script) call(t testing.TB, function ...string) {
	t.Helper()
	text, found := strings.CutSuffix(lab.ReadFile(t, s.file), "main \"$@\"\n")
	if !found {
		t.Fatal("the script does not end as expected")
	}
	s.file = lab.File(t, "script", text, "umask 077", `mkdir -p "$state"`, "verb=load", `"$@"`)
	s.run(t, function...)
}

// TestScriptGuardFromLoadToUnload: the verbs test, load and unload do what they say. The
// unload of the last profile leaves no rules.
func TestScriptGuardFromLoadToUnload(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r := newListeningRig(t, nftables, lab.IPv4)
		r.profile = r.vpsProfile(t, threeKnocks, "Host web", twoKnocks, "OpenPorts 8080")
		r.server.Listen(t, 8080)
		s := r.emitScript(t, r.profile, "vps", "web").with(shell)
		before := r.ruleset(t)
		s.run(t, "test")
		r.expectRuleset(t, before)
		s.run(t, "load")
		once := r.ruleset(t)
		s.run(t, "load")
		r.expectRuleset(t, once)
		r.expect(t, r.attacker, lab.Dropped)
		r.expectPort(t, r.attacker, 8080, lab.Dropped)
		r.knockAndWait(t, r.client)
		s.run(t, "unload", "web")
		r.expectPort(t, r.attacker, 8080, lab.Open)
		r.expect(t, r.attacker, lab.Dropped)
		r.expect(t, r.client, lab.Open)
		s.run(t, "load", "web")
		r.expectPort(t, r.attacker, 8080, lab.Dropped)
		s.run(t, "unload")
		r.expect(t, r.attacker, lab.Open)
		r.expectRuleset(t, before)
		s.run(t, "unload") // there is nothing left to unload
		s.refused(t, "unknown profile", "load", "nobody")
		s.refused(t, "unknown verb", "reload")
	})
}

// TestTruncatedScriptDoesNothing: a script that was cut off during its copy loads nothing.
func TestTruncatedScriptDoesNothing(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r := newListeningRig(t, nftables, lab.IPv4)
		s := r.emitScript(t, r.vpsProfile(t, twoKnocks)).with(shell)
		text := lab.ReadFile(t, s.file)
		for i := 1; i <= 20; i++ {
			if err := os.WriteFile(s.file, []byte(text[:(len(text)-1)*i/20-1]), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _ = s.try("load")
			if tables := r.server.Run(t, "nft", "list", "tables"); tables != "" {
				t.Fatalf("%d of 20 parts of the script load %s", i, tables)
			}
		}
	})
}

// TestScriptLoadsInPartsInContainer: a container without privileges cannot load many rules
// at once. The verbs load, trial and keep then load them in parts. It fails if a part fails.
func TestScriptLoadsInPartsInContainer(t *testing.T) {
	t.Parallel()
	knocks, _ := rotating(t, time.Hour, time.Minute)
	tokens, _ := tokens(t, time.Hour, time.Minute)
	for name, settings := range map[string][]string{"rotating": knocks, "token": tokens} {
		t.Run(name, func(t *testing.T) {
			eachShell(t, func(t *testing.T, shell []string) {
				testLoadInParts(t, shell, settings)
			})
		})
	}
}

// testLoadInParts loads the rules for these settings as a user without privileges.
func testLoadInParts(t *testing.T, shell, settings []string) {
	lab.Require(t, "nft", "unshare", "setpriv", "awk")
	server := lab.NewHost(t, "server")
	s := emitScript(t, server, nftables, vpsProfile(t, settings...), "--horizon", "40d", "vps").with(shell)
	text := lab.ReadFile(t, s.file)
	// The user has privileges only in a namespace of that user, and reads the script from a
	// file that this user owns.
	inside := func(script, commands string) (string, error) {
		dir, err := os.MkdirTemp("/tmp", "portknock")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		for _, path := range []string{dir, filepath.Join(dir, "script")} {
			if path != dir {
				if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
		run := "sh"
		if len(shell) > 1 { // other users cannot look into the folder of the test that has the links
			server.Shell(t, fmt.Sprintf("mkdir %s/bin && busybox --install -s %[1]s/bin", dir))
			run = "PATH=" + dir + "/bin:$PATH busybox sh"
		}
		return server.Try("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
			"unshare", "-Urnm", "sh", "-c", fmt.Sprintf("mount -t tmpfs tmpfs /run && verb() { %s %s/script \"$@\"; } && %s", run, dir, commands))
	}
	if out, err := inside(text, "true"); err != nil {
		lab.Missing(t, fmt.Sprintf("user namespaces: %v %s", err, out))
	}
	out, err := inside(text, "verb load && verb load && verb trial && verb keep --force && nft list table inet portknock | grep -c 'timeout\\|goto' && ls /run/portknock")
	if err != nil {
		t.Errorf("two loads and a trial in a container return %v:\n%s", err, out)
	}
	if strings.Contains(out, "rules.") {
		t.Errorf("the load leaves a file with the rules: %s", out)
	}
	broken := strings.Replace(text, "\nadd table ", "\nnonsense\nadd table ", 1)
	if out, err := inside(broken, "verb load"); err == nil {
		t.Errorf("the load succeeds although the rules have a fault: %s", out)
	}
	parts := strings.Split(text, "\n# part\n")
	for _, faulty := range []int{1, len(parts) - 1} {
		with := slices.Clone(parts)
		with[faulty] = "add rule inet portknock begin jump nowhere # only the kernel finds this fault\n" + with[faulty]
		if out, err := inside(strings.Join(with, "\n# part\n"), "verb load"); err == nil {
			t.Errorf("the load succeeds although part %d of %d has a fault: %s", faulty, len(parts), out)
		}
	}
}

// TestReloadForgetsOldSchemes: after a load, the kernel has neither knocks nor tokens nor
// sets of the profile's scheme before.
func TestReloadForgetsOldSchemes(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		period := periodWithNowAt(t, middle)
		knocks, s := rotating(t, period, time.Minute)
		spend, tok := tokens(t, period, time.Minute)
		r := newListeningRig(t, nftables, lab.IPv4)
		type scheme struct {
			settings []string
			steps    []knock.Step
			prefix   string // of the sets that only this scheme has
		}
		schemes := []scheme{
			{[]string{threeKnocks}, sequence("7001/udp 8003/tcp 9005/udp"), ""},
			{spend, stepsAt(t, tok, time.Now())[:1], "tokens_"},
			{knocks, stepsAt(t, s, time.Now()), "next_"},
			{[]string{twoKnocks}, sequence("7001/udp 8003/tcp"), "stage2_"},
			{spend, stepsAt(t, tok, time.Now())[1:2], "tokens_"},
		}
		for i, now := range schemes {
			script := r.emitScript(t, vpsProfile(t, now.settings...)).with(shell)
			script.run(t, "load")
			if !r.admits(t, r.freshAddr(), now.steps...) {
				t.Errorf("load %d: the knocks do not open port 22", i)
			}
			if i == 0 {
				continue
			}
			if before := schemes[i-1]; r.admits(t, r.freshAddr(), before.steps...) {
				t.Errorf("load %d: the knocks of the scheme before open port 22", i)
			}
			// The same rules on a new server have the same objects, except for used tokens.
			fresh := lab.NewHost(t, "fresh")
			fresh.Run(t, dash[0], script.file, "load")
			const list = "nft -t list table inet portknock | grep -E '^.(chain|set|map|counter) ' | grep -v '[ _]used' | sort"
			if got, want := r.server.Shell(t, list), fresh.Shell(t, list); got != want {
				t.Errorf("load %d leaves the objects\n%s\nwant\n%s", i, got, want)
			}
			const elements = "for s in next last even odd; do nft list map inet portknock ${s}_vps || nft list set inet portknock ${s}_vps || :; done 2>/dev/null"
			if got, want := r.server.Shell(t, elements), fresh.Shell(t, elements); got != want {
				t.Errorf("load %d leaves the elements\n%s\nwant\n%s", i, got, want)
			}
		}
	})
}

// TestScriptTestFindsLostTimeouts: an nft that loses a timeout, without an error, fails the
// verb test. A trial does not begin.
func TestScriptTestFindsLostTimeouts(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		lab.Require(t, "nft")
		nft, err := exec.LookPath("nft")
		if err != nil {
			t.Skip(err)
		}
		server := lab.NewHost(t, "server")
		s := emitScript(t, server, nftables, vpsProfile(t, twoKnocks), "vps").with(shell)
		s.run(t, "test")
		wrapper := lab.File(t, "nft", "#!/bin/sh", `case "$*" in`,
			`*list*) `+nft+` "$@" | grep -v "^.*[[:space:]]timeout [0-9]" ;;`, `*) exec `+nft+` "$@" ;;`, `esac`)
		if err := os.Chmod(wrapper, 0o700); err != nil {
			t.Fatal(err)
		}
		s.command = withPath(filepath.Dir(wrapper), shell)
		for _, verb := range []string{"test", "trial"} {
			s.refused(t, "loses parts of the rules: timeout of ", verb)
		}
		if tables := server.Run(t, "nft", "list", "tables"); tables != "" {
			t.Errorf("the server has the tables %s", tables)
		}
	})
}

// withPath returns a shell command whose PATH begins with a folder.
func withPath(dir string, shell []string) []string {
	if len(shell) == 1 {
		return append([]string{"env", "PATH=" + dir + ":" + os.Getenv("PATH")}, shell...)
	}
	changed := append([]string{}, shell...)
	changed[1] = strings.Replace(changed[1], "PATH=", "PATH="+dir+":", 1)
	return changed
}
