//go:build unix

package secret

import (
	"os/exec"
	"syscall"
)

// killChildren gives a command a process group of its own, so that all of it can
// be killed.
func killChildren(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
}
