package boot

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// recipe returns the path of a file in testdata.
func recipe(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("../../../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// fleet is a controller with Ansible and three servers. web1 is a Debian machine with
// systemd, on which Ansible uses sudo. web2 and db1 are hosts with cron.
type fleet struct {
	controller *lab.Host
	machine    *lab.Machine
	servers    map[string]*lab.Host
	ssh        map[string]string // files for ssh -F, without portknock
	home       string            // home folder of the administrator on the controller
	inventory  string
	nextIP     uint16 // number of further addresses of the controller that have connected
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{controller: lab.NewHost(t, "controller"), home: t.TempDir(), ssh: map[string]string{}}
	f.servers = map[string]*lab.Host{"web2": lab.NewHost(t, "web2"), "db1": lab.NewHost(t, "db1")}
	f.machine = lab.NewMachine(t, lab.Releases[len(lab.Releases)-1], f.controller, f.servers["web2"], f.servers["db1"])
	lab.Require(t, "ansible-playbook", "ssh", "sshd", "nft")
	if err := build(); err != nil {
		t.Fatal(err)
	}
	for name, server := range f.servers {
		// The server has files of its own in /root and /etc, and a process that looks like cron.
		server.Shell(t, `mount -t tmpfs tmpfs /root && cp -a /etc /run/etc && mount --bind /run/etc /etc &&
mkdir -p /etc/cron.d && cp "$(command -v sleep)" /run/cron`)
		server.Daemon(t, "sh", "-c", "exec /run/cron 1000")
		f.ssh[name] = server.SSHD(t, []uint16{lab.GuardedPort}).ClientConfig(t)
	}
	f.ssh["web1"] = f.machine.AuthorizeSSH(t).ClientConfig(t)
	f.servers["web1"] = f.machine.Boot(t)
	f.servers["web1"].Shell(t, `useradd -m admin && cp -r /root/.ssh /home/admin && chown -R admin /home/admin &&
echo 'admin ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/admin`)
	var inventory []string
	for name, user := range map[string]string{"web1": "admin", "web2": "root", "db1": "root"} {
		inventory = append(inventory, fmt.Sprintf("%s ansible_host=%s ansible_user=%s "+
			"ansible_ssh_args='-F %s -o ControlMaster=auto -o ControlPersist=60s'", name, f.servers[name].Addr(lab.IPv4), user, f.ssh[name]))
	}
	f.inventory = lab.File(t, "inventory", inventory...)
	if err := os.MkdirAll(f.path(""), 0o700); err != nil {
		t.Fatal(err)
	}
	return f
}

// path returns the path of a file in the folder of profiles and keys.
func (f *fleet) path(name string) string { return filepath.Join(f.home, ".config/portknock", name) }

// write writes a file in the folder of profiles and keys.
func (f *fleet) write(t *testing.T, name string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(f.path(name), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// expectPlay runs the playbook, and checks what the summary says for each server. It returns
// what Ansible prints.
func (f *fleet) expectPlay(t *testing.T, want string, args ...string) string {
	t.Helper()
	start := time.Now()
	c := f.controller.Command("ansible-playbook", append([]string{"-i", f.inventory, recipe(t, "ansible/portknock.yml")}, args...)...)
	c.Env = append(c.Env, "HOME="+f.home, "LC_ALL=C.UTF-8", "ANSIBLE_NOCOLOR=1", "ANSIBLE_PIPELINING=1")
	text, err := c.CombinedOutput()
	out := string(text)
	t.Logf("ansible-playbook %v: %v, %v", args, time.Since(start).Round(time.Millisecond), err)
	if failed := !strings.Contains(want, "failed=0"); failed != (err != nil) {
		t.Errorf("ansible-playbook %v: %v", args, err)
	}
	for name := range f.servers {
		if !regexp.MustCompile(`(?m)^` + name + ` +:.*` + want).MatchString(out) {
			t.Fatalf("ansible-playbook %v: the summary of %s is not %q:\n%s", args, name, want, out)
		}
	}
	return out
}

// expect checks the state of port 22 of each server, for an address that has not knocked.
func (f *fleet) expect(t *testing.T, when string, want lab.State) {
	t.Helper()
	f.nextIP++
	for name, server := range f.servers {
		if got := f.controller.ProbeFrom(t, f.controller.Source(lab.IPv4, f.nextIP), netip.AddrPortFrom(server.Addr(lab.IPv4), 22)); got != want {
			t.Errorf("%s: port 22 of %s is %v, want %v", when, name, got, want)
		}
	}
}

// expectLogin checks whether ssh logs in to each server with the knocks of a profile file.
// The address of the controller has not been admitted before.
func (f *fleet) expectLogin(t *testing.T, when, profiles string, want bool) {
	t.Helper()
	f.nextIP++
	from := f.controller.Source(lab.IPv4, f.nextIP)
	var all sync.WaitGroup
	for name, server := range f.servers {
		all.Go(func() {
			out, err := f.controller.Try("ssh", "-F", f.ssh[name], "-o", fmt.Sprintf(
				"ProxyCommand=portknock -c %s --profile %s -o ConnectTimeout=3 -o BindAddress=%s %%h %%p", f.path(profiles), name, from),
				server.Addr(lab.IPv4).String(), "true")
			if (err == nil) != want {
				t.Errorf("%s: ssh to %s with the knocks of %s: %v\n%s", when, name, profiles, err, out)
			}
		})
	}
	all.Wait()
}

// TestAnsiblePlaybook: the playbook of testdata/ansible closes the SSH port of three servers,
// changes nothing when it runs again, replaces the rules, and fails without harm if the new
// knocks do not open the port.
func TestAnsiblePlaybook(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.controller.Run(t, "portknock", "keygen", f.path("fleet.key"))
	f.write(t, "config", "Host web1 web2 db1", "Scheme rotating", "KeyFile fleet.key", "DeriveHostKey yes")
	const succeeds, changesNothing = "changed=[1-9].* unreachable=0 +failed=0", "changed=0 +unreachable=0 +failed=0"
	f.expectPlay(t, succeeds, "--check")
	f.expect(t, "after --check", lab.Open)
	f.expectPlay(t, succeeds)
	f.expect(t, "after the first run", lab.Dropped)
	f.expectLogin(t, "after the first run", "config", true)
	f.expectPlay(t, changesNothing)

	// Ansible logs in with the knocks of "new", which the rules on trial do not have.
	f.write(t, "new", "Host *", "Sequence 41380/udp 5917/tcp 23046/udp")
	f.write(t, "wrong", "Host *", "Sequence 17123/udp 29871/tcp 33219/udp")
	replace := []string{"-e", "portknock_new=~/.config/portknock/new"}
	out := f.expectPlay(t, "unreachable=0 +failed=1 .*rescued=1", append(replace,
		"-e", "portknock_trial=16", "-e", `{"portknock_flags": ["-c", "~/.config/portknock/wrong"]}`)...)
	if !strings.Contains(out, "the rules from before are in force again after 16 seconds") {
		t.Errorf("no message about the rules in force:\n%s", out)
	}
	f.expectLogin(t, "after the failed run", "wrong", false)
	f.expectLogin(t, "after the failed run", "config", true)
	for name, server := range f.servers {
		out, err := server.Try("sh", "-c", `test ! -e /root/portknock.sh && sh /etc/portknock/"$1".sh status`, "sh", name)
		if err != nil || !strings.Contains(out, "trial      none") {
			t.Errorf("after the failed run, the state of %s is: %v\n%s", name, err, out)
		}
	}

	out = f.expectPlay(t, succeeds, append(replace, "-vvv", "--diff")...)
	if found := regexp.MustCompile(`\b(41380|5917|23046)\b`).FindString(out); found != "" {
		t.Errorf("with -vvv and --diff, Ansible prints the knock %s", found)
	}
	f.servers["web1"] = f.machine.Reboot(t)
	f.expect(t, "after the change and a reboot", lab.Dropped)
	f.expectLogin(t, "after the change", "config", false)
	f.expectLogin(t, "after the change", "new", true)
	if err := os.Rename(f.path("new"), f.path("config")); err != nil {
		t.Fatal(err)
	}
	f.expectPlay(t, changesNothing)
}

// TestCloudInitUserData: a server that boots for the first time with the user-data of
// testdata/cloud-init closes its SSH port, also after a reboot.
func TestCloudInitUserData(t *testing.T) {
	t.Parallel()
	m, client := newMachine(t, "trixie+cloud-init")
	template := recipe(t, "cloud-init/user-data.yaml")
	commands := regexp.MustCompile(`(?m)^# {8}(.*)$`).FindAllStringSubmatch(lab.ReadFile(t, template), -1)
	script := "set -e\n"
	for _, line := range commands {
		script += line[1] + "\n"
	}
	home := t.TempDir()
	write(t, m, "/etc/cloud/cloud.cfg.d/network.cfg", "network: {config: disabled}\n", 0o644) // the lab has set up eth0
	if err := os.MkdirAll(filepath.Join(home, "portknock"), 0o700); err != nil {
		t.Fatal(err)
	}
	const sequence = "41380/udp 5917/tcp 23046/udp"
	for name, text := range map[string]string{
		"portknock/config": "Host vps\nSequence " + sequence + "\n",
		"user-data.yaml":   lab.ReadFile(t, template),
	} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := client.Command("sh", "-c", script)
	c.Dir, c.Env = home, append(c.Env, "XDG_CONFIG_HOME="+home)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	userData := lab.ReadFile(t, filepath.Join(home, "vps.user-data"))
	t.Logf("the user-data has %d bytes", len(userData))
	write(t, m, "/var/lib/cloud/seed/nocloud/user-data", userData, 0o600)
	write(t, m, "/var/lib/cloud/seed/nocloud/meta-data", "instance-id: first\n", 0o600)

	g := &guarded{machine: m, client: client, server: m.Boot(t)}
	var err error
	if g.knocks, err = knock.ParseSequence(sequence); err != nil {
		t.Fatal(err)
	}
	if out, err := g.server.Try("cloud-init", "status", "--wait", "--long"); err != nil {
		t.Errorf("cloud-init: %v\n%s\n%s", err, out, g.server.Run(t, "cat", "/var/log/cloud-init-output.log"))
	}
	g.expect(t, "after the first boot", lab.Dropped)
	g.expectAdmits(t, "after the first boot")
	if out := g.server.Shell(t, "ls /root; find /etc/portknock /var/lib/cloud /var/log /run/cloud-init -type f -perm /044 -exec grep -l -e 41380 -e H4sI {} + 2>/dev/null || :"); out != "" {
		t.Errorf("files with the knocks that users can read, or files in /root:\n%s", out)
	}
	open := g.during(t, func() { g.server = m.Reboot(t) })
	if open != 0 {
		t.Errorf("port 22 was open for %v during the reboot", open)
	}
	g.expect(t, "after a reboot", lab.Dropped)
	g.expectAdmits(t, "after a reboot")
}
