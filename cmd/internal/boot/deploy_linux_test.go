package boot

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// site is a machine with sshd, a client that deploys to it, and a stranger, who never knocks.
// The profile is vps.
type site struct {
	machine          *lab.Machine
	server           *lab.Host // the machine since its last boot
	client, stranger *lab.Host
	config           string // file for ssh -F, without portknock
	profile          string // file with the profile
	nextIP           uint16 // number of further addresses of the client that have connected
}

// These profile settings are the sequences of most tests.
const (
	sequenceA = "Sequence 7001/udp 8003/tcp 9005/udp"
	sequenceB = "Sequence 1001/udp 2003/tcp 3005/udp"
)

// newSite boots a machine without a guard. Files that before writes are there at the boot.
func newSite(t *testing.T, release string, before ...func(*lab.Machine)) *site {
	t.Helper()
	lab.Require(t, "ssh")
	s := &site{client: lab.NewHost(t, "client"), stranger: lab.NewHost(t, "stranger"), profile: filepath.Join(t.TempDir(), "config")}
	m := lab.NewMachine(t, release, s.client, s.stranger)
	s.machine = m
	if err := build(); err != nil {
		t.Fatal(err)
	}
	s.edit(t, sequenceA)
	s.config = m.AuthorizeSSH(t).ClientConfig(t)
	for _, write := range before {
		write(m)
	}
	s.server = m.Boot(t)
	return s
}

