package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// newInstallRig makes a rig whose server has files of its own in /etc, and a process that
// looks like cron, so that scripts can be installed there. The machine needs no service
// manager: the tests run the verbs that it would run.
func newInstallRig(t testing.TB, f lab.Firewall) *rig {
	t.Helper()
	r := newListeningRig(t, f, lab.IPv4)
	r.ownEtc(t)
	return r
}

// ownEtc gives the server files of its own in /etc, and a process that looks like cron.
func (r *rig) ownEtc(t testing.TB) {
	t.Helper()
	r.server.Shell(t, `cp -a /etc /run/etc && mount --bind /run/etc /etc && mkdir -p /etc/cron.d && cp "$(command -v sleep)" /run/cron`)
	cron := r.server.Command("sh", "-c", "exec /run/cron 1000")
	if err := cron.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cron.End)
}

// installed returns the installed script of the profile vps.
func (s script) installed() script {
	s.file = "/etc/portknock/vps.sh"
	return s
}

// whileRunWaits runs a verb of the installed script while another run has the lock. The
// function then changes what is installed.
func (r *rig) whileRunWaits(t testing.TB, s script, verb string, change func()) {
	t.Helper()
	holder := r.server.Command("sh", "-c", "exec 9>/run/portknock/lock && flock 9 && exec sleep 1000")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer holder.End()
	lab.Await(t, time.Minute, func() string {
		if _, err := r.server.Try("flock", "-n", "/run/portknock/lock", "true"); err == nil {
			return "the lock is free"
		}
		return ""
	})
	words := s.installed().words(verb)
	waiting := r.server.Command(words[0], words[1:]...)
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, time.Minute, func() string {
		if out, _ := r.server.Try("pgrep", "-f", "flock -n 9|sleep 1$"); out == "" {
			return "the verb does not wait for the lock"
		}
		return ""
	})
	change()
	holder.End()
	if err := waiting.Wait(); err != nil {
		t.Errorf("%s returns %v", verb, err)
	}
}

// holdingLock returns a script whose verbs run under a lock that the caller has.
func (s script) holdingLock() script {
	s.command = append([]string{"env", "PORTKNOCK_LOCKED=1"}, s.command...)
	return s
}

// TestWaitingWatchdogObeysInstall: a boot or watch loads nothing if another run has replaced or
// uninstalled its script while it waited for the lock.
func TestWaitingWatchdogObeysInstall(t *testing.T) {
	lab.Require(t, "flock", "pgrep")
	eachShell(t, func(t *testing.T, shell []string) {
		r := newInstallRig(t, nftables)
		before := r.emitScript(t, vpsProfile(t, oldSettings()...)).with(shell)
		after := r.emitScript(t, vpsProfile(t, newSettings()...)).with(shell)
		for _, verb := range []string{"boot", "watch"} {
			before.run(t, "load")
			before.run(t, "install")
			r.whileRunWaits(t, before, verb, func() {
				after.holdingLock().run(t, "load")
				after.holdingLock().run(t, "install")
			})
			r.expectGeneration(t, "after "+verb+" of a script that another one has replaced", "new")
			r.whileRunWaits(t, after, verb, func() { after.holdingLock().run(t, "uninstall") })
			r.expectGeneration(t, "after "+verb+" of a script that was uninstalled", "none")
		}
	})
}

// TestProfileWithNameOfTemporaryFile: the files of a profile outlive the cleaning of
// temporary files, whose names are like that of the profile.
func TestProfileWithNameOfTemporaryFile(t *testing.T) {
	t.Parallel()
	r := newInstallRig(t, nftables)
	profile := strings.ReplaceAll(lab.ReadFile(t, vpsProfile(t, oldSettings()...)), "Host vps", "Host rules test")
	s := r.emitScript(t, lab.File(t, "config", profile), "rules", "test")
	s.run(t, "load")
	s.run(t, "install")
	before := r.server.Shell(t, "cd /run/portknock && ls")
	s.run(t, "test")
	s.run(t, "load")
	if after := r.server.Shell(t, "cd /run/portknock && ls"); after != before {
		t.Errorf("the files of the profiles were\n%s\nand are\n%s", before, after)
	}
	s.run(t, "uninstall")
	if left := r.server.Shell(t, "ls -d /run/portknock /etc/portknock /etc/cron.d/portknock 2>/dev/null || :"); left != "" {
		t.Errorf("uninstall leaves %s", left)
	}
}

