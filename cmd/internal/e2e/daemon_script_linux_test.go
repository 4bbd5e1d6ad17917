package e2e

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// daemonScripts maps the formats with a daemon to the settings of two profiles, which
// open the same port with different secrets.
var daemonScripts = map[string]func(t testing.TB) (first, second []string){
	"knockd": func(testing.TB) ([]string, []string) {
		return []string{twoKnocks}, []string{"Sequence 7011/udp 8013/tcp"}
	},
	"fwknop": func(t testing.TB) ([]string, []string) {
		return fwknopSettings(t), otherFwknopSettings(t)
	},
	"fwknop tcp": func(t testing.TB) ([]string, []string) {
		return fwknopSettings(t, "SPAProtocol tcp"), append(otherFwknopSettings(t), "SPAProtocol tcp")
	},
}

func otherFwknopSettings(t testing.TB) []string {
	t.Helper()
	return []string{"Scheme fwknop", "KeyFile " + lab.File(t, "key", "another passphrase"),
		"HMACKeyFile " + lab.File(t, "hmac", "and another")}
}

// daemonRig is a rig with two profiles, and their scripts, for the same port. Openings
// last three seconds.
type daemonRig struct {
	*rig
	profiles, scripts [2]string
}

// eachDaemonScript runs a test in parallel for the formats that have a daemon.
func eachDaemonScript(t *testing.T, test func(t *testing.T, r *daemonRig)) {
	t.Parallel()
	for name, settings := range daemonScripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			firewall := fwknopd
			if name == "knockd" {
				firewall = firewallNamed("knockd")
			}
			lab.Require(t, firewall.Programs...)
			r := &daemonRig{rig: newListeningRig(t, firewall, lab.IPv4)}
			r.server.Run(t, "ip", "route", "add", "default", "via", r.client.Addr(lab.IPv4).String())
			first, second := settings(t)
			for i, more := range [][]string{first, second} {
				r.profiles[i] = r.vpsProfile(t, append(more, "OpenFor 3", "ConnectTimeout 3")...)
				r.scripts[i] = emitRules(t, r.server, firewall, r.profiles[i], "--script")
			}
			test(t, r)
		})
	}
}

// run runs a verb of a script on the server. The verb must succeed.
func (r *daemonRig) run(t testing.TB, script int, args ...string) string {
	t.Helper()
	return r.server.Run(t, "sh", append([]string{r.scripts[script]}, args...)...)
}

// fail runs a verb of a script, which must fail with a message that contains the text.
func (r *daemonRig) fail(t testing.TB, want string, script int, args ...string) {
	t.Helper()
	out, err := r.server.Try("sh", append([]string{r.scripts[script]}, args...)...)
	if err == nil || !strings.Contains(out, want) {
		t.Fatalf("%v: %v\n%s\nwant an error with %q", args, err, out, want)
	}
}

// expectOpener checks that the knocks of one profile open the closed port, and that those
// of the other profile do not.
func (r *daemonRig) expectOpener(t testing.TB, opener int) {
	t.Helper()
	r.awaitPort(t, time.Minute, r.client, lab.GuardedPort, lab.Dropped)
	if out, err := r.client.Try("portknock", "knock", "--wait", "-c", r.profiles[1-opener], "vps"); err == nil {
		t.Fatalf("profile %d opens the port, want profile %d\n%s", 1-opener, opener, out)
	}
	r.expectOpens(t, opener)
	r.expect(t, r.attacker, lab.Dropped)
}

// expectOpens checks that the knocks of a profile open the port. It repeats them if a busy
// machine needs longer than OpenFor.
func (r *daemonRig) expectOpens(t testing.TB, profile int) {
	t.Helper()
	lab.Await(t, time.Minute, func() string {
		r.client.Run(t, "portknock", "knock", "--wait", "-c", r.profiles[profile], "-o", "ConnectTimeout=10", "vps")
		if got := r.client.Probe(t, r.port(lab.GuardedPort)); got != lab.Open {
			return "after the knocks, port 22 is " + got.String()
		}
		return ""
	})
}

