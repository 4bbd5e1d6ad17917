//go:build !unix

package main

import "os/exec"

// foreground changes nothing: every command can use the console.
func foreground(*exec.Cmd) (done func()) { return func() {} }
