package lab

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// hostVariable is an environment variable. A process that is a host has its name there.
const hostVariable = "PORTKNOCK_LAB_HOST"

// Main returns at once in a test process. In a process that [NewHost] started, Main
// runs the host and never returns. Call Main first in TestMain.
func Main() {
	name, isHost := os.LookupEnv(hostVariable)
	if !isHost {
		return
	}
	if err := setUp(name); err != nil {
		fmt.Print(err)
		os.Exit(1)
	}
	go reap()
	fmt.Print(ready)
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0) // the kernel then kills all processes in this PID namespace
}

// ready is what a host prints as soon as it can be used. Any other text is an error.
const ready = "ready"

func setUp(name string) error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"name the host", func() error { return unix.Sethostname([]byte(name)) }},
		{"make mounts private", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mount /proc", func() error { return unix.Mount("proc", "/proc", "proc", 0, "") }},
		{"mount /sys", func() error { return unix.Mount("sysfs", "/sys", "sysfs", 0, "") }},
		{"mount /run", func() error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755") }},
		{"make /run/sshd", func() error { return os.Mkdir("/run/sshd", 0o755) }},
		// Without link-local addresses, a host sends only what a test has made it
		// send, except for reports of its multicast groups.
		{"switch off link-local addresses", func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("1"), 0)
		}},
		{"bring lo up", bringUpLoopback},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

func bringUpLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// reap waits for the orphans of the namespace. The host is PID 1, so it becomes their
// parent.
func reap() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	for range ended {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
