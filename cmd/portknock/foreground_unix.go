//go:build unix

package main

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// suspends is the signal of ^Z.
var suspends = []os.Signal{syscall.SIGTSTP}

// foreground lets the command c, which has its own process group, use the terminal: c may
// have to ask for a passphrase, or to receive ^C. A terminal serves only one process group
// at a time. If it serves portknock's group now, it serves the group of c until done is
// called.
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
	// A background process may change the terminal's group only if it ignores SIGTTOU.
	// portknock is in the background until done is called.
	signal.Ignore(syscall.SIGTTOU)
	c.SysProcAttr.Foreground, c.SysProcAttr.Ctty = true, fd
	return func() {
		_ = unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, group)
		signal.Reset(syscall.SIGTTOU)
		tty.Close()
	}
}
