package main

import (
	"context"
	"fmt"
)

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
	if d := c.deployment(a, p.Name); d != nil {
		if err := a.print("# %s\n", d); err != nil {
			return err
		}
	}
	_, err = p.WriteTo(a.stdout)
	return err
}

// String says when and where a profile was deployed. Two administrators can compare the
// fingerprints of their keys.
func (d *deployment) String() string {
	text := fmt.Sprintf("deployed %s to %s, format %s", utc(d.Time), d.Server, d.Format)
	if d.Fingerprint != "" {
		text += ", key " + d.Fingerprint
	}
	if !d.profile.ValidUntil.IsZero() {
		text += ", valid until " + utc(d.profile.ValidUntil)
	}
	return text
}