// edit replaces the settings of the profile.
func (s *site) edit(t *testing.T, settings ...string) {
	t.Helper()
	text := "Host vps\nHostName " + s.machine.Addr(lab.IPv4).String() + "\n" + strings.Join(settings, "\n") + "\n"
	if err := os.WriteFile(s.profile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// port returns the address of the machine's sshd.
func (s *site) port() netip.AddrPort {
	return netip.AddrPortFrom(s.machine.Addr(lab.IPv4), lab.GuardedPort)
}

// command returns a command of portknock that changes servers.
func (s *site) command(verb string, args ...string) *lab.Cmd {
	return s.client.Command("portknock", append([]string{verb, "-c", s.profile, "--ssh-config", s.config}, args...)...)
}

// run runs a command of portknock to its end, without a terminal.
func (s *site) run(t *testing.T, code int, texts []string, verb string, args ...string) string {
	t.Helper()
	start := time.Now()
	out, err := s.command(verb, args...).CombinedOutput()
	t.Logf("%s %v: %v", verb, args, time.Since(start).Round(10*time.Millisecond))
	lab.ExpectEnd(t, err, string(out), code, texts...)
	return string(out)
}

// expect checks the state of port 22 for the stranger.
func (s *site) expect(t *testing.T, when string, want lab.State) {
	t.Helper()
	if got := s.stranger.Probe(t, s.port()); got != want {
		t.Errorf("%s: port 22 is %v, want %v", when, got, want)
	}
}

// state returns what a deploy changes on the server, one thing a line.
func (s *site) state(t *testing.T) []string {
	t.Helper()
	return strings.Split(s.server.Shell(t, `find /etc /run/portknock 2>/dev/null
systemctl list-units --all --plain --no-legend 'portknock*' 'knockd*' 'fwknop*'
nft list tables inet; iptables -w -t mangle -S; ip6tables -w -t mangle -S`), "\n")
}

// expectState checks that undeploy leaves the state that the server had before.
func (s *site) expectState(t *testing.T, before []string) {
	t.Helper()
	after := s.state(t)
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("undeploy leaves %s", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("undeploy has removed %s", line)
		}
	}
}

// expectLogin checks that ssh logs in through portknock, from an address that has not been
// admitted before.
func (s *site) expectLogin(t *testing.T, when, user string) {
	t.Helper()
	s.nextIP++
	proxy := fmt.Sprintf("ProxyCommand=portknock -c %s --profile vps -o BindAddress=%v -o ConnectTimeout=20 %%h %%p",
		s.profile, s.client.Source(lab.IPv4, s.nextIP))
	out, err := s.client.Try("ssh", "-F", s.config, "-o", proxy, user+"@"+s.port().Addr().String(), "echo in")
	if err != nil || !strings.Contains(out, "in\n") {
		t.Errorf("%s: ssh of %s: %v\n%s", when, user, err, out)
	}
}

// atTerminal runs a command of portknock at a terminal, and types lines.
func (s *site) atTerminal(t *testing.T, lines []string, code int, texts []string, verb string, args ...string) string {
	t.Helper()
	c := s.command(verb, args...)
	// The program setsid gives the command its standard input as the controlling terminal.
	c = s.client.Command("setsid", append([]string{"--ctty", "--wait"}, c.Args...)...)
	out, err := terminal(t, c, lines...)
	lab.ExpectEnd(t, err, out, code, texts...)
	return out
}

// noise is a start file of a shell that prints text without an end of line.
const noise = "echo Welcome; echo 'line 2' >&2; printf 'and no newline'\n"

// makeUsers adds users to a machine that is on. They log in with root's key.
const makeUsers = `set -e
user() {
	useradd -m -s "$2" "$1"
	printf '%s:%s\n' "$1" "$3" | chpasswd
	cp -r /root/.ssh "/home/$1/"
	chown -R "$1:" "/home/$1/.ssh"
}
user free /bin/bash unused
user asked /bin/bash 'Pass word$1'
usermod -aG sudo asked
user fishy /usr/bin/fish unused
user noisy /bin/bash unused
user nosudo /bin/bash 'Pass word$1'
user nologin /usr/sbin/nologin unused
user menu /bin/bash unused
# On Debian 12, the messages of sudo are in another language for this user.
mkdir -p /usr/share/locale/de/LC_MESSAGES
python3 -c '
import struct
texts = [b"", b"Content-Type: text/plain; charset=UTF-8\n", b"a password is required", b"ein Passwort ist notwendig"]
table, strings = [], b""
for i in 0, 2, 1, 3:
	table += len(texts[i]), 28 + 32 + len(strings)
	strings += texts[i] + b"\0"
open("/usr/share/locale/de/LC_MESSAGES/sudoers.mo", "wb").write(struct.pack("<7I8I", 0x950412de, 0, 2, 28, 44, 0, 60, *table) + strings)
'
cp /usr/share/locale/de/LC_MESSAGES/sudoers.mo /usr/share/locale/de/LC_MESSAGES/sudo.mo
echo 'export LANGUAGE=de LC_ALL=C.UTF-8' >/home/asked/.bashrc
for u in free fishy noisy; do echo "$u ALL=(ALL) NOPASSWD: ALL"; done >/etc/sudoers.d/lab
echo 'nosudo ALL=(ALL) NOPASSWD: /bin/true' >>/etc/sudoers.d/lab
for u in noisy root; do
	for f in .bashrc .profile .bash_profile; do cat /root/noise >"$(getent passwd $u | cut -d: -f6)/$f"; done
done
`

const menuScript = `#!/bin/sh
echo '1) status  2) quit'
while read -r line; do echo "$line: wrong choice"; done
`

// newLogins makes a site with users of several kinds. Its sshd has a banner, and allows one
// session in each connection.
func newLogins(t *testing.T, release string) *site {
	s := newSite(t, release, func(m *lab.Machine) {
		write(t, m, "/root/noise", noise, 0o600)
		write(t, m, "/root/menu", menuScript, 0o755)
		write(t, m, "/etc/banner", "Authorized users only: "+strings.Repeat("really. ", 30)+"\n", 0o644)
		write(t, m, "/etc/ssh/sshd_config.d/lab.conf", "MaxSessions 1\nBanner /etc/banner\n"+
			"Match User menu\nForceCommand /usr/local/bin/menu\n", 0o644)
	})
	s.server.Shell(t, makeUsers+"install -m 755 /root/menu /usr/local/bin/menu")
	return s
}

// TestDeployLogins: the first deploy, a login and undeploy work with each kind of user that may
// become root.
func TestDeployLogins(t *testing.T) {
	t.Parallel()
	for _, release := range lab.Releases {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			s := newLogins(t, release)
			for _, l := range []struct {
				name, user, before string
				password           string
			}{
				{name: "root", user: "root"},
				{name: "sudo without password", user: "free"},
				{name: "sudo with password", user: "asked", password: "Pass word$1"},
				{name: "sudo without password, fish", user: "fishy"},
				{name: "root, fish", user: "root", before: "chsh -s /usr/bin/fish root"},
				{name: "noisy shell", user: "noisy"},
			} {
				t.Run(l.name, func(t *testing.T) {
					if l.before != "" {
						s.server.Shell(t, l.before)
					}
					before := s.state(t)
					host := l.user + "@vps"
					change := func(verb string, texts ...string) string {
						if l.password != "" {
							return s.atTerminal(t, []string{l.password}, 0, append(texts, "Password of sudo on "+host), verb, host)
						}
						return s.run(t, 0, texts, verb, host)
					}
					out := change("deploy", "proved    the port does not answer", "proved    a new login", "deployed  vps")
					if l.password != "" && strings.Contains(out, l.password) {
						t.Errorf("the password is visible:\n%s", out)
					}
					s.expect(t, "after the deploy", lab.Dropped)
					s.expectLogin(t, "after the deploy", l.user)
					change("undeploy", "removed   vps")
					s.expect(t, "after undeploy", lab.Open)
					s.expectState(t, before)
				})
			}
		})
	}
}

