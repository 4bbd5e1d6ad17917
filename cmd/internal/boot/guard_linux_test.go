package boot

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// guarded is a machine on which a script guards port 22.
type guarded struct {
	machine *lab.Machine
	server  *lab.Host // the machine since its last boot
	client  *lab.Host
	format  string
	profile string // file with the profiles vps and web
	knocks  knock.Sequence
	nextIP  uint16 // number of further addresses of the client that have knocked
}

// newGuarded boots a machine. Its sshd is open to everyone.
func newGuarded(t *testing.T, release, format string) *guarded {
	t.Helper()
	m, client := newMachine(t, release)
	g := &guarded{machine: m, client: client, format: format}
	g.change(t, "7001/udp 8003/tcp 9005/udp")
	g.server = m.Boot(t)
	return g
}

// change writes the profiles. The sequence is for vps.
func (g *guarded) change(t *testing.T, sequence string) {
	t.Helper()
	var err error
	if g.knocks, err = knock.ParseSequence(sequence); err != nil {
		t.Fatal(err)
	}
	g.profile = lab.File(t, "config", "Host vps", "Sequence "+sequence,
		"Host web", "Sequence 7011/udp 8013/tcp 9015/udp", "OpenPorts 2222/tcp")
}

// script puts a script for profiles on the machine. The arguments are flags and names.
func (g *guarded) script(t *testing.T, path string, args ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script")
	g.client.Run(t, "portknock", append([]string{"emit-rules", "-c", g.profile, "--format", g.format, "--script", "--output", file}, args...)...)
	copyTo(t, g.machine, file, path, 0o600)
}

// install puts a script on the machine, loads and installs it.
func (g *guarded) install(t *testing.T, path string, args ...string) {
	t.Helper()
	g.script(t, path, args...)
	g.server.Shell(t, "sh "+path+" load && sh "+path+" install")
}

// ssh returns the address of the machine's sshd.
func (g *guarded) ssh() netip.AddrPort { return netip.AddrPortFrom(g.machine.Addr(lab.IPv4), 22) }

// expect checks the state of port 22 for a client that has not knocked.
func (g *guarded) expect(t *testing.T, when string, want lab.State) {
	t.Helper()
	if got := g.client.Probe(t, g.ssh()); got != want {
		t.Errorf("%s: port 22 is %v, want %v\n%s", when, got, want, g.state(t))
	}
}

// state returns what helps to find a fault.
func (g *guarded) state(t *testing.T) string {
	t.Helper()
	out, _ := g.server.Try("sh", "-c", "sh /etc/portknock/vps.sh status; systemctl status portknock.service; journalctl -b -o short-precise | grep -i -e portknock -e nft | tail -40")
	return out
}

// expectAdmits checks that the knocks open port 22 to an address that has not knocked yet.
func (g *guarded) expectAdmits(t *testing.T, when string) {
	t.Helper()
	g.nextIP++
	from := g.client.Source(lab.IPv4, g.nextIP)
	g.client.KnockFrom(t, from, g.ssh().Addr(), g.knocks...)
	lab.Await(t, time.Minute, func() string {
		if got := g.client.ProbeFrom(t, from, g.ssh()); got != lab.Open {
			return fmt.Sprintf("%s: port 22 is %v after the knocks", when, got)
		}
		return ""
	})
}

// during runs an action on the machine, and returns for how long port 22 was open.
func (g *guarded) during(t *testing.T, action func()) time.Duration {
	t.Helper()
	watch := g.client.WatchPort(t, g.ssh())
	action()
	open, _, _ := watch.Stop(t)
	return open
}

// eachRelease runs a test on each release of Debian, for each of the formats.
func eachRelease(t *testing.T, formats []string, test func(*testing.T, *guarded)) {
	t.Parallel()
	for _, release := range lab.Releases {
		for _, format := range formats {
			t.Run(release+"/"+format, func(t *testing.T) {
				t.Parallel()
				test(t, newGuarded(t, release, format))
			})
		}
	}
}

