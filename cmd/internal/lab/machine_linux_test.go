package lab

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestMachineKeepsFilesAndLosesRules(t *testing.T) {
	t.Parallel()
	for _, release := range Releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			client := NewHost(t, "client")
			m := NewMachine(t, release, client)
			t.Logf("machine after %v", time.Since(start))
			start = time.Now()
			server := m.Boot(t)
			t.Logf("boot in %v", time.Since(start))
			if got := strings.TrimSpace(server.Run(t, "systemctl", "is-system-running")); got != "running" {
				t.Errorf("the system is %q\n%s", got, server.Run(t, "systemctl", "--failed"))
			}
			for _, f := range Families {
				if got := client.Probe(t, addrPort(server.Addr(f), 22)); got != Open {
					t.Errorf("%v: port 22 is %v", f, got)
				}
			}
			must(t, os.WriteFile(m.Path("/etc/from-outside"), []byte("1\n"), 0o644))
			server.Shell(t, "cat /etc/from-outside >/root/kept; nft add table inet lost; nft list table inet lost")
			start = time.Now()
			server = m.Reboot(t)
			t.Logf("reboot in %v", time.Since(start))
			check := func(after string) {
				t.Helper()
				if rules := server.Run(t, "nft", "list", "ruleset"); rules != "" {
					t.Errorf("rules after %s: %s", after, rules)
				}
			}
			check("a reboot")
			if got := server.Shell(t, "cat /root/kept; nft add table inet lost"); got != "1\n" {
				t.Errorf("the file after a reboot: %q", got)
			}
			server.Shell(t, "echo 2 >/root/kept")
			m.PowerCut()
			if got := ReadFile(t, m.Path("/root/kept")); got != "2\n" {
				t.Errorf("the file after a power cut: %q", got)
			}
			server = m.Boot(t)
			check("a power cut")
			if got := server.Shell(t, "cat /root/kept"); got != "2\n" {
				t.Errorf("the file after a power cut and a boot: %q", got)
			}
			m.PowerOff(t)
		})
	}
}