// TestDeployRefusedLogins: if the user does not become root, deploy says why, ends within
// seconds, and changes nothing. No shell and no log sees a password.
func TestDeployRefusedLogins(t *testing.T) {
	t.Parallel()
	s := newLogins(t, lab.Releases[0]) // Debian 13 has no nologin in the image
	processes := s.server.Daemon(t, "sh", "-c", "while :; do ps -eo args >>/run/processes; sleep 0.1; done")
	for _, l := range []struct {
		name, user string
		password   string // no terminal if it is ""
		text       string
	}{
		{"wrong password", "asked", "wrong-guess", "sudo does not accept this password"},
		{"no terminal", "asked", "", "sudo wants a password; run this at a terminal"},
		{"no rights", "nosudo", "Pass word$1", "sudo does not allow this user to become root: Sorry, user nosudo is not allowed"},
		{"nologin", "nologin", "", "This account is currently not available"},
		{"menu", "menu", "", "1) status  2) quit"},
	} {
		t.Run(l.name, func(t *testing.T) {
			host := l.user + "@vps"
			start := time.Now()
			var out string
			if l.password != "" {
				out = s.atTerminal(t, []string{l.password}, 6, []string{l.text}, "deploy", host)
			} else {
				c := s.command("deploy", host)
				b, err := s.client.Command("setsid", append([]string{"--wait"}, c.Args...)...).CombinedOutput()
				out = string(b)
				lab.ExpectEnd(t, err, out, 6, l.text)
			}
			t.Logf("%v\n%s", time.Since(start), out)
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("the deploy took %v", took)
			}
			if n := strings.Count(out, "portknock: "+host); n != 1 {
				t.Errorf("the output has %d errors:\n%s", n, out)
			}
			s.expect(t, "afterwards", lab.Open)
		})
	}
	processes.End()
	found, _ := s.server.Try("sh", "-c", `journalctl --sync; { journalctl -b; cat /run/processes /home/*/.*history /root/.*history 2>/dev/null; } |
grep -e wrong-guess -e 'Pass word'; grep -rl -e wrong-guess /var/log /home /root /etc /run /tmp`)
	if found != "" {
		t.Errorf("the server has passwords:\n%s", found)
	}
}

// progress lists the lines that a deploy prints, one after each step.
var progress = []string{"server ", "new ", "trial ", "proved    the port", "proved    a new", "install ", "deployed "}

