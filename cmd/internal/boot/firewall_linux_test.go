package boot

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

func TestNftablesServiceGuardsPortFromBoot(t *testing.T) {
	t.Parallel()
	for _, release := range lab.Releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			m, client := newMachine(t, release)
			profile := lab.File(t, "config", "Host vps", "Sequence 7001/udp 8003/tcp")
			rules := filepath.Join(t.TempDir(), "rules")
			client.Run(t, "portknock", "emit-rules", "--force", "-c", profile, "--format", "nftables", "--output", rules, "vps")
			copyTo(t, m, rules, "/etc/nftables.conf", 0o600)
			// Debian's nftables.service does not say that it must start before sshd.
			write(t, m, "/etc/systemd/system/nftables.service.d/order.conf", "[Unit]\nBefore=ssh.service\n", 0o644)
			server := m.Boot(t)
			server.Run(t, "systemctl", "enable", "nftables.service")
			m.PowerCut()

			ssh := netip.AddrPortFrom(m.Addr(lab.IPv4), lab.GuardedPort)
			watch := client.WatchPort(t, ssh)
			m.Boot(t)
			if open, first, last := watch.Stop(t); open != 0 {
				t.Errorf("port 22 was open for %v, from %v to %v", open, first, last)
			}
			client.Knock(t, ssh.Addr(), knock.Sequence{{Transport: knock.UDP, Port: 7001}, {Transport: knock.TCP, Port: 8003}}...)
			if got := client.Probe(t, ssh); got != lab.Open {
				t.Errorf("port 22 is %v after the knocks", got)
			}
		})
	}
}