// kernelFormats are the formats that need no daemon.
var kernelFormats = []string{"nftables", "iptables"}

// TestInstalledGuardSurvivesRebootsAndFlushingServices: an installed guard is in force from
// the first moment of each boot, and stays in force when another firewall's service starts,
// reloads or stops.
func TestInstalledGuardSurvivesRebootsAndFlushingServices(t *testing.T) {
	eachRelease(t, kernelFormats, func(t *testing.T, g *guarded) {
		g.expect(t, "before the installation", lab.Open)
		g.install(t, "/root/vps.sh", "vps")
		g.expect(t, "after the installation", lab.Dropped)
		shell := func(line string) func() {
			return func() {
				if out, err := g.server.Try("sh", "-c", line); err != nil {
					t.Errorf("%s: %v\n%s", line, err, out)
				}
			}
		}
		// firewalld flushes the tables of iptables, also when it starts at boot.
		firewalldFlushes := time.Duration(0)
		if g.format == "iptables" {
			firewalldFlushes = 1
		}
		for _, step := range []struct {
			name    string
			flushes time.Duration // how often the unit flushes all rules
			do      func()
		}{
			{"reboot", 0, func() { g.server = g.machine.Reboot(t) }},
			{"power cut", 0, func() { g.machine.PowerCut(); g.server = g.machine.Boot(t) }},
			{"start of nftables", 1, shell("systemctl start nftables")},
			{"reload of nftables", 1, shell("systemctl reload nftables")},
			{"20 reloads of nftables", 20, shell("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do systemctl reload nftables; done")},
			{"restart of nftables", 2, shell("systemctl restart nftables")},
			{"stop of nftables", 1, shell("systemctl stop nftables")},
			{"start of firewalld", firewalldFlushes, shell("systemctl start firewalld && firewall-cmd --add-service=ssh")},
			{"restart of firewalld", 2 * firewalldFlushes, shell("systemctl restart firewalld")},
			{"stop of firewalld", firewalldFlushes, shell("systemctl stop firewalld")},
			{"ufw", 0, shell("ufw allow 22/tcp && ufw --force enable && ufw reload && ufw disable")},
			{"reboot with nftables and firewalld enabled", firewalldFlushes, func() {
				shell("systemctl enable nftables firewalld")()
				g.server = g.machine.Reboot(t)
			}},
		} {
			start := time.Now()
			open := g.during(t, step.do)
			// A unit that flushes loads the guard again in its next command.
			if open > step.flushes*time.Second {
				t.Errorf("%s: port 22 was open for %v", step.name, open)
			}
			t.Logf("%s: %v, port 22 open for %v", step.name, time.Since(start).Round(time.Millisecond), open)
			g.expect(t, "after "+step.name, lab.Dropped)
		}
		g.server.Shell(t, "systemctl disable --now firewalld; systemctl reset-failed")
		g.expectAdmits(t, "at the end")
	})
}

// TestWatchdogRepairsFlushWithinMinute: if a program flushes the rules and no service
// repairs them, the timer does so within a minute, and the log says for how long the port
// was open.
func TestWatchdogRepairsFlushWithinMinute(t *testing.T) {
	eachRelease(t, kernelFormats, func(t *testing.T, g *guarded) {
		g.install(t, "/root/vps.sh", "vps")
		flush := "nft flush ruleset"
		if g.format == "iptables" {
			flush = "iptables -t mangle -F; ip6tables -t mangle -F"
		}
		watch := g.client.WatchPort(t, g.ssh())
		g.server.Shell(t, flush)
		lab.Await(t, 70*time.Second, func() string {
			if g.client.Probe(t, g.ssh()) != lab.Dropped {
				return "port 22 is open"
			}
			return ""
		})
		open, _, _ := watch.Stop(t)
		t.Logf("port 22 was open for %v", open)
		if open == 0 || open > 65*time.Second {
			t.Errorf("port 22 was open for %v", open)
		}
		lab.Await(t, time.Minute, func() string {
			log := g.server.Shell(t, "journalctl -b -p err -o cat")
			if !strings.Contains(log, "profile vps") || !strings.Contains(log, "22/tcp") {
				return "the log does not name the profile and its ports:\n" + log
			}
			return ""
		})
		g.expectAdmits(t, "after the repair")
	})
}

