//go:build !linux

package main

import "context"

// mainInside is never called, because this system has no inner process.
func mainInside(context.Context) {}

func (d *demo) playGuard(context.Context) error {
	return unavailable("the rules are for Linux, and this is another system")
}