// daemons returns the command lines of the daemons on the server, sorted, with their
// process IDs.
func (r *daemonRig) daemons(t testing.TB) []string {
	t.Helper()
	out, _ := r.server.Try("pgrep", "-a", "-x", "(knockd|fwknopd)")
	return regexp.MustCompile(`(?m)^\d+ (knockd|fwknopd).* -p \S*`).FindAllString(out, -1)
}

func (r *daemonRig) expectDaemons(t testing.TB, want int) {
	t.Helper()
	got := r.daemons(t)
	instances := map[string]bool{} // an fwknopd with a TCP server has two processes
	for _, line := range got {
		instances[line[strings.LastIndex(line, "/daemon/"):]] = true
	}
	if len(instances) != want {
		t.Fatalf("%d daemons run, want %d:\n%s", len(instances), want, strings.Join(got, "\n"))
	}
}

func TestDaemonScriptReplacesDaemonAtLoad(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		r.run(t, 0, "test")
		r.expectDaemons(t, 0)
		r.run(t, 0, "load")
		r.expectOpener(t, 0)
		before := r.daemons(t)
		r.run(t, 0, "load")
		if after := r.daemons(t); strings.Join(before, "\n") != strings.Join(after, "\n") {
			t.Errorf("loading the same rules replaces the daemons %q by %q", before, after)
		}
		r.run(t, 1, "load")
		r.expectDaemons(t, 1)
		r.expectOpener(t, 1)
		r.run(t, 1, "unload")
		r.expectDaemons(t, 0)
		r.expect(t, r.attacker, lab.Open)
	})
}

func TestDaemonScriptTrialGoesBackByItself(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		r.run(t, 0, "load")
		left := func() string {
			out, _ := r.server.Try("sh", r.scripts[1], "status")
			if !strings.Contains(out, "trial      none") {
				return "the trial does not expire:\n" + out
			}
			return ""
		}
		begin := func(seconds int) { r.run(t, 1, "trial", strconv.Itoa(seconds)) }
		duringTrial(t, 15, begin, left, func(t testing.TB) { r.expectOpener(t, 1) })
		lab.Await(t, 2*time.Minute, left)
		r.expectOpener(t, 0)
		r.run(t, 1, "trial")
		r.expectOpener(t, 1)
		r.run(t, 1, "cancel")
		r.expectDaemons(t, 1)
		r.expectOpener(t, 0)
	})
}

func TestDaemonScriptKeepNeedsConnection(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		r.run(t, 0, "load")
		r.run(t, 1, "trial")
		r.fail(t, "no new connection has come through", 1, "keep")
		r.expectOpener(t, 1)
		r.run(t, 1, "keep")
		r.expectDaemons(t, 1)
		r.expectOpener(t, 1)
		if out := r.run(t, 1, "status"); !strings.Contains(out, "in force, unchanged") {
			t.Errorf("status prints\n%s", out)
		}
	})
}

// TestDaemonScriptTrialWithoutOldRules: when a trial ends and there were no rules before,
// the port is open, and the daemon has ended.
func TestDaemonScriptTrialWithoutOldRules(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		r.run(t, 0, "trial")
		r.expectOpener(t, 0)
		r.run(t, 0, "cancel")
		r.expectDaemons(t, 0)
		r.expect(t, r.attacker, lab.Open)
	})
}

// TestDaemonScriptThatCannotStartDaemonKeepsOldRules: after each fault, the old rules and
// their daemon are in force.
func TestDaemonScriptThatCannotStartDaemonKeepsOldRules(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		r.run(t, 0, "load")
		good := r.scripts[1]
		r.scripts[1] = emitRules(t, r.server, r.firewall, r.profiles[1], "--script", "--interface", "nope0")
		for _, verb := range []string{"test", "load", "trial"} {
			r.fail(t, "there is no interface nope0; emit the script with --interface", 1, verb)
		}
		r.scripts[1] = lab.File(t, "broken", regexp.MustCompile(`(?m)^(\tsequence =|KEY_BASE64 ).*`).ReplaceAllString(
			lab.ReadFile(t, good), "sequence no"))
		r.fail(t, "cannot read its file", 1, "test")
		r.fail(t, "does not run", 1, "load")
		r.expectDaemons(t, 1)
		r.expectOpener(t, 0)

		r.scripts[1] = good
		r.server.Run(t, "ip", "route", "del", "default")
		r.fail(t, "there is no default route", 1, "load")
		r.expectOpener(t, 0)
	})
}