// TestRulesThatCannotBeLoaded: if the installed rules cannot be loaded at boot, the script
// loads the rules installed before them. Without these, it closes the port or leaves it
// open, as --on-failure says.
func TestRulesThatCannotBeLoaded(t *testing.T) {
	eachRelease(t, kernelFormats, func(t *testing.T, g *guarded) {
		broken := "sed -i 's/^table inet portknock {$/table nonsense portknock {/; s/ -m recent --name portknock_vps_open / -m nonsense /' /etc/portknock/vps.sh"
		for _, tt := range []struct {
			flag string
			want lab.State
		}{{"closed", lab.Dropped}, {"open", lab.Open}} {
			g.install(t, "/root/"+tt.flag+".sh", "--on-failure", tt.flag, "vps")
			g.server.Shell(t, broken+"; rm -f /etc/portknock/vps.proved")
			g.server = g.machine.Reboot(t)
			g.expect(t, "--on-failure "+tt.flag, tt.want)
			if log := g.server.Shell(t, "journalctl -b -p err -o cat"); !strings.Contains(log, "cannot load the installed rules") {
				t.Errorf("--on-failure %s: the log is\n%s", tt.flag, log)
			}
		}
		// The old script stays as vps.proved when other rules are installed.
		g.install(t, "/root/old.sh", "vps")
		g.install(t, "/root/new.sh", "--log", "vps")
		g.server.Shell(t, broken)
		g.server = g.machine.Reboot(t)
		g.expect(t, "with the rules installed before", lab.Dropped)
		g.expectAdmits(t, "with the rules installed before")
	})
}

// TestTrialEndsWithPower: if the power fails during a trial, the installed rules are in
// force after the boot. If it fails after install, the new rules are.
func TestTrialEndsWithPower(t *testing.T) {
	eachRelease(t, kernelFormats, func(t *testing.T, g *guarded) {
		g.install(t, "/root/vps.sh", "vps")
		old := g.knocks
		for _, tt := range []struct {
			name, verbs string
			kept        bool
		}{
			{"during a trial", "sh /root/new.sh trial 600", false},
			{"after keep", "sh /root/new.sh trial 600 && sh /root/new.sh keep --force", false},
			{"after install", "sh /root/new.sh trial 600 && sh /root/new.sh install --force", true},
		} {
			g.change(t, "1001/udp 2003/tcp 3005/udp")
			g.script(t, "/root/new.sh", "vps")
			g.server.Shell(t, tt.verbs)
			g.machine.PowerCut()
			g.server = g.machine.Boot(t)
			if !tt.kept {
				g.knocks = old
			}
			g.expect(t, "power cut "+tt.name, lab.Dropped)
			g.expectAdmits(t, "power cut "+tt.name)
		}
	})
}

