//go:build linux || freebsd

package secret

import "syscall"

// killWithParent makes the system kill a command when this process ends, even by SIGKILL.
func killWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