// start starts a deploy, and returns when it has printed a line with this text, or when it has
// ended. The function rest waits for the end, and returns all output.
func (s *site) start(t *testing.T, text string, args ...string) (c *lab.Cmd, rest func() string) {
	t.Helper()
	c = s.command("deploy", args...)
	out, came, lines := c.StartUntil(t, func(line string) bool { return strings.HasPrefix(line, text) })
	if !came {
		t.Fatalf("deploy does not print %q:\n%s", text, out)
	}
	return c, func() string {
		more, _ := io.ReadAll(lines)
		_ = c.Wait()
		return out + string(more)
	}
}

// admits reports whether the knocks of a sequence open port 22.
func (s *site) admits(t *testing.T, setting string) bool {
	t.Helper()
	sequence, err := knock.ParseSequence(strings.TrimPrefix(setting, "Sequence "))
	if err != nil {
		t.Fatal(err)
	}
	s.nextIP++
	from := s.client.Source(lab.IPv4, s.nextIP)
	s.client.KnockFrom(t, from, s.port().Addr(), sequence...)
	return s.client.ProbeFrom(t, from, s.port()) == lab.Open
}

// interrupt interrupts a deploy of other knocks after each step. Afterwards the client logs in
// with what it has, and the stranger never sees an open port. In the end, a deploy succeeds.
func (s *site) interrupt(t *testing.T, action func(c *lab.Cmd, rest func() string)) {
	t.Helper()
	settings := []string{sequenceA, sequenceB}
	s.edit(t, settings[0])
	s.run(t, 0, nil, "deploy", "vps")
	watch := s.stranger.WatchPort(t, s.port())
	for _, step := range progress {
		s.edit(t, settings[1])
		start := time.Now()
		action(s.start(t, step, "--trial", "2m", "vps"))
		s.expectLogin(t, "after "+step, "root")
		isOld, isNew := s.admits(t, settings[0]), s.admits(t, settings[1])
		t.Logf("%s: %v; old knocks: %v, new knocks: %v", step, time.Since(start).Round(10*time.Millisecond), isOld, isNew)
		if isOld == isNew {
			t.Errorf("after %s: the old knocks open the port: %v, and the new ones: %v", step, isOld, isNew)
		}
		switch step {
		case "server ", "new ", "trial ":
			if isNew {
				t.Errorf("after %s: the new knocks open the port", step)
			}
		case "deployed ":
			if !isNew {
				t.Errorf("after %s: the old knocks open the port", step)
			}
		}
		if isNew {
			// The client may have been killed before it has recorded what the server has. After the
			// next edit, it would not know these knocks any more.
			s.run(t, 0, nil, "deploy", "vps")
			settings[0], settings[1] = settings[1], settings[0]
		}
	}
	s.edit(t, settings[1])
	s.run(t, 0, []string{"proved    the port does not answer", "proved    a new login"}, "deploy", "vps")
	if open, first, last := watch.Stop(t); open != 0 {
		t.Errorf("port 22 was open for %v, from %v to %v", open, first, last)
	}
}

// awaitUnlocked waits until no deploy has its lock on the server any more.
func (s *site) awaitUnlocked(t *testing.T) {
	t.Helper()
	lab.Await(t, time.Minute, func() string {
		if out, err := s.server.Try("flock", "-n", "/run/portknock/deploy.lock", "true"); err != nil {
			return "the deploy still has its lock: " + out
		}
		return ""
	})
}

// TestInterruptedDeploy: whenever a deploy is interrupted, the client can log in, and the port
// is closed to strangers.
func TestInterruptedDeploy(t *testing.T) {
	t.Parallel()
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, lab.Releases[0])
		s.interrupt(t, func(c *lab.Cmd, _ func() string) {
			c.End()
			s.awaitUnlocked(t)
		})
	})
	t.Run("ssh killed", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, lab.Releases[1])
		s.interrupt(t, func(_ *lab.Cmd, rest func() string) {
			_, _ = s.client.Try("pkill", "-KILL", "-x", "ssh")
			if out := rest(); strings.Contains(out, "00:00:00") {
				t.Errorf("deploy prints\n%s", out)
			}
			s.awaitUnlocked(t)
		})
	})
	t.Run("power cut", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, lab.Releases[1])
		s.interrupt(t, func(c *lab.Cmd, _ func() string) {
			s.machine.PowerCut()
			c.End()
			s.server = s.machine.Boot(t)
		})
	})
}

