package boot

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestInstalledDaemonScriptSurvivesReboot: after a power cut, the port is never open, and
// the knocks open it as soon as the server has a default route. The distribution's own
// service of the daemon is not enabled.
func TestInstalledDaemonScriptSurvivesReboot(t *testing.T) {
	t.Parallel()
	for _, release := range lab.Releases {
		for format, settings := range map[string][]string{
			"knockd": {"Sequence 7001/udp 8003/tcp"},
			"fwknop": {"Scheme fwknop", "KeyFile " + lab.File(t, "key", "a passphrase"), "HMACKeyFile " + lab.File(t, "hmac", "another one")},
		} {
			t.Run(release+"/"+format, func(t *testing.T) {
				t.Parallel()
				m, client := newMachine(t, release)
				server := m.Boot(t)
				addRoute := func() { server.Run(t, "ip", "route", "add", "default", "via", client.Addr(lab.IPv4).String()) }
				profile := lab.File(t, "config", append([]string{"Host vps", "HostName " + m.Addr(lab.IPv4).String()}, settings...)...)
				script := filepath.Join(t.TempDir(), "script")
				client.Run(t, "portknock", "emit-rules", "--force", "-c", profile, "--format", format, "--script", "--output", script, "vps")
				copyTo(t, m, script, "/root/guard.sh", 0o600)
				knock := func() {
					client.Run(t, "portknock", "knock", "--wait", "-c", profile, "-o", "ConnectTimeout=20", "vps")
				}
				addRoute()
				server.Run(t, "sh", "/root/guard.sh", "trial")
				knock()
				server.Run(t, "sh", "/root/guard.sh", "install")
				unit := "portknock-daemon-vps.a"
				if out := server.Run(t, "systemctl", "show", "-p", "ActiveState,NRestarts", unit); !strings.Contains(out, "NRestarts=0\nActiveState=active") {
					t.Errorf("the unit of the daemon is\n%s", out)
				}
				m.PowerCut()

				watch := client.WatchPort(t, netip.AddrPortFrom(m.Addr(lab.IPv4), lab.GuardedPort))
				server = m.Boot(t)
				time.Sleep(4 * time.Second) // the daemon is started again and again without a default route
				if open, first, last := watch.Stop(t); open != 0 {
					t.Errorf("port 22 was open for %v, from %v to %v", open, first, last)
				}
				addRoute()
				knock()
				out, err := server.Try("sh", "-c", "systemctl start portknock-watch; journalctl -b -p err -u 'portknock*'; sh /root/guard.sh status")
				if err != nil || strings.Contains(out, "loaded again") {
					t.Errorf("status: %v\n%s", err, out)
				}
				// The service manager starts a daemon that ends.
				server.Run(t, "systemctl", "kill", "-s", "KILL", unit)
				time.Sleep(5 * time.Second)
				knock()
				server.Run(t, "sh", "/root/guard.sh", "uninstall")
				if out := server.Run(t, "sh", "-c", "systemctl list-units --all --plain --no-legend 'portknock*'; pgrep -a 'knockd|fwknopd'; nft list ruleset; ls -d /run/portknock /etc/portknock 2>/dev/null; true"); out != "" {
					t.Errorf("uninstall leaves\n%s", out)
				}
			})
		}
	}
}

// TestDaemonScriptTrialGoesBackUnderSystemd: when a trial expires or is canceled, the old
// secret opens the port again, and the new one does not.
func TestDaemonScriptTrialGoesBackUnderSystemd(t *testing.T) {
	t.Parallel()
	for _, release := range lab.Releases {
		for format, settings := range map[string][2][]string{
			"knockd": {{"Sequence 7001/udp 8003/tcp"}, {"Sequence 7011/udp 8013/tcp"}},
			"fwknop": {
				{"Scheme fwknop", "KeyFile " + lab.File(t, "key", "a passphrase"), "HMACKeyFile " + lab.File(t, "hmac", "another one")},
				{"Scheme fwknop", "KeyFile " + lab.File(t, "key", "a third one"), "HMACKeyFile " + lab.File(t, "hmac", "a fourth one")},
			},
		} {
			t.Run(release+"/"+format, func(t *testing.T) {
				t.Parallel()
				m, client := newMachine(t, release)
				server := m.Boot(t)
				server.Run(t, "ip", "route", "add", "default", "via", client.Addr(lab.IPv4).String())
				var profiles [2]string
				for i, name := range []string{"/root/first.sh", "/root/second.sh"} {
					profiles[i] = lab.File(t, "config", append([]string{"Host vps", "OpenFor 2", "HostName " + m.Addr(lab.IPv4).String()}, settings[i]...)...)
					script := filepath.Join(t.TempDir(), "script")
					client.Run(t, "portknock", "emit-rules", "--force", "-c", profiles[i], "--format", format, "--script", "--output", script, "vps")
					copyTo(t, m, script, name, 0o600)
				}
				opens := func(i int) {
					t.Helper()
					client.Run(t, "portknock", "knock", "--wait", "-c", profiles[i], "-o", "ConnectTimeout=15", "vps")
					time.Sleep(3 * time.Second) // the opening expires
					if out, err := client.Try("portknock", "knock", "--wait", "-c", profiles[1-i], "-o", "ConnectTimeout=2", "vps"); err == nil {
						t.Fatalf("secret %d opens the port\n%s", 1-i, out)
					}
				}
				server.Run(t, "sh", "/root/first.sh", "load")
				opens(0)
				server.Run(t, "sh", "/root/second.sh", "trial", "14")
				opens(1)
				time.Sleep(12 * time.Second)
				opens(0)
				server.Run(t, "sh", "/root/second.sh", "trial")
				opens(1)
				server.Run(t, "sh", "/root/second.sh", "cancel")
				opens(0)
				server.Run(t, "sh", "/root/second.sh", "trial")
				opens(1)
				server.Run(t, "sh", "/root/second.sh", "keep")
				opens(1)
				if out := server.Run(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "portknock-daemon*"); strings.Count(out, "\n") != 1 {
					t.Errorf("the units of daemons are\n%s", out)
				}
				server.Run(t, "sh", "/root/second.sh", "status")
			})
		}
	}
}
