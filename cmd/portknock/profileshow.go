package main

import (
	"context"
)

// profileShow prints what applies to a host, defaults and all, as a block that
// could stand in the file. It shows the sequence.
type profileShow struct{ printed }

func (c *profileShow) run(ctx context.Context, a *app, args []string) error {
	p, err := c.profile(ctx, a, args[0])
	if err != nil {
		return err
	}
	if c.json {
		return a.printJSON(p)
	}
	_, err = p.WriteTo(a.stdout)
	return err
}