// cut is a shell command that cuts the network of a host. With a port, it cuts only the
// connections from that port.
const cut = `for hook in ingress egress; do
	direction=sport
	[ $hook = egress ] || direction=dport
	nft "add table netdev cut; add chain netdev cut $hook { type filter hook $hook device eth0 priority 0; }
add rule netdev cut $hook ${1:+tcp $direction $1} drop"
done`

// TestDeployWithoutNetwork: if the network fails during a trial, the old knocks open the port
// when the trial has ended. If it fails when the server installs the rules, deploy asks the
// server as soon as the network is back. A computer that comes back with another address can
// deploy again after two minutes.
func TestDeployWithoutNetwork(t *testing.T) {
	t.Parallel()
	s := newSite(t, lab.Releases[1])
	s.run(t, 0, nil, "deploy", "vps")
	s.edit(t, sequenceB)

	_, rest := s.start(t, "trial ", "--trial", "30s", "vps")
	s.client.Run(t, "sh", "-c", cut)
	out := rest()
	s.client.Run(t, "nft", "delete table netdev cut")
	if !strings.Contains(out, "not deployed: ") || !strings.Contains(out, "the rules from before are in force at ") {
		t.Errorf("deploy prints\n%s", out)
	}
	s.expect(t, "without network in a trial", lab.Dropped)
	s.expectLogin(t, "without network in a trial", "root")
	lab.Await(t, 40*time.Second, func() string {
		if s.admits(t, sequenceB) {
			return "the new knocks open the port after the trial"
		}
		return ""
	})
	s.expectLogin(t, "after the trial", "root")
	s.expire(t)

	// The client is killed, and the server does not notice.
	c, _ := s.start(t, "trial ", "--trial", "2h", "vps")
	port := s.server.Shell(t, "ss -Htn state established sport = :22 | sed 's/.*://'")
	s.client.Run(t, "sh", "-c", cut, "sh", strings.TrimSpace(port))
	c.End()
	s.run(t, 6, []string{"another deploy to this server is running: root@client", "or for two minutes"}, "deploy", "vps")
	s.expire(t)
	s.run(t, 0, []string{"deployed  vps"}, "deploy", "vps")
	s.client.Run(t, "nft", "delete table netdev cut")
	if left := s.server.Shell(t, "ls /run/portknock | grep '^deploy[.][0-9A-Z]' || :"); left != "" {
		t.Errorf("deploy leaves %s", left)
	}

	s.edit(t, sequenceA)
	c, rest = s.start(t, "install ", "--trial", "2m", "vps")
	s.client.Run(t, "sh", "-c", cut)
	time.AfterFunc(40*time.Second, func() { _, _ = s.client.Try("nft", "delete table netdev cut") })
	out = rest()
	lab.ExpectEnd(t, c.Wait(), out, 0, "asking the server again", "deployed  vps")
	s.expect(t, "at the end", lab.Dropped)
	s.expectLogin(t, "at the end", "root")
}

// expire lets the lock of a deploy expire.
func (s *site) expire(t *testing.T) {
	t.Helper()
	s.server.Run(t, "touch", "-d", "-3 minutes", "/run/portknock/deploy.lock")
}

// strictFirewall is a file for nftables.conf. It closes all ports but 22, also those of the
// knocks.
const strictFirewall = `flush ruleset
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iif lo accept
		meta l4proto { icmp, ipv6-icmp } accept
		tcp dport 22 accept
	}
}
`

