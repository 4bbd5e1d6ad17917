package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// checkup is the output of portknock check --json, as far as tests read it.
type checkup struct {
	Steps []struct {
		Step, Verdict, Seen string
	}
	Causes []struct {
		ID      string
		Certain bool
		Cause   string
		Fix     string
	}
}

// ids returns the IDs of the causes.
func (c checkup) ids() (ids []string) {
	for _, cause := range c.Causes {
		ids = append(ids, cause.ID)
	}
	return ids
}

func (c checkup) String() string {
	var b strings.Builder
	for _, s := range c.Steps {
		fmt.Fprintf(&b, "%s %s %s\n", s.Verdict, s.Step, s.Seen)
	}
	for _, cause := range c.Causes {
		fmt.Fprintf(&b, "=> %s (certain: %v): %s\n", cause.ID, cause.Certain, cause.Cause)
	}
	return b.String()
}

// faultRig is a rig whose server has an installed guard, and to which ssh has an open connection.
// Openings last one second.
type faultRig struct {
	*rig
	master    string // socket of the open connection
	endMaster func()
	shift     string // error of the client's clock
}

// newFaultRig makes a faultRig with these settings of the profile.
func newFaultRig(t testing.TB, f lab.Firewall, settings ...string) *faultRig {
	t.Helper()
	lab.Require(t, append([]string{"ssh", "sshd", "ss"}, f.Programs...)...)
	r := &faultRig{rig: newEmptyRig(t, f, lab.IPv4), master: filepath.Join(t.TempDir(), "master")}
	f.Install(t, r.server)
	r.ownEtc(t)
	r.server.Run(t, "ip", "route", "add", "default", "via", r.client.Addr(lab.IPv4).String())
	r.sshd = r.server.SSHD(t, []uint16{lab.GuardedPort})
	r.useProfile(t, settings...)
	r.connectMaster(t)
	return r
}

// useProfile gives the client a profile with these settings.
func (r *faultRig) useProfile(t testing.TB, settings ...string) {
	t.Helper()
	r.useHost(t, r.addr().String(), settings...)
}

// useHost is useProfile for a host that has a name.
func (r *faultRig) useHost(t testing.TB, name string, settings ...string) {
	t.Helper()
	r.profile = vpsProfile(t, append(settings, "HostName "+name, "OpenFor 1", "ConnectTimeout 2")...)
	r.config = r.sshd.ClientConfig(t, "Host vps", "HostName "+name, "ProxyCommand portknock -c "+r.profile+" %h %p", "ControlPath "+r.master)
}

// connectMaster opens a connection of ssh that later calls of ssh use. The guard must not be
// loaded yet.
func (r *faultRig) connectMaster(t testing.TB) {
	t.Helper()
	config := r.sshd.ClientConfig(t, "HostName "+r.addr().String())
	c := r.client.Command("ssh", "-M", "-S", r.master, "-F", config, "-N", "vps")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	r.endMaster = c.End
	t.Cleanup(c.End)
	lab.Await(t, 20*time.Second, func() string {
		if out, err := r.client.Try("ssh", "-S", r.master, "-O", "check", "vps"); err != nil {
			return "no connection of ssh: " + out
		}
		return ""
	})
}

// install installs the guard of a profile with these settings on the server.
func (r *faultRig) install(t testing.TB, settings ...string) {
	t.Helper()
	s := emitScript(t, r.server, r.firewall, r.vpsProfile(t, append(settings, "OpenFor 1")...), "vps")
	s.run(t, "load")
	s.run(t, "install", "--force")
}

