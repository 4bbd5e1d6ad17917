package boot

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// serverAddress is a further address of the server. README uses it too.
const serverAddress = "203.0.113.7"

// password is the password of users on the server.
const password = "Pass word$1"

// newcomer is a user of the client who has a new home folder, with an ssh key and nothing of
// portknock, and types at a shell.
type newcomer struct {
	*site
	*shell
	name, login string // user of the client, and of the server
}

// newNewcomer adds a user to a client where portknock is installed, and boots a server with the
// name vps, to which the user can log in as login today. setUp is a shell script that makes other
// settings of the server. Its argument is login.
func newNewcomer(t *testing.T, release, name, login, setUp string) *newcomer {
	t.Helper()
	n := &newcomer{name: name, login: login, site: newSite(t, release, func(m *lab.Machine) {
		write(t, m, "/etc/hostname", "vps\n", 0o644)
		write(t, m, "/etc/hosts", "127.0.0.1 localhost vps\n", 0o644)
	})}
	// ssh takes the home folder from /etc/passwd, so the client needs a user of its own.
	n.client.Run(t, "sh", "-ec", `mount -t tmpfs -o mode=755 tmpfs /home
cp -a /etc /run/etc
mount --bind /run/etc /etc
useradd -m -k /var/empty -s /bin/bash "$1"
mount -t tmpfs -o mode=755 tmpfs /usr/local/bin
install -m 755 "$2" /usr/local/bin/portknock`, "sh", name, filepath.Join(buildDir, "portknock"))
	n.addAddress(t)
	key := n.as(t, "mkdir -m 700 .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519 && cat .ssh/id_ed25519.pub")
	// A restart ends when sshd listens, unlike a reload.
	n.server.Run(t, "sh", "-ec", `[ "$1" = root ] || useradd -m -s /bin/bash "$1"
echo "$1:$3" | chpasswd
`+setUp+`
systemctl restart ssh
home=$(getent passwd "$1" | cut -d: -f6)
mkdir -p "$home/.ssh"
echo "$2" >>"$home/.ssh/authorized_keys"
touch "$home/.hushlogin"
chown -R "$1:" "$home"`, "sh", login, key, password)
	n.as(t, "ssh-keyscan -H "+serverAddress+" 2>/dev/null >.ssh/known_hosts") // the user has logged in before
	n.shell = newShell(t, n.client, name)
	return n
}

// addAddress gives the server the address serverAddress, which it loses at each boot.
func (n *newcomer) addAddress(t *testing.T) {
	t.Helper()
	n.server.Run(t, "ip", "address", "add", serverAddress+"/32", "dev", "eth0")
	n.client.Run(t, "ip", "route", "replace", serverAddress, "via", n.port().Addr().String())
}

// as runs a line of shell as the user.
func (n *newcomer) as(t *testing.T, line string) string {
	t.Helper()
	return n.client.Run(t, "setpriv", "--reuid", n.name, "--regid", n.name, "--init-groups", "--reset-env", "sh", "-ec", "cd; "+line)
}

// nextLine matches the line of an output that names the next command.
var nextLine = regexp.MustCompile(`(?m)^next +(.+)$`)

// follow types a command, and then the commands that the output names as the next ones, until ssh
// has logged in. It returns the last command.
func (n *newcomer) follow(t *testing.T, command string) (ssh string) {
	t.Helper()
	start, next := time.Now(), []string{command}
	for range 6 {
		if len(next) == 0 {
			t.Fatalf("the output does not name the next command:\n%s", n.all())
		}
		if command, next = next[0], next[1:]; strings.HasPrefix(command, "ssh ") {
			n.logIn(t, command)
			t.Logf("%v until %s has logged in", time.Since(start).Round(10*time.Millisecond), command)
			return command
		}
		out := n.run(t, command)
		if strings.Contains(out, "write USER@vps") {
			next = []string{strings.Replace(command, "vps", n.host(), 1)}
		}
		if lines := nextLine.FindAllStringSubmatch(out, -1); lines != nil {
			next = nil
			for _, line := range lines {
				next = append(next, line[1])
			}
		}
	}
	t.Fatalf("no login after six commands:\n%s", n.all())
	return ""
}

// run types a command, and the password whenever the command asks for one. It returns all output.
func (n *newcomer) run(t *testing.T, command string) string {
	t.Helper()
	out := n.enter(t, command)
	for strings.HasSuffix(out, ": ") {
		out += n.enter(t, password)
	}
	if strings.HasSuffix(out, "? ") {
		t.Fatalf("%s asks a question:\n%s", command, n.all())
	}
	return out
}

// host returns the server as the user names it for ssh.
func (n *newcomer) host() string {
	if n.login == n.name {
		return "vps"
	}
	return n.login + "@vps"
}

// logIn types the command ssh. Afterwards, the shell is that of the server until exit.
func (n *newcomer) logIn(t *testing.T, ssh string) {
	t.Helper()
	if out := n.run(t, ssh); !strings.HasSuffix(out, n.login+"@vps:~$ ") && !strings.HasSuffix(out, n.login+"@vps:~# ") {
		t.Fatalf("%s does not log in:\n%s", ssh, n.all())
	}
}

