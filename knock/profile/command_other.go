//go:build !unix

package profile

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// own has a command killed with its children.
func own(c *exec.Cmd) (done func()) {
	c.Cancel = func() error {
		taskkill := filepath.Join(os.Getenv("SystemRoot"), "System32", "taskkill.exe")
		_ = exec.Command(taskkill, "/T", "/F", "/PID", strconv.Itoa(c.Process.Pid)).Run()
		return c.Process.Kill()
	}
	return func() {}
}