// check runs portknock check, and checks that the exit code fits the causes.
func (r *faultRig) check(t testing.TB, flags ...string) (c checkup) {
	t.Helper()
	args := append([]string{"PORTKNOCK_TEST_SHIFT=" + r.shift, "portknock", "check", "--json", "-c", r.profile, "--ssh-config", r.config}, flags...)
	var stderr lab.Log
	command := r.client.Command("env", append(args, "vps")...)
	command.Stderr = &stderr
	out, _ := command.Output()
	if err := json.Unmarshal(out, &c); err != nil {
		t.Fatalf("check prints invalid JSON: %v\n%s%s", err, out, stderr.String())
	}
	if code := command.ProcessState.ExitCode(); (code == 0) != (len(c.Causes) == 0) || code > 1 {
		t.Errorf("the exit code is %d, with the causes %q", code, c.ids())
	}
	if text := string(out) + stderr.String(); hasNumber(text, "7001", "8003", "9005") {
		t.Errorf("the output contains the port of a knock:\n%s", text)
	}
	return c
}

// drop makes the server lose packets before its guard sees them, as a firewall upstream does.
func (r *rig) drop(t testing.TB, match string) {
	t.Helper()
	r.server.Run(t, "nft", `add table inet upstream; add chain inet upstream in { type filter hook prerouting priority -400; };
		add rule inet upstream in `+match+` drop`)
}

// notAdmitted has the causes of faults that look alike from outside: the knocks arrive, and the
// port stays silent.
var notAdmitted = []string{"wrong-knocks", "other-key", "clock", "clock-behind", "clock-ahead", "expired", "daemon-dead", "spa-refused",
	"tokens-spent", "port-filtered"}

// fault is one of the faults that check must tell apart.
type fault struct {
	name    string
	prepare func(t testing.TB) *faultRig // returns a rig with the fault
	class   []string                     // IDs of the causes that look like the fault from outside
	exact   string                       // ID of the cause with --server
}

