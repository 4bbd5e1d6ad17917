package lab

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bootVariable is an environment variable. Tests that boot a machine are skipped unless
// it is 1.
const bootVariable = "PORTKNOCK_LAB_BOOT"

// Releases lists the Debian releases that a machine can run: Debian 12 and 13.
var Releases = []string{"bookworm", "trixie"}

// Machine is a Debian server with systemd, which boots, reboots and loses its power. Its
// files outlive a boot, and everything else ends with the boot: processes, /run, the
// network and all firewall rules.
type Machine struct {
	base   *Host   // runs the switch and mounts the disk, until the test ends
	hosts  []*Host // hosts of the segment; the first one stands for the machine, and does not run
	booted *Host   // host of the present boot; nil while the power is off
	nspawn *Daemon // container of the present boot

	groups *os.File // all control groups; nil if the machine has none
	group  string   // path of the machine's control group below groups
}

// These are paths in the machine's hosts, whose /run is private.
const (
	machineRoot   = "/run/machine/root"   // files of the machine
	machineNotify = "/run/machine/notify" // socket for the messages of systemd-nspawn
)

// NewMachine makes a machine with a new disk, powered off, on one Ethernet segment with
// its peers, as by [Link]. There must be at least one peer, such as the client, and the
// peers must not have a link yet. Until the first boot, they cannot use [Host.Probe].
//
// The release is from [Releases]. A name such as trixie+cloud-init stands for a release
// with another package instead of firewalld.
//
// NewMachine skips the test unless PORTKNOCK_LAB_BOOT is 1.
func NewMachine(t TB, release string, peers ...*Host) *Machine {
	t.Helper()
	if os.Getenv(bootVariable) != "1" {
		t.Skipf("the test boots a machine: set %s=1 to run it", bootVariable)
	}
	Require(t, "systemd-nspawn", "mount")
	lower := image(t, release)
	m := &Machine{base: NewHost(t, "switch"), hosts: append([]*Host{{Name: "server"}}, peers...)}
	out, err := m.base.Try("sh", "-ec", `mkdir -p "$1" /run/machine/disk
mount -t tmpfs -o mode=755 tmpfs /run/machine/disk
mkdir -m 755 /run/machine/disk/upper /run/machine/disk/work
mount -t overlay -o "lowerdir=$2,upperdir=/run/machine/disk/upper,workdir=/run/machine/disk/work" overlay "$1"`,
		"sh", machineRoot, lower)
	if err != nil {
		Missing(t, "an overlay file system: "+out)
	}
	assignNumbers(m.hosts)
	batch := "link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up\n"
	for _, h := range peers {
		batch += switchPort(h)
	}
	m.base.ip(t, batch)
	for _, h := range peers {
		h.ip(t, addressing(h, m.hosts))
	}
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(m.off)
	return m
}

// Path returns the path under which this process reaches a file of the machine, whether
// or not the machine is on. Absolute symbolic links do not work on the way, and files
// under /run, /tmp, /proc, /sys and /dev are those of the powered-off machine.
func (m *Machine) Path(file string) string {
	return fmt.Sprintf("/proc/%d/root%s", m.base.pid, filepath.Join(machineRoot, file))
}

// AuthorizeSSH lets root log in to the machine's sshd with a new key. The machine may be
// on or off. Only [SSHD.ClientConfig] of the result is of use.
func (m *Machine) AuthorizeSSH(t TB) *SSHD {
	t.Helper()
	Require(t, "ssh", "ssh-keygen")
	key := filepath.Join(t.TempDir(), "user")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	must(t, os.MkdirAll(m.Path("/root/.ssh"), 0o700))
	must(t, os.WriteFile(m.Path("/root/.ssh/authorized_keys"), []byte(ReadFile(t, key+".pub")), 0o600))
	hostKey := ReadFile(t, m.Path("/etc/ssh/ssh_host_ed25519_key.pub"))
	return &SSHD{key: key, known: File(t, "known_hosts", "* "+hostKey)}
}

// Addr returns the machine's address on its segment, also while the power is off.
func (m *Machine) Addr(f Family) netip.Addr { return m.hosts[0].Addr(f) }

// Boot switches the machine on, in a new network, and waits until systemd has started
// all services or failed to start them. The link is up before systemd starts.
//
// The returned host is named server, and ends when the machine is switched off. Its
// commands run on the machine, with the machine's files and a short environment. Methods
// of [Host] that need a file or a program of the test, such as [Host.SSHD], do not work.
// [Machine.Path] brings files to the machine.
func (m *Machine) Boot(t TB) *Host {
	t.Helper()
	if m.booted != nil {
		t.Fatal("the machine is on already")
	}
	h := NewHost(t, m.hosts[0].Name)
	m.booted = h
	h.number, h.peers = m.hosts[0].number, m.hosts[0].peers
	m.base.ip(t, switchPort(h))
	h.ip(t, addressing(h, m.hosts))
	if t.Failed() {
		t.FailNow()
	}
	for _, linked := range append([]*Host{h}, m.hosts[1:]...) {
		linked.awaitCarrier(t)
	}
	must(t, m.attachDisk(h))
	leader := m.startSystemd(t, h)

	// From now on, commands run in the container.
	for kind, name := range namespaceNames {
		if kind == unix.CLONE_NEWNET { // the container has the host's network
			continue
		}
		ns, err := os.Open(fmt.Sprintf("/proc/%d/root/proc/%d/ns/%s", h.pid, leader, name))
		must(t, err)
		if old := h.namespaces[kind]; old != nil {
			_ = old.Close()
		}
		h.namespaces[kind] = ns
	}
	h.machine = true
	h.path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	return h
}

