//go:build !unix

package main

import (
	"os"
	"os/exec"
)

// suspends is empty: ^Z stops no program on these systems.
var suspends []os.Signal

// foreground does nothing, because every command can use the console on these systems.
func foreground(*exec.Cmd) (done func()) { return func() {} }
