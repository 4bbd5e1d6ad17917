package e2e

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// newDeployRig makes a rig whose server has an sshd, and files of its own in /etc, so that
// scripts can be installed there. The server has no guard.
func newDeployRig(t testing.TB, settings ...string) *rig {
	t.Helper()
	r := newRig(t, nftables, lab.IPv4, settings...)
	r.ownEtc(t)
	return r
}

// deployCommand returns a command that deploys.
func (r *rig) deployCommand(args ...string) *lab.Cmd {
	return r.client.Command("portknock", append([]string{"deploy", "-c", r.profile, "--ssh-config", r.config}, args...)...)
}

// deployUntil starts a deploy, and returns when it has printed a line with this text.
func (r *rig) deployUntil(t testing.TB, text string, args ...string) (c *lab.Cmd, out string, rest io.Reader) {
	t.Helper()
	c = r.deployCommand(args...)
	out, came, rest := c.StartUntil(t, func(line string) bool { return strings.Contains(line, text) })
	if !came {
		t.Fatalf("deploy does not print %q:\n%s", text, out)
	}
	return c, out, rest
}

// deploy runs a deploy of the host vps to its end. It checks the exit code, and that the
// output contains texts.
func (r *rig) deploy(t testing.TB, code int, texts []string, args ...string) (out string) {
	t.Helper()
	b, err := r.deployCommand(append(args, "vps")...).CombinedOutput()
	lab.ExpectEnd(t, err, string(b), code, texts...)
	return string(b)
}

// TestDeployGuardsServer: a deploy installs the rules on a server that had none, and proves
// them. A second one finds the same rules. undeploy leaves nothing.
func TestDeployGuardsServer(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	before := r.ruleset(t)
	files := r.server.Shell(t, "find /etc /run/portknock 2>/dev/null | sort")
	r.deploy(t, 0, []string{"no rules for vps", "22/tcp for vps"}, "--dry-run")
	r.expectRuleset(t, before)
	r.expect(t, r.attacker, lab.Open)

	out := r.deploy(t, 0, []string{"proved    the port does not answer", "proved    a new login", "deployed  vps"})
	r.login(t)
	r.expect(t, r.attacker, lab.Dropped)
	if hasNumber(out, "7001", "8003", "9005") {
		t.Errorf("the output contains a knock:\n%s", out)
	}
	if left := r.server.Shell(t, "ls /run/portknock | grep '^deploy[.][0-9A-Z]' || :"); left != "" {
		t.Errorf("deploy leaves %s", left)
	}

	var results []struct{ Host, Result, Format, ID, Login, Silence string }
	out = r.deploy(t, 0, nil, "--json")
	if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) != 1 || results[0].Result != "deployed" ||
		results[0].Login != "proved" || results[0].Silence != "proved" || results[0].Format != "nftables" {
		t.Errorf("deploy --json prints %s, %v", out, err)
	}

	if out = r.deploy(t, 0, nil, "-q"); out != "" {
		t.Errorf("deploy -q prints %s", out)
	}

	r.client.Run(t, "portknock", "undeploy", "-c", r.profile, "--ssh-config", r.config, "vps")
	r.expect(t, r.attacker, lab.Open)
	r.expectRuleset(t, before)
	if got := r.server.Shell(t, "find /etc /run/portknock 2>/dev/null | sort"); got != files {
		t.Errorf("undeploy leaves files: before\n%s\nafter\n%s", files, got)
	}
}

// TestDeployGoesBack: if the new rules do not let a login through, the server has its old
// rules afterwards, and the exit code is 6.
func TestDeployGoesBack(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	r.deploy(t, 0, nil)
	right := r.profile
	for name, c := range map[string]struct {
		settings []string
		args     []string
		text     string
	}{
		"nothing listens at the guarded port": {settings: []string{threeKnocks, "OpenPorts 222"}, args: []string{"--replace"}, text: "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			r.profile = r.vpsProfile(t, c.settings...)
			r.deploy(t, 6, []string{"not deployed", c.text, "the rules from before are in force"}, c.args...)
			r.profile = right
			r.login(t)
			r.expect(t, r.attacker, lab.Dropped)
		})
	}
}

