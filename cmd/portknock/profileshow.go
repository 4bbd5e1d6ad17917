package main

import (
	"context"
)

// showProfile prints what applies to a host, defaults and all, as a block that
// could stand in the file. It shows the sequence.
func (a *app) showProfile(ctx context.Context, host string) error {
	p, err := a.profileOf(ctx, host)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(p)
	}
	_, err = p.WriteTo(a.stdout)
	return err
}
