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

// Listen makes the host accept TCP connections to a port, over both families. The host
// closes each connection at once.
func (h *Host) Listen(t TB, port uint16) {
	t.Helper()
	h.Serve(t, port, func(net.Conn) {})
}

// Serve is [Host.Listen], but calls serve before the host closes a connection. Each
// connection has its own goroutine.
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

// Daemon is a program that runs until the host ends or [Cmd.End] is called.
type Daemon struct {
	*Cmd
	Log *Log // stdout and stderr of the daemon
}

// Daemon starts a program that stays in the foreground.
func (h *Host) Daemon(t TB, name string, args ...string) *Daemon {
	t.Helper()
	d := &Daemon{h.Command(name, args...), &Log{}}
	d.Stdout, d.Stderr = d.Log, d.Log
	// A killed daemon has printed everything, but its children may hold the pipes.
	d.WaitDelay = 100 * time.Millisecond
	must(t, d.Start())
	t.Cleanup(func() {
		d.End()
		if t.Failed() {
			t.Logf("%s: output of %s:\n%s", h.Name, name, d.Log)
		}
	})
	return d
}

// SSHD is a running OpenSSH server. root can log in with one key.
type SSHD struct {
	*Daemon
	key, known string
}

// SSHD starts an OpenSSH server on the ports, and waits until it listens on all of them.
// options are lines of sshd_config. They come before the lab's lines, so they take
// precedence.
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
	// bash reads ~/.bashrc for the commands of ssh if SHLVL is not set. What root has there may be
	// slow or take a lock, which remains if the host ends meanwhile.
	lines = append(lines, "SetEnv SHLVL=1", "HostKey "+file("host"), "AuthorizedKeysFile "+file("user.pub"), "PidFile none",
		"PermitRootLogin prohibit-password", "StrictModes no", "UsePAM no", "UseDNS no", "PrintMotd no",
		"MaxStartups 1000", "LogLevel VERBOSE", "Subsystem sftp internal-sftp")
	sshd, err := lookPath(h.path, "sshd") // sshd must be run by its absolute path
	must(t, err)
	s.Daemon = h.Daemon(t, sshd, "-D", "-e", "-f", File(t, "sshd_config", lines...))
	s.Log.Await(t, "Server listening on ", len(ports)*len(Families))
	return s
}

// Key returns the path of the private key of root.
func (s *SSHD) Key() string { return s.key }

// ClientConfig writes a file for ssh -F, and returns its path. With the file, ssh logs in
// to this server under any name. lines come first in the file: HostName, ProxyCommand, a
// Host block.
func (s *SSHD) ClientConfig(t TB, lines ...string) string {
	t.Helper()
	return File(t, "ssh_config", append(slices.Clone(lines), "Host *", "User root", "IdentityFile "+s.key, "IdentitiesOnly yes",
		"UserKnownHostsFile "+s.known, "GlobalKnownHostsFile /dev/null", "StrictHostKeyChecking yes",
		"BatchMode yes", "ControlMaster no", "ConnectTimeout 20", "LogLevel ERROR")...)
}

// Knockd runs knockd on eth0 with a configuration file, and waits until knockd sees
// packets. The daemon's Log tells how knockd treats each packet.
func (h *Host) Knockd(t TB, file string) *Daemon {
	t.Helper()
	Require(t, "knockd")
	// Without stdbuf, knockd does not write to a pipe before its buffer is full.
	d := h.Daemon(t, "stdbuf", "-oL", "knockd", "-i", "eth0", "-v", "-D", "-c", file, "-p", "/run/knockd.pid", "-g", "/run/knockd.log")
	d.Log.Await(t, "istening on eth0", 1)
	return d
}

// Fwknopd runs fwknopd on eth0 with the texts of an access.conf and an fwknopd.conf, and
// waits until fwknopd sees packets. The daemon's Log tells how fwknopd treats each packet.
func (h *Host) Fwknopd(t TB, access, config string, args ...string) *Daemon {
	t.Helper()
	d := h.Daemon(t, "fwknopd", append(h.FwknopdArgs(t, access, config), append([]string{"-i", "eth0"}, args...)...)...)
	d.Log.Await(t, "Starting fwknopd main event loop", 1)
	return d
}

// FwknopdArgs writes the files of an fwknopd, and returns its arguments. With them,
// fwknopd runs in the foreground, logs everything, and keeps its files in folders of
// the test.
func (h *Host) FwknopdArgs(t TB, access, config string) []string {
	t.Helper()
	Require(t, "fwknopd")
	dir := t.TempDir()
	return []string{"-f", "-v", "-a", File(t, "access.conf", access), "-c", File(t, "fwknopd.conf", config),
		"-r", dir, "-p", filepath.Join(dir, "pid"), "-d", filepath.Join(dir, "digests")}
}

// Firewall is a firewall or daemon that can guard a port in the lab.
type Firewall struct {
	Name     string   // nftables, iptables-nft, iptables-legacy or knockd
	Programs []string // programs that must be installed to run the firewall
	// Async means that the firewall lets through connections only a moment after the
	// last knock.
	Async bool
	// variant is the suffix of the iptables programs that the firewall's rules use.
	variant string
}

// Firewalls lists all firewalls of the lab.
var Firewalls = []Firewall{
	{Name: "nftables", Programs: []string{"nft"}},
	{Name: "iptables-nft", Programs: []string{"iptables-nft", "ip6tables-nft"}, variant: "-nft"},
	{Name: "iptables-legacy", Programs: []string{"iptables-legacy", "ip6tables-legacy"}, variant: "-legacy"},
	{Name: "knockd", Programs: []string{"knockd", "stdbuf", "nft", "iptables-nft", "ip6tables-nft"}, variant: "-nft", Async: true},
}

// Install makes the commands iptables and ip6tables, with their -save and -restore, run
// this firewall's variant on a host. It skips the test if a program is missing.
func (f Firewall) Install(t TB, h *Host) {
	t.Helper()
	Require(t, f.Programs...)
	if f.variant == "" {
		return
	}
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, job := range []string{"", "-save", "-restore"} {
			// All these are one program, which acts by the name it is called by.
			program, err := lookPath(h.path, family+f.variant+job)
			must(t, err)
			must(t, os.Symlink(program, filepath.Join(dir, family+job)))
		}
	}
	h.path = dir + ":" + h.path
}

// Shell runs a line of shell that must succeed, such as the load line of a rules file.
func (h *Host) Shell(t TB, line string) string {
	t.Helper()
	return h.Run(t, "sh", "-c", line)
}