// TestDeployKilled: if the client is killed in a deploy, the server either has the old rules or
// the new ones.
func TestDeployKilled(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"server ", "new ", "trial ", "proved    the port", "proved    a new", "install "} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			r := newDeployRig(t, threeKnocks)
			c, _, _ := r.deployUntil(t, step, "vps")
			c.End()
			lab.Await(t, time.Minute, func() string {
				if out, err := r.server.Try("flock", "-n", "/run/portknock/deploy.lock", "true"); err != nil {
					return "the deploy still has its lock: " + out
				}
				return ""
			})
			if step == "install " || step == "proved    a new" { // the kill may be too late
				r.login(t)
				return
			}
			r.expect(t, r.attacker, lab.Open)
			r.login(t)
		})
	}
}

// lockHolder starts a process that waits. hold makes it take the lock of the scripts on the
// server, for which verbs wait then. release makes it end.
func (r *rig) lockHolder(t testing.TB) (hold, release func()) {
	t.Helper()
	c := r.server.Command("sh", "-c", "mkdir -p /run/portknock; echo ready; read -r line; exec 9>/run/portknock/lock; flock 9; echo held; exec sleep 1000")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	_, _, rest := c.StartUntil(t, func(line string) bool { return line == "ready\n" })
	hold = func() {
		t.Helper()
		_, _ = io.WriteString(in, "\n")
		if _, err := io.ReadFull(rest, make([]byte, len("held\n"))); err != nil {
			t.Fatal(err)
		}
	}
	return hold, c.End
}

// TestDeployAsksAgainAfterBrokenConnection: if the connection breaks while the server installs
// the rules, deploy connects again, and finds that the rules are installed.
func TestDeployAsksAgainAfterBrokenConnection(t *testing.T) {
	t.Parallel()
	lab.Require(t, "flock", "pgrep", "pkill")
	r := newDeployRig(t, threeKnocks)
	hold, release := r.lockHolder(t)
	c, out, rest := r.deployUntil(t, "trial ", "vps")
	hold() // during the proof, before the server installs the rules
	lab.Await(t, time.Minute, func() string {
		if _, err := r.server.Try("pgrep", "-f", "^sh /run/portknock/deploy[.][^ ]* install"); err != nil {
			return "the server does not install the rules"
		}
		return ""
	})
	r.client.Run(t, "pkill", "-KILL", "-x", "ssh")
	release()
	more, _ := io.ReadAll(rest)
	if err := c.Wait(); err != nil || !strings.Contains(string(more), "asking the server again") || !strings.Contains(string(more), "deployed  vps") {
		t.Errorf("deploy ends with %v and prints\n%s%s", err, out, more)
	}
	r.login(t)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestOneDeployAtATime: a deploy to a server that another one changes fails, and says who does
// that.
func TestOneDeployAtATime(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	hold, release := r.lockHolder(t)
	hold() // the first deploy waits until the second one has failed
	c := r.deployCommand("vps")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, time.Minute, func() string {
		if _, err := r.server.Try("test", "-s", "/run/portknock/deploy.lock"); err != nil {
			return "the first deploy does not take its lock"
		}
		return ""
	})
	r.deploy(t, 6, []string{"another deploy to this server is running: root@client"})
	release()
	if err := c.Wait(); err != nil {
		t.Errorf("the first deploy: %v", err)
	}
	r.login(t)
}

