//go:build !linux

package main

import "context"

// insideName is not the name of any program.
const insideName = "\x00"

func mainInside(context.Context) {}

func (d *demo) playGuard(context.Context) error {
	return unavailable("the rules are for Linux, and this is another system")
}