// expectGuard checks that the port is silent for the stranger, and that the user can log in.
func (n *newcomer) expectGuard(t *testing.T, when, ssh string) {
	t.Helper()
	n.expect(t, when, lab.Dropped)
	start := time.Now()
	n.logIn(t, ssh)
	t.Logf("%s: %s takes %v", when, ssh, time.Since(start).Round(10*time.Millisecond))
	n.enter(t, "exit")
}

// TestQuickStart: a user who has nothing but an ssh login runs one command, and then the commands
// that the outputs name. They lead to a login through a guard that survives a reboot and a power
// cut. Then the user changes the knocks, and removes everything.
func TestQuickStart(t *testing.T) {
	t.Parallel()
	const address = "--host " + serverAddress + " vps"
	const freeSudo = `echo "$1 ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/lab`
	for _, u := range []struct {
		release, name, login, setUp string
		config                      string // ~/.ssh/config
		first                       string // arguments of profile add
	}{
		{release: "bookworm", name: "alice", login: "alice", setUp: freeSudo, first: "--ssh-config " + address},
		{release: "trixie", name: "alice", login: "alice", setUp: freeSudo, first: address},
		{release: "trixie", name: "bob", login: "bob", setUp: `usermod -aG sudo "$1"`, first: "--ssh-config " + address},
		{release: "bookworm", name: "carol", login: "root", setUp: "echo PasswordAuthentication no >/etc/ssh/sshd_config.d/lab.conf",
			first: "--ssh-config " + address},
		{release: "trixie", name: "dave", login: "dave", setUp: freeSudo + "; echo PubkeyAuthentication no >/etc/ssh/sshd_config.d/lab.conf",
			config: "Host vps\n    HostName " + serverAddress + "\n", first: "--ssh-config vps"},
	} {
		t.Run(u.release+"/"+u.name, func(t *testing.T) {
			t.Parallel()
			n := newNewcomer(t, u.release, u.name, u.login, u.setUp)
			if u.config != "" {
				n.as(t, "printf %s '"+u.config+"' >.ssh/config")
			}
			before := n.state(t)
			n.expect(t, "before", lab.Open)
			ssh := n.follow(t, "portknock profile add "+u.first)
			if u.release == "bookworm" && u.name == "alice" {
				record(t, n.shell, "portknock: from nothing to a login")
			}
			n.enter(t, "exit")
			n.testBoots(t, ssh)
			n.testRotation(t, ssh)
			n.testRemoval(t, before)
			if u.config != "" {
				n.logIn(t, "ssh vps")
			} else if out := n.run(t, "ssh vps"); !strings.Contains(out, "Could not resolve hostname vps") {
				t.Errorf("after profile remove, ssh vps prints\n%s", out)
			}
			t.Logf("the terminal shows\n%s", n.all())
		})
	}
}

// testBoots checks that the guard survives a reboot and a power cut.
func (n *newcomer) testBoots(t *testing.T, ssh string) {
	n.expectGuard(t, "after the deploy", ssh)
	watch := n.stranger.WatchPort(t, n.port())
	n.server = n.machine.Reboot(t)
	n.addAddress(t)
	n.expectGuard(t, "after a reboot", ssh)
	n.machine.PowerCut()
	n.server = n.machine.Boot(t)
	n.addAddress(t)
	n.expectGuard(t, "after a power cut", ssh)
	if open, first, last := watch.Stop(t); open != 0 {
		t.Errorf("port 22 was open for %v, from %v to %v", open, first, last)
	}
}

// testRotation changes the knocks as the outputs say. The user can log in at each moment, and the
// old knocks open nothing in the end.
func (n *newcomer) testRotation(t *testing.T, ssh string) {
	sequence := func() string { return strings.TrimSpace(n.as(t, "grep Sequence .config/portknock/config")) }
	before := sequence()
	next := nextLine.FindStringSubmatch(n.run(t, "portknock profile rotate vps"))
	if next == nil {
		t.Fatalf("profile rotate does not name the next command:\n%s", n.all())
	}
	n.expectGuard(t, "after profile rotate", ssh)
	n.follow(t, next[1])
	n.enter(t, "exit")
	n.expect(t, "after the deploy of other knocks", lab.Dropped)
	if n.admits(t, before) || !n.admits(t, sequence()) {
		t.Errorf("the old knocks open the port, or the new ones do not:\n%s\n%s", before, sequence())
	}
}

// testRemoval removes the rules from the server, and the profile from the client, where no knocks
// stay.
func (n *newcomer) testRemoval(t *testing.T, before []string) {
	n.run(t, "portknock undeploy vps")
	n.expect(t, "after undeploy", lab.Open)
	n.expectState(t, before)
	n.run(t, "portknock profile remove vps")
	files := strings.Fields(n.as(t, "find . -type f | grep -v known_hosts | sort"))
	if want := []string{"./.config/portknock/.lock", "./.config/portknock/config", "./.config/portknock/deployed/.lock",
		"./.ssh/config", "./.ssh/id_ed25519", "./.ssh/id_ed25519.pub", "./.ssh/portknock.conf"}; !slices.Equal(files, want) {
		t.Errorf("the client has the files\n%q, want\n%q", files, want)
	}
	if text := n.as(t, "cat .ssh/portknock.conf .config/portknock/config"); strings.Contains(text, "Host") {
		t.Errorf("the client has files with\n%s", text)
	}
}
