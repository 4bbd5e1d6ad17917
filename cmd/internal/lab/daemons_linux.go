package lab

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// Listen makes the host accept TCP connections to a port, over both families,
// and close them.
func (h *Host) Listen(t TB, port uint16) {
	t.Helper()
	h.Serve(t, port, func(net.Conn) {})
}

// Serve is [Host.Listen] with something to do before a connection is closed, for
// each in a goroutine.
func (h *Host) Serve(t TB, port uint16, serve func(net.Conn)) {
	t.Helper()
	l := Socket(t, h, func() (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", port)) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				serve(c)
				_ = c.Close()
			}()
		}
	}()
}

// Daemon is a program that runs until the host ends, or [Cmd.End].
type Daemon struct {
	*Cmd
	Log *Log // stdout and stderr
}

// Daemon starts a program that stays in the foreground.
func (h *Host) Daemon(t TB, name string, args ...string) *Daemon {
	t.Helper()
	d := &Daemon{h.Command(name, args...), &Log{}}
	d.Stdout, d.Stderr = d.Log, d.Log
	d.WaitDelay = 100 * time.Millisecond // killed, it has said all; its children may hold the pipes
	must(t, d.Start())
	t.Cleanup(func() {
		d.End()
		if t.Failed() {
			t.Logf("%s: %s said:\n%s", h.Name, name, d.Log)
		}
	})
	return d
}

// SSHD is a running OpenSSH server that lets root in with one key.
type SSHD struct {
	*Daemon
	key, known string
}

// SSHD starts a server on the ports, and waits until it listens on all. Lines
// of sshd_config in options come first, and so win.
func (h *Host) SSHD(t TB, ports []uint16, options ...string) *SSHD {
	t.Helper()
	Require(t, "sshd", "ssh", "ssh-keygen")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	s := &SSHD{key: file("user")}
	for _, key := range []string{file("host"), s.key} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	s.known = File(t, "known_hosts", "* "+ReadFile(t, file("host.pub")))
	lines := slices.Clone(options)
	for _, p := range ports {
		lines = append(lines, fmt.Sprintf("Port %d", p))
	}
	lines = append(lines, "HostKey "+file("host"), "AuthorizedKeysFile "+file("user.pub"), "PidFile none",
		"PermitRootLogin prohibit-password", "StrictModes no", "UsePAM no", "UseDNS no", "PrintMotd no",
		"MaxStartups 1000", "LogLevel VERBOSE", "Subsystem sftp internal-sftp")
	sshd, err := lookPath(h.path, "sshd") // it wants to be run by its absolute path
	must(t, err)
	s.Daemon = h.Daemon(t, sshd, "-D", "-e", "-f", File(t, "sshd_config", lines...))
	s.Log.Await(t, "Server listening on ", len(ports)*len(Families))
	return s
}

// ClientConfig writes a file for ssh -F that logs in to this server under any
// name, with the lines given first: HostName, ProxyCommand, a Host block.
func (s *SSHD) ClientConfig(t TB, lines ...string) string {
	t.Helper()
	return File(t, "ssh_config", append(slices.Clone(lines), "Host *", "User root", "IdentityFile "+s.key, "IdentitiesOnly yes",
		"UserKnownHostsFile "+s.known, "GlobalKnownHostsFile /dev/null", "StrictHostKeyChecking yes",
		"BatchMode yes", "ControlMaster no", "ConnectTimeout 20", "LogLevel ERROR")...)
}

// Knockd runs knockd on eth0 with a configuration file, and waits until it sees
// packets. Its log says what it makes of each.
func (h *Host) Knockd(t TB, file string) *Daemon {
	t.Helper()
	Require(t, "knockd")
	// It says nothing through a pipe before its buffer is full.
	d := h.Daemon(t, "stdbuf", "-oL", "knockd", "-i", "eth0", "-v", "-D", "-c", file, "-p", "/run/knockd.pid", "-g", "/run/knockd.log")
	d.Log.Await(t, "istening on eth0", 1)
	return d
}

// Fwknopd runs fwknopd on eth0 with an access.conf and an fwknopd.conf, and waits
// until it sees packets. Its log says what it makes of each.
func (h *Host) Fwknopd(t TB, access, config string, args ...string) *Daemon {
	t.Helper()
	d := h.Daemon(t, "fwknopd", append(h.FwknopdArgs(t, access, config), append([]string{"-i", "eth0"}, args...)...)...)
	d.Log.Await(t, "Starting fwknopd main event loop", 1)
	return d
}

// FwknopdArgs writes the files of an fwknopd, and returns the arguments with
// which it runs in the foreground, says all and leaves nothing behind.
func (h *Host) FwknopdArgs(t TB, access, config string) []string {
	t.Helper()
	Require(t, "fwknopd")
	dir := t.TempDir()
	return []string{"-f", "-v", "-a", File(t, "access.conf", access), "-c", File(t, "fwknopd.conf", config),
		"-r", dir, "-p", filepath.Join(dir, "pid"), "-d", filepath.Join(dir, "digests")}
}

// Firewall is a way to guard a port, and what it takes to run it here.
type Firewall struct {
	Name     string   // nftables, iptables-nft, iptables-legacy or knockd
	Programs []string // what must be installed
	// Async: it opens a moment after the last knock.
	Async bool
	// the suffix of the iptables programs that its rules mean
	variant string
}

// Firewalls are all of them.
var Firewalls = []Firewall{
	{Name: "nftables", Programs: []string{"nft"}},
	{Name: "iptables-nft", Programs: []string{"iptables-nft", "ip6tables-nft"}, variant: "-nft"},
	{Name: "iptables-legacy", Programs: []string{"iptables-legacy", "ip6tables-legacy"}, variant: "-legacy"},
	{Name: "knockd", Programs: []string{"knockd", "stdbuf", "nft", "iptables-nft", "ip6tables-nft"}, variant: "-nft", Async: true},
}

// Install makes iptables, ip6tables and their -save and -restore mean this
// firewall's on a host, and skips the test if a program is missing.
func (f Firewall) Install(t TB, h *Host) {
	t.Helper()
	Require(t, f.Programs...)
	if f.variant == "" {
		return
	}
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, job := range []string{"", "-save", "-restore"} {
			// One program does all, by the name it is called by.
			program, err := lookPath(h.path, family+f.variant+job)
			must(t, err)
			must(t, os.Symlink(program, filepath.Join(dir, family+job)))
		}
	}
	h.path = dir + ":" + h.path
}

// Shell runs a line of shell that must succeed, such as a rules file's load
// line.
func (h *Host) Shell(t TB, line string) string {
	t.Helper()
	return h.Run(t, "sh", "-c", line)
}