// TestDeployBesideFirewalls: a deploy works beside another firewall that closes the ports of
// the knocks. The port is closed to strangers at every moment of a reboot.
func TestDeployBesideFirewalls(t *testing.T) {
	t.Parallel()
	type firewall struct{ name, start, stop string }
	ufw := firewall{"ufw", "ufw allow 22/tcp && ufw --force enable && systemctl enable --now ufw", "systemctl disable --now ufw; ufw --force reset"}
	firewalld := firewall{"firewalld", "systemctl enable --now firewalld", "systemctl disable --now firewalld"}
	nftables := firewall{"nftables", "systemctl enable --now nftables", "systemctl disable --now nftables"}
	for release, firewalls := range map[string][]firewall{"bookworm": {firewalld, nftables}, "trixie": {nftables, ufw}} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, release, func(m *lab.Machine) { write(t, m, "/etc/nftables.conf", strictFirewall, 0o600) })
			for _, f := range firewalls {
				s.server.Shell(t, f.start)
				s.run(t, 0, []string{f.name + " manages the firewall", "proved    a new login", "deployed  vps"}, "deploy", "vps")
				s.expectLogin(t, "beside "+f.name, "root")
				watch := s.stranger.WatchPort(t, s.port())
				s.server = s.machine.Reboot(t)
				if open, first, last := watch.Stop(t); open != 0 {
					t.Errorf("%s: port 22 was open for %v, from %v to %v", f.name, open, first, last)
				}
				s.server.Shell(t, "systemctl is-active "+f.name)
				s.expect(t, "after a reboot, beside "+f.name, lab.Dropped)
				s.expectLogin(t, "after a reboot, beside "+f.name, "root")
				s.run(t, 0, nil, "undeploy", "vps")
				s.expect(t, "after undeploy, beside "+f.name, lab.Open)
				s.server.Shell(t, f.stop)
			}
		})
	}
}

// TestDeployFormats: a deploy, a login, changes and undeploy work with each format.
func TestDeployFormats(t *testing.T) {
	t.Parallel()
	spa := func() string {
		return "Scheme fwknop\nKeyFile " + lab.File(t, "key", rand.Text()) + "\nHMACKeyFile " + lab.File(t, "hmac", rand.Text())
	}
	type change struct{ format, first, second string }
	iptables := change{"iptables", sequenceA, sequenceB}
	for release, changes := range map[string][]change{
		"bookworm": {{"fwknop", spa(), spa()}, iptables},
		"trixie":   {{"knockd", sequenceA, sequenceB}, iptables},
	} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, release)
			// knockd and fwknopd need a default route.
			s.server.Run(t, "ip", "route", "add", "default", "via", s.client.Addr(lab.IPv4).String())
			for _, c := range changes {
				before := s.state(t)
				var args []string
				if c.format != "fwknop" {
					args = []string{"--format", c.format}
				}
				s.edit(t, c.first)
				s.run(t, 0, []string{"format " + c.format, "proved    a new login"}, "deploy", append(args, "vps")...)
				s.expect(t, c.format, lab.Dropped)
				s.expectLogin(t, c.format, "root")
				s.edit(t, c.second)
				s.expectLogin(t, c.format+" with a changed profile", "root")
				s.run(t, 0, []string{"proved    a new login"}, "deploy", append(args, "vps")...)
				s.expect(t, c.format+" changed", lab.Dropped)
				s.expectLogin(t, c.format+" changed", "root")
				s.client.Run(t, "portknock", "profile", "rotate", "-c", s.profile, "vps")
				s.expectLogin(t, c.format+" with a rotated profile", "root")
				s.run(t, 0, []string{"proved    a new login"}, "deploy", append(args, "vps")...)
				s.expectLogin(t, c.format+" rotated", "root")
				if c == iptables { // a deploy without --format keeps iptables
					s.run(t, 0, []string{"format iptables"}, "deploy", "--dry-run", "vps")
					s.run(t, 6, []string{"rules in both firewalls would admit nobody", "use --format iptables"}, "deploy", "--format", "nftables", "vps")
				}
				s.run(t, 0, nil, "undeploy", "vps")
				s.expect(t, c.format+" after undeploy", lab.Open)
				s.expectState(t, before)
			}
		})
	}
}

