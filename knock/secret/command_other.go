//go:build !unix

package secret

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// killChildren sets c.Cancel to kill the command and all processes that the command has
// started.
func killChildren(c *exec.Cmd) {
	c.Cancel = func() error {
		taskkill := filepath.Join(os.Getenv("SystemRoot"), "System32", "taskkill.exe")
		_ = exec.Command(taskkill, "/T", "/F", "/PID", strconv.Itoa(c.Process.Pid)).Run()
		return c.Process.Kill()
	}
}
