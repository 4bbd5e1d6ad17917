//go:build unix && !linux && !freebsd

package secret

import "syscall"

// killWithParent does nothing, because these systems cannot do it.
func killWithParent(*syscall.SysProcAttr) {}
