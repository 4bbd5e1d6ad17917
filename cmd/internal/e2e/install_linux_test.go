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
	r.server.Shell(t, `cp -a /etc /run/etc && mount --bind /run/etc /etc && mkdir -p /etc/cron.d && cp "$(command -v sleep)" /run/cron`)
	cron := r.server.Command("sh", "-c", "exec /run/cron 1000")
	if err := cron.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cron.End)
	return r
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
	lab.Await(t, 10*time.Second, func() string {
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
	lab.Await(t, 10*time.Second, func() string {
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

// TestWaitingWatchdogObeysInstall: a boot or watch of a script that is no longer installed
// when it gets the lock loads nothing.
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
