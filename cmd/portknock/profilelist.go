package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"
)

// printFlags has the flags of profile list and profile show.
type printFlags struct {
	config
	json bool
}

func (c *printFlags) flags(a *app, f *pflag.FlagSet) {
	c.config.flags(a, f)
	f.BoolVar(&c.json, "json", false, "print JSON")
}

// profileList is the command that prints the blocks of the profile file, without their
// secrets.
type profileList struct{ printFlags }

// isName reports whether a pattern of a Host line is the name of one host.
func isName(pattern string) bool { return !strings.ContainsAny(pattern, "*?!") }

func (c *profileList) run(ctx context.Context, a *app, args []string) error {
	file, err := c.file(ctx, a)
	if err != nil {
		return err
	}
	entries := file.Entries()
	if c.json {
		return a.printJSON(entries)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "HOST\tHOSTNAME\tSCHEME\tKNOCKS\n")
	for _, e := range entries {
		knocks := "-"
		if e.Knocks > 0 {
			knocks = strconv.Itoa(e.Knocks)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", strings.Join(e.Patterns, " "), cmp.Or(e.HostName, "-"), cmp.Or(e.Scheme, "-"), knocks)
	}
	return w.Flush()
}
