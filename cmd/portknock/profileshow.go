package main

import "context"

// profileShow is the command that prints all settings of a host, including the defaults, as
// a block for the profile file. The block contains the sequence.
type profileShow struct{ printFlags }

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
