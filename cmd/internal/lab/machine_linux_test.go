package lab

import (
	"net"
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
			config := m.AuthorizeSSH(t).ClientConfig(t, "HostName "+server.Addr(IPv6).String())
			if got := client.Run(t, "ssh", "-F", config, "server", "hostname; ls /usr/local/bin"); got != "server\n" {
				t.Errorf("ssh printed %q", got)
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

func TestWatchPortSeesShortOpening(t *testing.T) {
	t.Parallel()
	client, server := NewHost(t, "client"), NewHost(t, "server")
	Link(t, server, client)
	for _, f := range Families {
		to := addrPort(server.Addr(f), 80)
		w := client.WatchPort(t, to)
		time.Sleep(50 * time.Millisecond)
		before := time.Now()
		listener := Socket(t, server, func() (net.Listener, error) { return net.Listen("tcp", to.String()) })
		opened := time.Now()
		time.Sleep(200 * time.Millisecond)
		closing := time.Now()
		must(t, listener.Close())
		after := time.Now()
		time.Sleep(50 * time.Millisecond)
		open, first, last := w.Stop(t)
		t.Logf("%v: open for %v", f, open)
		const tolerance = 100 * time.Millisecond
		shortest, longest := closing.Sub(opened)-tolerance, after.Sub(before)+tolerance
		if open < shortest || open > longest {
			t.Errorf("%v: open for %v, not from %v to %v", f, open, shortest, longest)
		}
		if first.Before(before) || last.After(after) || !first.Before(last) {
			t.Errorf("%v: open from %v to %v, not within %v to %v", f, first, last, before, after)
		}
	}
	w := client.WatchPort(t, addrPort(server.Addr(IPv4), 81))
	time.Sleep(20 * time.Millisecond)
	if open, first, last := w.Stop(t); open != 0 || !first.IsZero() || !last.IsZero() {
		t.Errorf("a closed port was open for %v, from %v to %v", open, first, last)
	}
}

func TestWatchPortSeesBootFromFirstMoment(t *testing.T) {
	t.Parallel()
	client := NewHost(t, "client")
	m := NewMachine(t, Releases[0], client)
	w := client.WatchPort(t, addrPort(m.Addr(IPv6), 22))
	start := time.Now()
	m.Boot(t)
	booted := time.Now()
	m.Reboot(t)
	reboot := time.Since(booted)
	open, first, last := w.Stop(t)
	t.Logf("open after %v, for %v; last before the end by %v; reboot in %v", first.Sub(start), open, time.Since(last), reboot)
	if first.Before(start) || open <= 0 || open > time.Since(first) {
		t.Errorf("open for %v, from %v to %v", open, first, last)
	}
}