// TestProfilesAreInstalledAndRemovedOneByOne: profiles that two scripts install are both in
// force after a boot. Unload lasts until the next boot, and uninstall leaves nothing.
func TestProfilesAreInstalledAndRemovedOneByOne(t *testing.T) {
	eachRelease(t, kernelFormats, func(t *testing.T, g *guarded) {
		before := g.server.Shell(t, "find /etc /run/portknock | sort; systemctl list-unit-files --no-legend | sort")
		web := netip.AddrPortFrom(g.machine.Addr(lab.IPv4), 2222)
		expect := func(when string, vps, other lab.State) {
			t.Helper()
			g.expect(t, when, vps)
			if got := g.client.Probe(t, web); got != other {
				t.Errorf("%s: port 2222 is %v, want %v", when, got, other)
			}
		}
		g.install(t, "/root/vps.sh", "vps")
		g.install(t, "/root/web.sh", "web")
		g.server = g.machine.Reboot(t)
		expect("after a boot", lab.Dropped, lab.Dropped)
		g.expectAdmits(t, "after a boot")
		g.server.Shell(t, "sh /root/vps.sh unload && systemctl start portknock-watch.service")
		expect("after unload", lab.Open, lab.Dropped)
		g.server = g.machine.Reboot(t)
		expect("after unload and a boot", lab.Dropped, lab.Dropped)
		g.server.Shell(t, "sh /root/vps.sh uninstall")
		expect("after uninstall", lab.Open, lab.Dropped)
		g.server = g.machine.Reboot(t)
		expect("after uninstall and a boot", lab.Open, lab.Dropped)
		g.server.Shell(t, "sh /root/web.sh uninstall")
		expect("after both", lab.Open, lab.Refused)
		g.server = g.machine.Reboot(t)
		after := g.server.Shell(t, "find /etc /run/portknock | sort; systemctl list-unit-files --no-legend | sort")
		if after != before {
			t.Errorf("uninstall changed the machine. Before:\n%s\nAfter:\n%s", before, after)
		}
	})
}

// dockerLike is a unit like that of Docker: it starts late, after the firewalls, and adds
// rules of its own.
const dockerLike = `[Unit]
After=network-online.target nftables.service firewalld.service
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c "iptables -t nat -N DOCKER; iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER"
ExecStop=/bin/sh -c "iptables -t nat -F; iptables -t nat -X"

[Install]
WantedBy=multi-user.target
`

// TestUnitsCauseNoOrderingCycle: systemd starts all units although ssh.socket, firewalld and
// a unit like Docker's are enabled. In a cycle, systemd would leave one of them out.
func TestUnitsCauseNoOrderingCycle(t *testing.T) {
	eachRelease(t, kernelFormats, func(t *testing.T, g *guarded) {
		g.install(t, "/root/vps.sh", "vps")
		write(t, g.machine, "/etc/systemd/system/docker.service", dockerLike, 0o644)
		g.server.Shell(t, "systemctl disable ssh; systemctl enable ssh.socket firewalld docker")
		open := g.during(t, func() { g.server = g.machine.Reboot(t) })
		if open != 0 && g.format != "iptables" || open > time.Second { // firewalld flushes iptables
			t.Errorf("port 22 was open for %v", open)
		}
		g.server.Shell(t, "firewall-cmd --add-service=ssh")
		for _, unit := range []string{"sockets.target", "ssh.socket", "firewalld", "docker", "portknock"} {
			if out, err := g.server.Try("systemctl", "is-active", unit); err != nil {
				t.Errorf("%s is %s", unit, out)
			}
		}
		if out, _ := g.server.Try("sh", "-c", "systemd-analyze verify default.target 2>&1 | grep -i cycle"); out != "" {
			t.Errorf("cycles: %s", out)
		}
		g.expectAdmits(t, "behind ssh.socket")
		open = g.during(t, func() { g.server.Shell(t, "systemctl restart docker") })
		if open != 0 {
			t.Errorf("port 22 was open for %v while docker restarted", open)
		}
	})
}

// TestFlusherInstalledLaterGetsDropIn: the watchdog notices a firewall that was installed
// after the guard.
func TestFlusherInstalledLaterGetsDropIn(t *testing.T) {
	eachRelease(t, []string{"nftables"}, func(t *testing.T, g *guarded) {
		g.server.Shell(t, "mv /lib/systemd/system/nftables.service /root; systemctl daemon-reload")
		g.install(t, "/root/vps.sh", "vps")
		g.server.Shell(t, "mv /root/nftables.service /lib/systemd/system && systemctl start portknock-watch.service")
		g.server.Shell(t, "systemctl restart nftables")
		g.expect(t, "after a restart of nftables", lab.Dropped)
	})
}

