//go:build unix

package secret

import (
	"os/exec"
	"syscall"
)

// killable makes a command killable, together with all processes of its process group. It
// returns the function that runs the command.
func killable(c *exec.Cmd) (run func() error) {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	killWithParent(c.SysProcAttr)
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	return c.Run
}
