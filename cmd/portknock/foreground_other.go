//go:build !unix

package main

import "os/exec"

// foreground does nothing, because every command can use the console on these systems.
func foreground(*exec.Cmd) (done func()) { return func() {} }
