package e2e

import (
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// newDeployRig makes a rig whose server has an sshd, and files of its own in /etc, so that
// scripts can be installed there.
func newDeployRig(t testing.TB, settings ...string) *rig {
	t.Helper()
	r := newRig(t, nftables, lab.IPv4, settings...)
	r.server.Shell(t, `cp -a /etc /run/etc && mount --bind /run/etc /etc && mkdir -p /etc/cron.d && cp "$(command -v sleep)" /run/cron`)
	cron := r.server.Command("sh", "-c", "exec /run/cron 1000")
	if err := cron.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cron.End)
	return r
}

// TestDeployFirstTime: deploy guards a server that had no guard, and a client can log in.
func TestDeployFirstTime(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	out, err := r.client.Try("portknock", "deploy", "-c", r.profile, "--ssh-config", r.config, "vps")
	t.Logf("%v\n%s", err, out)
	r.login(t)
	r.expect(t, r.attacker, lab.Dropped)
}