func TestDaemonScriptTakesInterfaceOfDefaultRoute(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		r.server.Shell(t, "set -e; ip link set eth0 down; ip link set eth0 name wan7; "+
			"ip link set wan7 up; ip link add eth0 type veth peer name eth9; ip link set eth0 up; "+
			"ip route replace "+r.client.Addr(lab.IPv4).String()+" dev wan7; "+
			"ip route replace default via "+r.client.Addr(lab.IPv4).String()+" dev wan7")
		r.run(t, 0, "load")
		r.expectOpens(t, 0)
	})
}

// TestDaemonScriptLeavesOtherDaemonsAlone: no verb ends or changes a daemon that the
// script has not started: one of the server itself, or one in a container of the server.
func TestDaemonScriptLeavesOtherDaemonsAlone(t *testing.T) {
	t.Parallel()
	firewall := firewallNamed("knockd")
	lab.Require(t, firewall.Programs...)
	r := &daemonRig{rig: newListeningRig(t, firewall, lab.IPv4)}
	r.profile = r.vpsProfile(t, twoKnocks)
	r.scripts[0] = emitRules(t, r.server, firewall, r.profile, "--script", "--interface", "eth0")
	conf := lab.File(t, "knockd.conf", "[options]", "UseSyslog", "[door]", "sequence = 1000,2000,3000", "tcpflags = syn",
		"start_command = touch /run/door")
	own := r.server.Knockd(t, conf)
	container := r.server.Daemon(t, "unshare", "-npf", "--kill-child", "sh", "-c",
		"ip link set lo up && exec stdbuf -oL knockd -v -D -i lo -c "+conf+" -p /run/container.pid")
	container.Log.Await(t, "istening on lo", 1)
	for _, verb := range []string{"load", "trial", "cancel", "load", "unload"} {
		r.run(t, 0, verb)
	}
	for _, daemon := range []*lab.Daemon{own, container} {
		if daemon.ProcessState != nil || strings.Contains(daemon.Log.String(), "Re-reading") {
			t.Errorf("a daemon has ended or read its file again:\n%s", daemon.Log)
		}
	}
	if out := r.server.Run(t, "pgrep", "-x", "knockd"); strings.Count(out, "\n") != 2 {
		t.Errorf("the processes of knockd are %q, want two", out)
	}
}

// TestFormatWithoutDaemonEndsDaemon: the load of rules that judge knocks themselves ends the
// daemon of the profile, which would admit addresses to them. A trial does not end it.
func TestFormatWithoutDaemonEndsDaemon(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		after := emitScript(t, r.server, nftables, vpsProfile(t, newSettings()...), "vps")
		r.run(t, 0, "load")
		after.run(t, "trial", "60")
		r.expectDaemons(t, 1)
		after.run(t, "keep", "--force")
		r.expectDaemons(t, 0)
		r.expectGeneration(t, "after keep", "new")
		r.run(t, 0, "load")
		after.run(t, "load")
		r.expectDaemons(t, 0)
		r.run(t, 0, "load")
		after.run(t, "unload")
		r.expectDaemons(t, 0)
		r.expect(t, r.attacker, lab.Open)
	})
}

