//go:build unix

package main

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// foreground lets a command that has a process group of its own use the terminal:
// it may want a passphrase, or ^C. A terminal talks to one group only, so if that
// is ours now, it is the command's until done is called.
func foreground(c *exec.Cmd) (done func()) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return func() {}
	}
	fd := int(tty.Fd())
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	if err != nil || group != unix.Getpgrp() {
		tty.Close()
		return func() {}
	}
	// Whoever is in the background may not change that, unless it ignores this.
	signal.Ignore(syscall.SIGTTOU)
	c.SysProcAttr.Foreground, c.SysProcAttr.Ctty = true, fd
	return func() {
		_ = unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, group)
		signal.Reset(syscall.SIGTTOU)
		tty.Close()
	}
}