// TestDeployOfRefusedRules: if the server cannot load the new rules, or they would not open the
// port, the old ones stay in force.
func TestDeployOfRefusedRules(t *testing.T) {
	t.Parallel()
	s := newSite(t, lab.Releases[1])
	s.run(t, 0, nil, "deploy", "vps")
	token := "Scheme token\nKeyFile " + lab.File(t, "key", knock.NewKey().Reveal())
	wrapper := func(line string) string {
		return "printf '%s\n' '#!/bin/sh' " + "'" + line + "' 'exec /root/nft \"$@\"' >/usr/sbin/nft && chmod 755 /usr/sbin/nft"
	}
	s.server.Shell(t, "mv /usr/sbin/nft /root/nft; "+wrapper(":"))
	for _, c := range []struct {
		name, settings, nft, shift, text string
		args                             []string
	}{
		{name: "the kernel has no memory", settings: sequenceB, args: []string{"--format", "nftables"},
			nft:  `case "$*" in *portknock/rules) echo "rules:1:1-1: Error: Could not process rule: Cannot allocate memory" >&2; exit 1 ;; esac`,
			text: "hint: nft: Could not process rule: Cannot allocate memory"},
		{name: "nft is too old", settings: sequenceB, args: []string{"--format", "nftables"},
			nft: `[ "$1" != --version ] || { echo "nftables v0.9.8 (E.D.S.)"; exit; }`, text: "hint: nft 0.9.8 is too old"},
		{name: "nft does not start", settings: sequenceB, nft: "exit 127", text: "this server cannot load the rules of vps"},
		{name: "other format", settings: sequenceB, args: []string{"--format", "iptables"}, text: "the server has rules of portknock in nftables"},
		{name: "wrong clock", settings: token, shift: "-3m", text: "the clocks differ by 3m0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.edit(t, c.settings)
			s.server.Shell(t, wrapper(cmp.Or(c.nft, ":")))
			deploy := s.command("deploy", append(c.args, "--trial", "30s", "vps")...)
			deploy.Env = append(deploy.Env, "PORTKNOCK_TEST_SHIFT="+c.shift)
			start := time.Now()
			out, err := deploy.CombinedOutput()
			t.Logf("%v\n%s", time.Since(start), out)
			lab.ExpectEnd(t, err, string(out), 6, c.text)
			s.server.Shell(t, wrapper(":"))
			s.expect(t, "afterwards", lab.Dropped)
			s.expectLogin(t, "afterwards", "root")
			if !s.admits(t, sequenceA) {
				t.Error("the old knocks do not open the port")
			}
		})
	}
	s.run(t, 0, []string{"deployed  vps"}, "deploy", "vps")
	s.expectLogin(t, "at the end", "root")

	// Another computer does not know which format the server has.
	if err := os.RemoveAll(filepath.Join(filepath.Dir(s.profile), "deployed")); err != nil {
		t.Fatal(err)
	}
	s.server.Shell(t, wrapper("exit 127"))
	s.run(t, 6, []string{"the server has rules of portknock in nftables"}, "deploy", "vps")
	s.server.Shell(t, wrapper(":"))
	s.expectLogin(t, "after the deploy from another computer", "root")
}

// addHost gives the stranger an sshd and files of its own. Afterwards, ssh logs in to it by
// this name, and to vps with these settings.
func (s *site) addHost(t *testing.T, name string, settings ...string) {
	t.Helper()
	s.stranger.Shell(t, `mount -t tmpfs tmpfs /root && cp -a /etc /run/etc && mount --bind /run/etc /etc &&
mkdir -p /etc/cron.d && cp "$(command -v sleep)" /run/cron`)
	s.stranger.Daemon(t, "sh", "-c", "exec /run/cron 1000")
	config := s.stranger.SSHD(t, []uint16{lab.GuardedPort}).ClientConfig(t, "Host "+name, "HostName "+s.stranger.Addr(lab.IPv4).String())
	text := strings.Replace(lab.ReadFile(t, config), "Host *\n", "", 1)
	if len(settings) > 0 {
		text += "Host vps\n" + strings.Join(settings, "\n") + "\n"
	}
	s.config = lab.File(t, "ssh_config", text+lab.ReadFile(t, s.config))
}