// TestInstallIsAllOrNothing: install does not keep a trial if it cannot install all profiles
// that it was asked for.
func TestInstallIsAllOrNothing(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r := newInstallRig(t, nftables)
		before := r.emitScript(t, vpsProfile(t, oldSettings()...)).with(shell)
		profile := vpsProfile(t, newSettings("Host web", "Sequence 1000/udp 2000/udp 3000/udp", "OpenPorts 8080")...)
		after := r.emitScript(t, profile, "vps", "web").with(shell)
		before.run(t, "load")
		after.run(t, "trial", "60", "vps")
		if !r.admits(t, r.freshAddr(), newKnocks...) {
			t.Fatal("the new knocks do not open port 22")
		}
		after.refused(t, "the rules of web in this script are not loaded", "install")
		after.refused(t, "takes no profiles", "keep", "web")
		after.refused(t, "this script has: vps, web", "load", "nobody")
		after.run(t, "cancel")
		r.expectGeneration(t, "after install failed", "old")

		after.run(t, "trial", "60", "vps")
		if !r.admits(t, r.freshAddr(), newKnocks...) {
			t.Fatal("the new knocks do not open port 22")
		}
		after.run(t, "install", "vps")
		r.expectGeneration(t, "after install", "new")
		if got := r.server.Shell(t, "cd /etc/portknock && ls"); got != "each\nvps.sh" && got != "each\nvps.sh\n" {
			t.Errorf("install writes %q", got)
		}
		after.run(t, "uninstall")
		after.run(t, "uninstall")
		r.expectGeneration(t, "after uninstall", "none")
	})
}

// TestOtherFirewallTakesOver: a script for the other firewall warns of a profile that both
// would guard, and names the command that unloads it. The watchdog of the installed script
// does not load its rules beside those of the other firewall, until these are gone.
func TestOtherFirewallTakesOver(t *testing.T) {
	t.Parallel()
	for _, f := range []lab.Firewall{nftables, firewallNamed("iptables-nft")} {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			lab.Require(t, "nft", "iptables-nft", "ip6tables-nft")
			other := nftables
			if f.Name == nftables.Name {
				other = firewallNamed("iptables-nft")
			}
			r := newInstallRig(t, f)
			other.Install(t, r.server)
			before := r.emitScript(t, vpsProfile(t, oldSettings()...))
			after := emitScript(t, r.server, other, vpsProfile(t, newSettings()...), "vps")
			before.run(t, "load")
			before.run(t, "install")
			const unload = "sh /etc/portknock/vps.sh unload"
			if out := after.run(t, "test"); !strings.Contains(out, "; first run: "+unload+"\n") {
				t.Errorf("no warning of the rules in the other firewall: %q", out)
			}
			r.server.Shell(t, unload)
			after.run(t, "load")
			before.installed().run(t, "watch")
			r.expectGeneration(t, "after watch of the installed script", "new")
			after.run(t, "unload")
			r.server.Shell(t, ": >/run/portknock/unloaded")
			before.installed().run(t, "watch")
			r.expectGeneration(t, "after the rules of the other firewall were unloaded", "old")
			r.server.Shell(t, unload)

			after.run(t, "load")
			after.run(t, "install")
			if out := after.run(t, "load"); out != "loaded: vps\n" {
				t.Errorf("load prints %q", out)
			}
			if left, err := r.server.Try("ls", "/etc/portknock/vps.proved"); err == nil {
				t.Errorf("install leaves %s, whose rules would stay beside the new ones", left)
			}
			after.run(t, "uninstall")
			r.expectGeneration(t, "after uninstall", "none")
		})
	}
}