// faults are 19 faults.
func faults() []fault {
	guarded := func(t testing.TB, settings ...string) *faultRig {
		t.Helper()
		r := newFaultRig(t, nftables, settings...)
		r.install(t, settings...)
		return r
	}
	// another returns a rig whose server has a guard of another profile than the client.
	another := func(client, server string) func(t testing.TB) *faultRig {
		return func(t testing.TB) *faultRig {
			t.Helper()
			r := newFaultRig(t, nftables, client)
			r.install(t, server)
			return r
		}
	}
	rotating := func(t testing.TB) []string {
		t.Helper()
		_, settings := schedule(t, 10*time.Minute, time.Minute)
		return append(settings, "Scheme rotating", "Protocol tcp")
	}
	shifted := func(shift string) func(t testing.TB) *faultRig {
		return func(t testing.TB) *faultRig {
			t.Helper()
			r := guarded(t, rotating(t)...)
			r.shift = shift
			return r
		}
	}
	// named gives the server a name with addresses of both families.
	named := func(t testing.TB, r *faultRig, settings ...string) *faultRig {
		t.Helper()
		nameServer(t, r.client, "server.example.test", r.server)
		r.useHost(t, "server.example.test", settings...)
		return r
	}
	return []fault{
		{"no guard", func(t testing.TB) *faultRig { return newFaultRig(t, nftables, threeKnocks) }, []string{"no-guard"}, "no-guard"},
		{"guard lost at a reboot", func(t testing.TB) *faultRig {
			r := guarded(t, threeKnocks)
			r.server.Run(t, "nft", "delete", "table", "inet", "portknock")
			return r
		}, []string{"no-guard"}, "guard-lost"},
		{"wrong sequence", another(threeKnocks, "Sequence 7011/udp 8013/tcp 9015/udp"), notAdmitted, "wrong-knocks"},
		{"wrong order", another(threeKnocks, "Sequence 7001/udp 9005/udp 8003/tcp"), notAdmitted, "wrong-knocks"},
		{"wrong transport", another(threeKnocks, "Sequence 7001/udp 8003/udp 9005/udp"), notAdmitted, "wrong-knocks"},
		{"another key", func(t testing.TB) *faultRig {
			settings := rotating(t)
			r := guarded(t, settings...)
			settings[0] = "KeyFile " + lab.File(t, "key", knock.NewKey().Reveal())
			r.useProfile(t, settings...)
			return r
		}, notAdmitted, "other-key"},
		{"clock behind", shifted("-25m"), notAdmitted, "clock-behind"},
		{"clock ahead", shifted("25m"), notAdmitted, "clock-ahead"},
		{"expired", func(t testing.TB) *faultRig {
			_, settings := schedule(t, 4*time.Second, time.Second)
			settings = append(settings, "Scheme rotating", "Protocol tcp", "OpenFor 1")
			r := newFaultRig(t, nftables, settings[:len(settings)-1]...)
			s := emitScript(t, r.server, nftables, r.vpsProfile(t, settings...), "--horizon", "1s", "vps")
			s.run(t, "load")
			s.run(t, "install", "--force")
			end, err := strconv.ParseInt(regexp.MustCompile(`(?m)^until_vps=(\d+)$`).FindStringSubmatch(lab.ReadFile(t, s.file))[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			sleepInto(time.Unix(end, 0))
			return r
		}, notAdmitted, "expired"},
		{"UDP dropped upstream", func(t testing.TB) *faultRig {
			r := guarded(t, threeKnocks)
			r.drop(t, "meta l4proto udp")
			return r
		}, []string{"udp-filtered"}, "udp-filtered"},
		{"port filtered upstream", func(t testing.TB) *faultRig {
			r := guarded(t, threeKnocks)
			r.drop(t, "tcp dport 22 tcp flags syn / syn,ack")
			return r
		}, notAdmitted, "port-filtered"},
		{"IPv6 unguarded", func(t testing.TB) *faultRig {
			r := newFaultRig(t, firewallNamed("iptables-nft"), threeKnocks)
			r.install(t, threeKnocks)
			r.server.Shell(t, "ip6tables -w -t mangle -F PREROUTING && ip6tables -w -t mangle -F INPUT")
			return named(t, r, threeKnocks)
		}, []string{"ipv6-unguarded"}, "ipv6-unguarded"},
		{"IPv6 black hole", func(t testing.TB) *faultRig {
			r := named(t, guarded(t, threeKnocks), threeKnocks)
			r.drop(t, "meta nfproto ipv6")
			return r
		}, []string{"ipv6-unreachable"}, "ipv6-unreachable"},
		{"AAAA silent", func(t testing.TB) *faultRig {
			r := guarded(t, threeKnocks)
			serveDNS(t, r.client, "127.0.0.53:53", zone{"A server.example.test": {addr: r.addr().String()}, "AAAA server.example.test": {}})
			etc := filepath.Dir(lab.File(t, "resolv.conf", "nameserver 127.0.0.53"))
			r.client.Run(t, "mount", "--bind", filepath.Join(etc, "resolv.conf"), "/etc/resolv.conf")
			r.useHost(t, "server.example.test", threeKnocks)
			return r
		}, []string{"ipv6-lookup-silent"}, "ipv6-lookup-silent"},
		{"sshd down", func(t testing.TB) *faultRig {
			r := guarded(t, threeKnocks)
			r.server.Shell(t, "kill $(pgrep -o -x sshd)") // the listener; the open connection stays
			return r
		}, []string{"sshd-down", "sshd-elsewhere"}, "sshd-down"},
		{"sshd on another port", func(t testing.TB) *faultRig {
			r := guarded(t, threeKnocks)
			r.server.Shell(t, "kill $(pgrep -o -x sshd)")
			r.server.SSHD(t, []uint16{2200})
			return r
		}, []string{"sshd-down", "sshd-elsewhere"}, "sshd-elsewhere"},
		{"host off", func(t testing.TB) *faultRig {
			r := guarded(t, threeKnocks)
			r.server.Shell(t, dropAllInput)
			r.endMaster()
			return r
		}, []string{"host-off"}, "host-off"},
		{"daemon dead", func(t testing.TB) *faultRig {
			r := newFaultRig(t, firewallNamed("knockd"), threeKnocks)
			r.install(t, threeKnocks)
			r.server.Run(t, "pkill", "-x", "knockd")
			return r
		}, notAdmitted, "daemon-dead"},
		{"tokens spent", func(t testing.TB) *faultRig {
			settings, s := tokens(t, periodWithNowAt(t, middle), time.Minute)
			r := guarded(t, append(settings, "TokensPerWindow 2")...)
			s.Tokens = 2
			r.spend(t, s)
			return r
		}, notAdmitted, "tokens-spent"},
	}
}

// spend uses up all tokens of the current window from other addresses.
func (r *faultRig) spend(t testing.TB, s knock.Token) {
	t.Helper()
	sequences, _, err := s.At(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for i, sequence := range sequences {
		r.client.KnockFrom(t, r.client.Source(lab.IPv4, uint16(100+i)), r.addr(), sequence...)
	}
}

// TestCheckNamesFaults: for each fault, the first cause of check is in the class of faults that
// look alike from outside. With --server, it is the fault itself.
func TestCheckNamesFaults(t *testing.T) {
	t.Parallel()
	tested := map[string]int{} // number of faults that look like one of the class
	for _, f := range faults() {
		class := strings.Join(f.class, " ")
		if tested[class]++; tested[class] > 2 && !allScans {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			r := f.prepare(t)
			time.Sleep(1100 * time.Millisecond) // until openings of one second have expired in the kernel
			got := r.check(t)
			t.Logf("from outside:\n%v", got)
			if len(got.Causes) == 0 || !slices.Contains(f.class, got.Causes[0].ID) {
				t.Errorf("from outside, the causes are %q, want first one of %q", got.ids(), f.class)
			}
			got = r.check(t, "--server")
			t.Logf("with --server:\n%v", got)
			if len(got.Causes) == 0 || got.Causes[0].ID != f.exact {
				t.Errorf("with --server, the causes are %q, want first %q", got.ids(), f.exact)
			}
		})
	}
}

// TestCheckFindsNothingWrong: if a login works, check lists no cause, and its exit code is 0, with
// each scheme, and against servers with knockd or fwknopd. Then the daemon ends.
func TestCheckFindsNothingWrong(t *testing.T) {
	t.Parallel()
	fwknop := lab.Firewall{Name: "fwknop", Programs: []string{"fwknopd", "nft"}, Async: true}
	_, timed := schedule(t, 10*time.Minute, time.Minute)
	for _, tt := range []struct {
		name     string
		firewall lab.Firewall
		settings []string
	}{
		{"static", nftables, []string{threeKnocks}},
		{"rotating", nftables, append(timed, "Scheme rotating")},
		{"token", nftables, append(timed, "Scheme token")},
		{"knockd", firewallNamed("knockd"), []string{threeKnocks}},
		{"fwknop", fwknop, fwknopSettings(t)},
		{"fwknop tcp", fwknop, fwknopSettings(t, "SPAProtocol tcp")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newFaultRig(t, tt.firewall, tt.settings...)
			r.install(t, tt.settings...)
			for _, flags := range [][]string{nil, {"--server"}} {
				if got := r.check(t, flags...); len(got.Causes) != 0 {
					t.Errorf("with the flags %q, check finds\n%v", flags, got)
				}
			}
			if !tt.firewall.Async {
				return
			}
			r.server.Shell(t, "pkill -x '(knockd|fwknopd)'")
			time.Sleep(1100 * time.Millisecond) // until openings of one second have expired in the kernel
			got := r.check(t)
			if len(got.Causes) == 0 || tt.name != "fwknop tcp" && !slices.Contains(notAdmitted, got.Causes[0].ID) {
				t.Errorf("without the daemon, check finds\n%v", got)
			}
			if got := r.check(t, "--server"); len(got.Causes) == 0 || !slices.Contains(got.ids(), "daemon-dead") {
				t.Errorf("without the daemon, check --server finds\n%v", got)
			}
		})
	}
}

// TestCheckAgainstHandmadeKnockd: check finds nothing wrong on a server whose knockd has a file that
// a user has written, and names the class of the fault when that knockd has ended.
func TestCheckAgainstHandmadeKnockd(t *testing.T) {
	t.Parallel()
	firewall := firewallNamed("knockd")
	r := newFaultRig(t, firewall, threeKnocks)
	r.server.Shell(t, "iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT && iptables -A INPUT -p tcp --dport 22 -j DROP")
	knockd := r.server.Knockd(t, lab.File(t, "knockd.conf", "[options]", "UseSyslog", "[open]", "sequence = 7001:udp,8003:tcp,9005:udp",
		"seq_timeout = 5", "start_command = iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT", "cmd_timeout = 1",
		"stop_command = iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"))
	if got := r.check(t); len(got.Causes) != 0 {
		t.Errorf("check finds\n%v", got)
	}
	r.awaitPort(t, 10*time.Second, r.client, lab.GuardedPort, lab.Dropped)
	knockd.End()
	if got := r.check(t); len(got.Causes) == 0 || !slices.Contains(notAdmitted, got.Causes[0].ID) {
		t.Errorf("without knockd, check finds\n%v", got)
	}
}

// TestCheckNoticesMissingDeploy: if the profile has changed since it was deployed, check finds out
// that the server still has the rules from before.
func TestCheckNoticesMissingDeploy(t *testing.T) {
	t.Parallel()
	r := &faultRig{rig: newDeployRig(t, threeKnocks, "OpenFor 1", "ConnectTimeout 2")}
	r.deploy(t, 0, nil)
	lab.EditFile(t, r.profile, threeKnocks, "Sequence 7011/udp 8013/tcp 9015/udp")
	if got := r.check(t); len(got.Causes) == 0 || got.Causes[0].ID != "not-deployed" || !got.Causes[0].Certain {
		t.Errorf("check finds\n%v", got)
	}
}

// TestCheckLeadsLockedOutUsersToTheConsole: if the port of a deployed server stays silent, check
// names the script to run at the provider's console. It does not if this computer has not deployed
// the rules.
func TestCheckLeadsLockedOutUsersToTheConsole(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks, "OpenFor 1", "ConnectTimeout 2")
	r.deploy(t, 0, nil)
	r.drop(t, "udp dport 7001")
	const console = "if you cannot log in, run as root at the provider's console: sh /etc/portknock/vps.sh status\n" +
		"to open the port from the console: sh /etc/portknock/vps.sh unload\n"
	check := func(args ...string) string {
		t.Helper()
		command := append([]string{"check", "-c", r.profile, "--ssh-config", r.config}, args...)
		stdout, stderr, code := portknock(r.client, append(command, "vps")...)
		if code != exitFailed || !strings.Contains(stdout, "after the knocks: silent") {
			t.Errorf("check %q: exit code %d\n%s%s", args, code, stdout, stderr)
		}
		return stdout
	}
	if out := check(); !strings.HasSuffix(out, "\n\nif you can still log in: portknock check --server vps\n"+console) {
		t.Errorf("check does not end with the way to the console:\n%s", out)
	}
	if out := check("--server"); !strings.HasSuffix(out, "\n\n"+console) {
		t.Errorf("check --server, which cannot log in, does not end with the way to the console:\n%s", out)
	}
	if err := os.RemoveAll(filepath.Join(filepath.Dir(r.profile), "deployed")); err != nil {
		t.Fatal(err)
	}
	if out := check(); strings.Contains(out, "console:") {
		t.Errorf("check names a script that this computer has not installed:\n%s", out)
	}
}

// TestCheckScansFromOutside: --outside names the open ports, and the one where sshd answers.
func TestCheckScansFromOutside(t *testing.T) {
	t.Parallel()
	r := newFaultRig(t, nftables, threeKnocks)
	r.install(t, threeKnocks)
	r.server.Listen(t, 80)
	r.server.SSHD(t, []uint16{122})
	got := r.check(t, "--outside=1-130").String()
	for _, want := range []string{"2 open, 127 refused, 0 rejected, 1 silent", "open: 80 122 (sshd)"} {
		if !strings.Contains(got, want) {
			t.Errorf("check does not print %q:\n%s", want, got)
		}
	}
}