// TestDeployToSeveralServers: deploys to two servers run at the same time. If one server fails,
// the other is deployed. A second deploy to a server that another one changes fails.
func TestDeployToSeveralServers(t *testing.T) {
	t.Parallel()
	s := newSite(t, lab.Releases[0])
	s.addHost(t, "web")
	s.edit(t, sequenceA, "Host web", "HostName "+s.stranger.Addr(lab.IPv4).String(), sequenceB)
	web := netip.AddrPortFrom(s.stranger.Addr(lab.IPv4), lab.GuardedPort)
	expectBoth := func(when string, want lab.State) {
		t.Helper()
		s.expect(t, when, want)
		s.nextIP++
		if got := s.client.ProbeFrom(t, s.client.Source(lab.IPv4, s.nextIP), web); got != want {
			t.Errorf("%s: port 22 of web is %v, want %v", when, got, want)
		}
	}
	s.run(t, 0, []string{"vps          deployed  vps", "web          deployed  web"}, "deploy", "--parallel", "2", "vps", "web")
	expectBoth("after the deploy", lab.Dropped)

	var results []struct{ Host, Result, Error string }
	nft := strings.TrimSpace(s.stranger.Shell(t, `readlink -f "$(command -v nft)"`))
	s.stranger.Run(t, "mount", "--bind", "/dev/null", nft)
	out, err := s.command("deploy", "--parallel", "2", "--json", "--format", "nftables", "web", "vps").Output()
	lab.ExpectEnd(t, err, string(out), 6)
	if err := json.Unmarshal(out, &results); err != nil || len(results) != 2 ||
		results[0].Host != "web" || results[0].Result != "not deployed" || results[0].Error == "" ||
		results[1].Host != "vps" || results[1].Result != "deployed" || results[1].Error != "" {
		t.Errorf("deploy --json prints %s, %v", out, err)
	}
	s.stranger.Run(t, "umount", nft)

	first, rest := s.start(t, "new ", "vps")
	s.run(t, 6, []string{"another deploy to this server is running: root@client"}, "deploy", "vps")
	out = []byte(rest())
	lab.ExpectEnd(t, first.Wait(), string(out), 0, "deployed  vps")
	s.run(t, 0, nil, "undeploy", "vps", "web")
	expectBoth("after undeploy", lab.Open)
}

// TestDeployThroughJumpHost: with ProxyJump, the knocks do not come from the jump host. deploy
// then fails, and its hint works.
func TestDeployThroughJumpHost(t *testing.T) {
	t.Parallel()
	s := newSite(t, lab.Releases[0])
	direct := s.config
	s.addHost(t, "jump", "HostName "+s.port().Addr().String(), "ProxyJump jump")
	s.run(t, 6, []string{"not deployed: ", "the rules from before are in force", "ssh uses the jump host jump",
		"replace ProxyJump by: ProxyCommand ssh jump portknock %h %p"}, "deploy", "vps")
	s.expect(t, "after the deploy with ProxyJump", lab.Open)

	lab.EditFile(t, s.config, "ProxyJump jump", fmt.Sprintf("ProxyCommand ssh -F %s jump %s -c %s --profile vps %%h %%p",
		s.config, filepath.Join(buildDir, "portknock"), s.profile))
	s.run(t, 0, []string{"proved    a new login", "deployed  vps"}, "deploy", "vps")
	if got := s.client.Probe(t, s.port()); got != lab.Dropped {
		t.Errorf("port 22 is %v for the client", got)
	}
	if out, err := s.client.Try("ssh", "-F", s.config, "vps", "echo in"); err != nil || !strings.Contains(out, "in\n") {
		t.Errorf("ssh through the jump host: %v\n%s", err, out)
	}
	s.run(t, 0, nil, "undeploy", "vps")
	s.config = direct
	s.expectLogin(t, "after undeploy", "root")
}