// TestDeployRefusesWrongClock: a deploy of rules that follow the clock fails if the clocks differ
// by more than Skew.
func TestDeployRefusesWrongClock(t *testing.T) {
	t.Parallel()
	key := lab.File(t, "key", knock.NewKey().Reveal())
	r := newDeployRig(t, "Scheme token", "KeyFile "+key, "Skew 1m", "Period 1d")
	t.Run("shifted", func(t *testing.T) {
		c := r.client.Command("env", "PORTKNOCK_TEST_SHIFT=-2m", "portknock", "deploy", "-c", r.profile, "--ssh-config", r.config, "vps")
		out, err := c.CombinedOutput()
		lab.ExpectEnd(t, err, string(out), 6, "the clocks differ by ")
	})
	r.expect(t, r.attacker, lab.Open)
	r.deploy(t, 0, []string{"clock     the server's clock", "valid until "})
	r.login(t)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestDeployTakesIptablesWithoutNft: a server without a suitable nft gets rules for iptables.
func TestDeployTakesIptablesWithoutNft(t *testing.T) {
	t.Parallel()
	lab.Require(t, "iptables")
	r := newDeployRig(t, threeKnocks)
	r.server.Shell(t, `printf '#!/bin/sh\nexit 127\n' >/run/nft && chmod 755 /run/nft && mount --bind /run/nft "$(readlink -f "$(command -v nft)")"`)
	r.deploy(t, 0, []string{"the server cannot load rules of nftables", "format iptables", "deployed  vps"})
	r.login(t)
	// iptables takes fewer windows than nftables.
	lines := []string{"Host vps", "HostName " + r.addr().String(), "Scheme rotating", "KeyFile " + lab.File(t, "key", knock.NewKey().Reveal())}
	if err := os.WriteFile(r.profile, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.deploy(t, 0, []string{"format iptables", "deployed  vps"})
	r.login(t)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestDeployFollowsEditsOfTheProfile: with nothing but edits of the profile and deploy, a server
// goes from static to rotating, to tokens, and to another key. undeploy ends it.
func TestDeployFollowsEditsOfTheProfile(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	before := r.ruleset(t)
	key := filepath.Join(filepath.Dir(r.profile), "key")
	newKey := func() {
		if err := os.WriteFile(key, []byte(knock.NewKey().Reveal()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	newKey()
	for _, step := range []struct {
		name     string
		edit     func()
		settings []string
	}{
		{"static", func() {}, []string{threeKnocks}},
		{"rotating", func() {}, []string{"Scheme rotating", "KeyFile " + key, "Period 1d"}},
		{"token", func() {}, []string{"Scheme token", "KeyFile " + key, "Period 1d"}},
		{"new key", newKey, []string{"Scheme token", "KeyFile " + key, "Period 1d"}},
	} {
		step.edit()
		lines := append([]string{"Host vps", "HostName " + r.addr().String()}, step.settings...)
		if err := os.WriteFile(r.profile, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if step.name != "static" {
			r.login(t) // the profile has changed, and the server has not
		}
		r.deploy(t, 0, []string{"deployed  vps"})
		r.login(t)
		r.expect(t, r.attacker, lab.Dropped)
	}
	// undeploy also works if the profile file no longer has the profile.
	if err := os.WriteFile(r.profile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out := r.client.Run(t, "portknock", "undeploy", "-c", r.profile, "--ssh-config", r.config, "vps")
	r.expect(t, r.attacker, lab.Open)
	r.expectRuleset(t, before)
	if strings.Contains(out, "profile remove") {
		t.Errorf("undeploy names a profile that the profile file does not have:\n%s", out)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(r.profile), "deployed", "vps*")); len(left) > 0 {
		t.Errorf("undeploy leaves %v", left)
	}
}

// TestTwoAdministratorsDeployInTurn: each administrator deploys a profile of his own to the same
// server, and both keep working.
func TestTwoAdministratorsDeployInTurn(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	alice, bob := r.profile, r.vpsProfile(t, otherKnocks)
	bobs := strings.Replace(lab.ReadFile(t, bob), "Host vps", "Host bob", 1)
	bob = lab.File(t, "config", bobs)
	deploy := func(profile, host string, texts ...string) {
		t.Helper()
		r.profile = profile
		config := lab.File(t, "ssh_config", strings.Replace(lab.ReadFile(t, r.proxyConfig(t, "portknock -c "+profile+" --profile "+host+" %h %p")), "Host vps", "Host vps bob", 1))
		out, err := r.client.Try("portknock", "deploy", "-c", profile, "--ssh-config", config, host)
		if err != nil {
			t.Errorf("deploy of %s: %v\n%s", host, err, out)
		}
		for _, text := range texts {
			if !strings.Contains(out, text) {
				t.Errorf("deploy of %s does not print %q:\n%s", host, text, out)
			}
		}
	}
	deploy(alice, "vps", "no rules for vps")
	r.client.Run(t, "portknock", "knock", "--wait", "-c", alice, "vps") // Bob cannot get in yet: Alice opens the port
	deploy(bob, "bob", "no rules for bob", "other profiles: vps")
	deploy(alice, "vps", "the same rules for vps, installed by root@client", "other profiles: bob")
	deploy(bob, "bob", "the same rules for bob")
	for host, profile := range map[string]string{"vps": alice, "bob": bob} {
		config := r.proxyConfig(t, "portknock -c "+profile+" --profile "+host+" %h %p")
		if got := sshOutput(t, r.client, "-F", config, "vps", "echo in"); got != "in\n" {
			t.Errorf("%s: ssh prints %q, want in", host, got)
		}
	}
	r.expect(t, r.attacker, lab.Dropped)
}

// TestDeployRenew: deploy --renew makes new rules with the flags of the last deploy, but only if
// the old ones expire soon.
func TestDeployRenew(t *testing.T) {
	t.Parallel()
	key := lab.File(t, "key", knock.NewKey().Reveal())
	r := newDeployRig(t, "Scheme token", "KeyFile "+key, "Period 1d")
	r.server.Listen(t, 80)
	r.server.Listen(t, 81)
	r.deploy(t, 0, nil, "--policy", "drop", "--allow", "80", "--horizon", "20d")
	renew := func(args ...string) string {
		return r.client.Run(t, "portknock", append([]string{"deploy", "-v", "-c", r.profile, "--ssh-config", r.config, "--renew"}, args...)...)
	}
	if out := renew("vps"); !strings.Contains(out, "nothing to renew") {
		t.Errorf("deploy --renew of rules for 20 days prints:\n%s", out)
	}
	file := filepath.Join(filepath.Dir(r.profile), "deployed", "vps")
	old := regexp.MustCompile(`"time":"[^"]*"`).ReplaceAllString(lab.ReadFile(t, file), `"time":"2026-10-01T00:00:00Z"`)
	if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := renew("--all"); !strings.Contains(out, "deployed  vps") {
		t.Errorf("deploy --renew --all prints:\n%s", out)
	}
	r.expectPort(t, r.attacker, 80, lab.Open)
	r.expectPort(t, r.attacker, 81, lab.Dropped)
	r.deploy(t, 0, nil, "--horizon", "40d")
	if out := renew("vps"); !strings.Contains(out, "nothing to renew") || strings.Contains(out, "trial") {
		t.Errorf("deploy --renew of rules for 40 days prints:\n%s", out)
	}
	r.expectPort(t, r.attacker, 81, lab.Open)
}

// TestDeployRepeatsFlags: a deploy without flags for the rules uses those of the last deploy.
func TestDeployRepeatsFlags(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	r.server.Listen(t, 81)
	r.deploy(t, 0, nil, "--policy", "drop")
	r.deploy(t, 0, []string{"flags     --policy drop"})
	r.expectPort(t, r.attacker, 81, lab.Dropped)
	r.deploy(t, 0, nil, "--policy", "guard")
	r.expectPort(t, r.attacker, 81, lab.Open)
	r.deploy(t, 0, nil)
	r.expectPort(t, r.attacker, 81, lab.Open)
}

// TestDeployKeepsFormat: a deploy without flags uses the format of the last deploy.
func TestDeployKeepsFormat(t *testing.T) {
	t.Parallel()
	lab.Require(t, "knockd")
	r := newDeployRig(t, threeKnocks)
	r.deploy(t, 0, []string{"format knockd"}, "--format", "knockd", "--interface", "eth0")
	r.deploy(t, 0, []string{"format knockd", "deployed  vps"})
	r.login(t)
}

// TestDeployDoesNotReplaceRulesOfOthers: a deploy refuses to replace rules of a profile with the
// same name that another computer has installed. With --replace, or with the same key, it does.
func TestDeployDoesNotReplaceRulesOfOthers(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	key := lab.File(t, "key", knock.NewKey().Reveal())
	mine, others := r.profile, r.vpsProfile(t, "Scheme token", "KeyFile "+key, "Period 1d")
	again := r.vpsProfile(t, "Scheme token", "KeyFile "+key, "Period 1d", "OpenFor 20")
	r.profile = others
	r.deploy(t, 0, nil)
	// ssh gets in with the knocks of the other administrator.
	use := func(profile string, code int, text string, args ...string) {
		t.Helper()
		r.profile = profile
		r.client.Run(t, "portknock", "knock", "--wait", "-c", others, "vps")
		r.deploy(t, code, []string{text}, args...)
	}
	use(mine, 6, "other rules for a profile vps")
	r.profile = others
	r.login(t)
	use(again, 0, "deployed  vps")
	use(mine, 0, "deployed  vps", "--replace")
	r.login(t)
}

// TestDeployBehindAnotherFirewall: if a firewall in front of the server drops the knocks, deploy
// says in one line that the port stays silent, and which ports that firewall must let through.
func TestDeployBehindAnotherFirewall(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		settings []string
		ports    string // CONFIG stands for the path of the profile file
	}{
		"static":                        {[]string{threeKnocks}, "portknock -c CONFIG sequence vps"},
		"rotating":                      {[]string{"Scheme rotating", keyFileSetting(t), "PortRange 20000-29999"}, "20000-29999/udp"},
		"another port than that of ssh": {[]string{threeKnocks, "OpenPorts 222"}, "portknock -c CONFIG sequence vps"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newDeployRig(t, append(tt.settings, "ConnectTimeout 2")...)
			r.drop(t, "meta l4proto { tcp, udp } th dport 1024-65535")
			out := r.deploy(t, 6, nil)
			_, failed, _ := strings.Cut(out, "portknock: vps: not deployed: ")
			reason, hints, _ := strings.Cut(failed, "\n")
			if !strings.HasSuffix(reason, ": no answer") || strings.Contains(reason, "portknock") || len(reason) > 120 {
				t.Errorf("the reason is %q", reason)
			}
			if want := "portknock: hint: if a firewall is in front of the server, it must let these ports through: " +
				strings.ReplaceAll(tt.ports, "CONFIG", r.profile) + "\nportknock: hint: the rules from before are in force\n"; hints != want {
				t.Errorf("the hints are\n%s\nwant\n%s", hints, want)
			}
			r.expect(t, r.attacker, lab.Open)
		})
	}
}

// TestDeployAfterALostRecord: each output names what is needed next, also for a profile whose script
// has another name on the server: the script, which the console needs; the whole command that
// replaces rules that this computer does not know; and the command that may follow undeploy.
func TestDeployAfterALostRecord(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	lab.EditFile(t, r.profile, "Host vps", "Host my-vps")
	r.config = r.proxyConfig(t, "portknock -c "+r.profile+" --profile my-vps %h %p")
	lab.EditFile(t, r.config, "Host vps", "Host vps my-vps")
	flags := "-c " + r.profile + " --ssh-config " + r.config
	out := r.client.Shell(t, "portknock deploy "+flags+" my-vps 2>&1")
	script := regexp.MustCompile(`(?m)^install   (/etc/portknock/\S+\.sh), which loads the rules at each boot$`).FindStringSubmatch(out)
	if script == nil {
		t.Fatalf("deploy does not name the installed script:\n%s", out)
	}
	r.expect(t, r.attacker, lab.Dropped)
	if err := os.RemoveAll(filepath.Join(filepath.Dir(r.profile), "deployed")); err != nil {
		t.Fatal(err)
	}
	r.server.Run(t, "sh", script[1], "unload")
	r.expect(t, r.attacker, lab.Open)

	lab.EditFile(t, r.profile, threeKnocks, otherKnocks)
	out = r.client.Shell(t, "portknock deploy "+flags+" --policy drop --format nftables my-vps 2>&1 || echo exit code $?")
	replace := regexp.MustCompile(`\nportknock: hint: if they are yours, run: (portknock .*)\nportknock: hint: if they are a colleague's, .*\nexit code 6\n`).FindStringSubmatch(out)
	if replace == nil {
		t.Fatalf("deploy does not name the command that replaces the rules:\n%s", out)
	}
	out = r.client.Shell(t, replace[1]+" 2>&1")
	if !strings.Contains(out, "flags     --policy drop\n") || !strings.Contains(out, "deployed  my-vps\n") {
		t.Errorf("%s prints\n%s", replace[1], out)
	}
	r.expect(t, r.attacker, lab.Dropped)

	out = r.client.Shell(t, "portknock undeploy "+flags+" my-vps")
	if !strings.HasSuffix(out, "\nnext      portknock -c "+r.profile+" profile remove my-vps, if you do not need the profile any more\n") {
		t.Errorf("undeploy does not name the next command:\n%s", out)
	}
	r.expect(t, r.attacker, lab.Open)
}
