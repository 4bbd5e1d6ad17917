//go:build unix

package secret

import (
	"os/exec"
	"syscall"
)

// killChildren gives a command its own process group, and sets c.Cancel to kill the whole
// group.
func killChildren(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	killWithParent(c.SysProcAttr)
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
}