// TestTrialOutlivesServices: neither the service nor the watchdog ends a trial, unless
// another program has removed its rules.
func TestTrialOutlivesServices(t *testing.T) {
	eachRelease(t, kernelFormats, func(t *testing.T, g *guarded) {
		g.install(t, "/root/vps.sh", "vps")
		old := g.knocks
		g.change(t, "1001/udp 2003/tcp 3005/udp")
		g.script(t, "/root/new.sh", "vps")
		g.server.Shell(t, "sh /root/new.sh trial 600 && systemctl start portknock-watch.service && systemctl reload portknock.service")
		g.expectAdmits(t, "by the rules on trial")
		g.server.Shell(t, "nft flush ruleset; systemctl start portknock-watch.service")
		g.knocks = old
		g.expect(t, "after a flush during a trial", lab.Dropped)
		g.expectAdmits(t, "by the old rules after a flush during a trial")
	})
}

// TestInstalledScriptRefreshesItsRules: a script with --refresh replaces its rules, and keeps
// them if it cannot make new ones.
func TestInstalledScriptRefreshesItsRules(t *testing.T) {
	eachRelease(t, kernelFormats, func(t *testing.T, g *guarded) {
		write(t, g.machine, "/root/config", "Host vps\nScheme rotating\nKeyFile key\nPeriod 10\nSkew 1\n", 0o600)
		g.server.Shell(t, "portknock keygen /root/key && cd /root && umask 077 && "+
			"portknock emit-rules -c config --format "+g.format+" --script --refresh vps >vps.sh && sh vps.sh load && sh vps.sh install")
		id := func() string { return g.server.Shell(t, "grep ^id= /etc/portknock/vps.sh") }
		first := id()
		lab.Await(t, time.Minute, func() string {
			g.server.Shell(t, "echo 0 >/run/portknock/vps.refreshed; systemctl start portknock-watch.service")
			if id() == first {
				return "the script has no new rules"
			}
			return ""
		})
		g.expect(t, "after a refresh", lab.Dropped)
		g.server.Shell(t, "mv /root/key /root/lost; echo 0 >/run/portknock/vps.refreshed; systemctl start portknock-watch.service || :")
		g.expect(t, "after a refresh without the key", lab.Dropped)
		if log := g.server.Shell(t, "journalctl -b -p err -o cat"); !strings.Contains(log, "cannot refresh the rules") {
			t.Errorf("the log is %q", log)
		}
	})
}

// TestPowerCutDuringInstall: if the power fails at any moment of trial and install, the old
// or the new rules are in force after the boot.
func TestPowerCutDuringInstall(t *testing.T) {
	eachRelease(t, kernelFormats, func(t *testing.T, g *guarded) {
		g.install(t, "/root/vps.sh", "vps")
		sequences := []string{"7001/udp 8003/tcp 9005/udp", "1001/udp 2003/tcp 3005/udp"}
		for i := range 6 {
			g.change(t, sequences[(i+1)%2])
			g.script(t, "/root/new.sh", "vps")
			after := time.Duration(i) * 120 * time.Millisecond
			install := g.server.Command("sh", "-c", "sh /root/new.sh trial 600 && sh /root/new.sh install --force")
			if err := install.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after) // the moment of the power cut
			g.machine.PowerCut()
			_ = install.Wait()
			g.server = g.machine.Boot(t)
			g.expect(t, fmt.Sprintf("power cut %v after the start of trial", after), lab.Dropped)
			admits := 0
			for _, s := range sequences {
				steps, err := knock.ParseSequence(s)
				if err != nil {
					t.Fatal(err)
				}
				g.nextIP++
				from := g.client.Source(lab.IPv4, g.nextIP)
				g.client.KnockFrom(t, from, g.ssh().Addr(), steps...)
				if g.client.ProbeFrom(t, from, g.ssh()) == lab.Open {
					admits++
				}
			}
			if admits != 1 {
				t.Errorf("power cut %v after the start of trial: %d of 2 sequences open the port\n%s", after, admits, g.state(t))
			}
		}
	})
}