// TestDaemonScriptsOfTwoProfiles: a second script does not replace the daemon of a first
// one that is for another profile.
func TestDaemonScriptsOfTwoProfiles(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		text := lab.ReadFile(t, r.profiles[1])
		r.profiles[1] = lab.File(t, "config", strings.Replace(text, "Host vps", "Host web", 1)+"OpenPorts 8080\nPort 8080\n")
		if err := os.Chmod(r.profiles[1], 0o600); err != nil {
			t.Fatal(err)
		}
		r.server.Listen(t, 8080)
		r.scripts[1] = emitRulesFor(t, r.server, r.firewall, r.profiles[1], "--script", "web")
		r.run(t, 0, "load")
		r.run(t, 1, "load")
		r.expectDaemons(t, 2)
		r.client.Run(t, "portknock", "knock", "--wait", "-c", r.profiles[0], "-o", "ConnectTimeout=10", "vps")
		r.expectPort(t, r.client, 8080, lab.Dropped)
		r.attacker.Run(t, "portknock", "knock", "--wait", "-c", r.profiles[1], "-o", "ConnectTimeout=10", "web")
		r.run(t, 0, "unload")
		r.expectDaemons(t, 1)
		r.awaitPort(t, time.Minute, r.attacker, 8080, lab.Dropped)
		r.attacker.Run(t, "portknock", "knock", "--wait", "-c", r.profiles[1], "-o", "ConnectTimeout=10", "web")
	})
}

// TestDaemonScriptLaterKnocksProlongOpening: knocks of an admitted address begin its
// opening again.
func TestDaemonScriptLaterKnocksProlongOpening(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		text := strings.Replace(lab.ReadFile(t, r.profiles[0]), "OpenFor 3", "OpenFor 20", 1)
		r.profiles[0] = lab.File(t, "config", text)
		r.scripts[0] = emitRules(t, r.server, r.firewall, r.profiles[0], "--script")
		r.run(t, 0, "load")
		r.client.Run(t, "portknock", "knock", "--wait", "-c", r.profiles[0], "vps")
		left := func() int {
			match := regexp.MustCompile(`admitted +\S+ for (\d+) s`).FindStringSubmatch(r.run(t, 0, "status"))
			if match == nil {
				t.Fatal("status names no admitted address")
			}
			n, _ := strconv.Atoi(match[1])
			return n
		}
		lab.Await(t, time.Minute, func() string {
			if n := left(); n > 14 {
				return "the opening does not expire: " + strconv.Itoa(n) + " s are left"
			}
			return ""
		})
		r.client.Run(t, "portknock", "knock", "-c", r.profiles[0], "vps")
		lab.Await(t, time.Minute, func() string {
			if n := left(); n < 16 {
				return "the later knocks do not prolong the opening: " + strconv.Itoa(n) + " s are left"
			}
			return ""
		})
	})
}

// TestDaemonScriptBesideKernelProfile: a profile whose knocks the kernel judges, and one
// whose knocks a daemon judges, guard one port. Each admits its clients, in both orders
// of the loads, and the unload of one leaves the other in force.
func TestDaemonScriptBesideKernelProfile(t *testing.T) {
	eachDaemonScript(t, func(t *testing.T, r *daemonRig) {
		config := lab.File(t, "config", "Host kernel", "HostName "+r.addr().String(), "Sequence 1001/udp 2003/tcp 3005/udp")
		kernel := emitRulesFor(t, r.server, nftables, config, "--script", "kernel")
		verb := func(script, verb string) { r.server.Run(t, "sh", script, verb) }
		for _, order := range [][2]string{{r.scripts[0], kernel}, {kernel, r.scripts[0]}} {
			verb(order[0], "load")
			verb(order[1], "load")
			r.expect(t, r.attacker, lab.Dropped)
			if !r.admits(t, r.freshAddr(), sequence("1001/udp 2003/tcp 3005/udp")...) {
				t.Errorf("%s: the knocks that the kernel judges open nothing", order)
			}
			r.client.Run(t, "portknock", "knock", "--wait", "-c", r.profiles[0], "-o", "ConnectTimeout=10", "vps")
			r.expect(t, r.attacker, lab.Dropped)
			verb(order[0], "unload")
			r.expect(t, r.attacker, lab.Dropped)
			verb(order[1], "unload")
			r.awaitPort(t, time.Minute, r.attacker, lab.GuardedPort, lab.Open)
		}
	})
}