// switchPort returns the lines for ip(8) that connect a host's eth0 to the switch.
func switchPort(h *Host) string {
	return fmt.Sprintf("link add port%d type veth peer name eth0 address %s netns %d\nlink set port%[1]d master br0 up\n",
		h.number, mac(h.number), h.pid)
}

// attachDisk mounts the machine's disk on a host.
func (m *Machine) attachDisk(h *Host) error {
	tree := -1
	err := m.base.mounts(func() (err error) {
		tree, err = unix.OpenTree(unix.AT_FDCWD, machineRoot, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return err
	})
	if err != nil {
		return fmt.Errorf("copy the mount of the disk: %w", err)
	}
	defer func() { _ = unix.Close(tree) }()
	err = h.mounts(func() error {
		if err := os.MkdirAll(machineRoot, 0o755); err != nil {
			return err
		}
		return unix.MoveMount(tree, "", unix.AT_FDCWD, machineRoot, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	return nil
}

// mounts runs f on a thread that sees the host's mounts.
func (h *Host) mounts(f func() error) (err error) {
	onThread(func() {
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		if err = h.enter(unix.CLONE_NEWNS); err == nil {
			err = f()
		}
	})
	return err
}

// startSystemd starts a container with systemd in the host's network. It waits until
// systemd has started all services, and returns the container's PID 1, as seen from the
// host's PID namespace.
//
// The container has its own part of the unified hierarchy of control groups, whatever
// hierarchies this machine has.
func (m *Machine) startSystemd(t TB, h *Host) (leader int) {
	t.Helper()
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram",
		Name: fmt.Sprintf("/proc/%d/root%s", h.pid, machineNotify)})
	must(t, err)
	defer func() { _ = ready.Close() }()
	groups, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	own := regexp.MustCompile(`(?m)^0::(/.*)$`).FindSubmatch(groups)
	if own == nil {
		Missing(t, "the unified hierarchy of control groups")
	}
	m.group = filepath.Join(string(own[1]), fmt.Sprintf("portknock-lab-%d", h.pid))
	const makeGroup = `mount -t cgroup2 cgroup2 /sys/fs/cgroup; mkdir "/sys/fs/cgroup$1"`
	if out, err := h.Try("sh", "-ec", makeGroup, "sh", m.group); err != nil {
		Missing(t, "a control group: "+out)
	}
	m.groups, err = os.Open(fmt.Sprintf("/proc/%d/root/sys/fs/cgroup", h.pid))
	must(t, err)

	m.nspawn = h.Daemon(t, "sh", "-ec", `echo 0 >"/sys/fs/cgroup$1/cgroup.procs"; shift; exec "$@"`, "sh", m.group,
		"env", "NOTIFY_SOCKET="+machineNotify, "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network",
		"systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--settings=no", "--directory="+machineRoot,
		"--machine="+h.Name, "--boot", "--capability=CAP_NET_ADMIN", "--resolv-conf=off", "--timezone=off",
		"--link-journal=no", "--console=read-only", "--notify-ready=yes")
	nspawn := m.nspawn
	go func() {
		_ = nspawn.Wait()
		_ = ready.Close()
	}()
	must(t, ready.SetReadDeadline(time.Now().Add(bootLimit)))
	for buf := make([]byte, 4096); ; {
		n, err := ready.Read(buf)
		if err != nil {
			t.Fatalf("the machine does not boot: %v\n%s", err, nspawn.Log)
		}
		for _, line := range strings.Split(string(buf[:n]), "\n") {
			name, value, _ := strings.Cut(line, "=")
			switch {
			case name == "X_NSPAWN_LEADER_PID":
				leader, err = strconv.Atoi(value)
				must(t, err)
			case line == "READY=1" && leader != 0:
				return leader
			}
		}
	}
}

// bootLimit bounds the time of a boot, and of a shutdown. It is longer than the 90 s that
// systemd waits for a service.
const bootLimit = 2 * time.Minute

// PowerOff shuts the machine down: systemd stops all services first.
func (m *Machine) PowerOff(t TB) {
	t.Helper()
	m.shutDown(t, "poweroff")
}

// Reboot shuts the machine down by the command reboot, and boots it again.
func (m *Machine) Reboot(t TB) *Host {
	t.Helper()
	m.shutDown(t, "reboot")
	return m.Boot(t)
}

func (m *Machine) shutDown(t TB, command string) {
	t.Helper()
	if m.booted == nil {
		t.Fatal("the machine is off already")
	}
	_, _ = m.booted.Try("systemctl", command) // systemd may kill the command at any time
	late := time.AfterFunc(bootLimit, m.nspawn.cancel)
	_ = m.nspawn.Wait()
	if !late.Stop() {
		t.Fatalf("the machine does not shut down:\n%s", m.nspawn.Log)
	}
	m.off()
}

// PowerCut switches the machine off at once, without a shutdown. The disk keeps everything
// that programs wrote, also without fsync. PowerCut does nothing while the power is off.
func (m *Machine) PowerCut() { m.off() }

// off ends all processes of the machine, its network and its control groups. If the test
// itself is killed, only the empty control groups remain.
func (m *Machine) off() {
	if m.booted == nil {
		return
	}
	m.booted.end()
	// The kernel would delete the link a moment after the network.
	_, _ = m.base.Try("ip", "link", "delete", fmt.Sprintf("port%d", m.booted.number))
	m.booted = nil
	if m.groups == nil {
		return
	}
	var groups []string
	root := fmt.Sprintf("/proc/self/fd/%d%s", m.groups.Fd(), m.group)
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	for _, g := range slices.Backward(groups) {
		_ = os.Remove(g)
	}
	_ = m.groups.Close()
	m.groups = nil
}
