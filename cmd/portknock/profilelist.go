package main

import (
	"cmp"
	"context"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"
)

func profileFlags(a *app, f *pflag.FlagSet) {
	a.shared.profileFlags(f)
	f.BoolVar(&a.json, "json", false, "with list and show, print JSON")
	f.StringVarP(&a.stanza, "name", "n", "", "with import, only the stanza of this `NAME`")
}

func runProfile(ctx context.Context, a *app, args []string) error {
	importing := len(args) > 0 && args[0] == "import"
	switch {
	case a.stanza != "" && !importing:
		return usageError("-n is for profile import")
	case a.json && importing:
		return usageError("--json is for profile list and show")
	case len(args) == 2 && importing:
		return a.importProfiles(ctx, args[1])
	case len(args) == 1 && args[0] == "list":
		return a.listProfiles(ctx)
	case len(args) == 2 && args[0] == "show":
		return a.showProfile(ctx, args[1])
	}
	return usageError("profile takes list, or show and a HOST, or import and a FILE")
}

// listProfiles prints the blocks of the file, without their secrets.
func (a *app) listProfiles(ctx context.Context) error {
	file, err := a.loadFile(ctx)
	if err != nil {
		return err
	}
	entries := file.Entries()
	if a.json {
		return a.printJSON(entries)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	if _, err := w.Write([]byte("HOST\tHOSTNAME\tSCHEME\tKNOCKS\n")); err != nil {
		return err
	}
	for _, e := range entries {
		knocks := "-"
		if e.Knocks > 0 {
			knocks = strconv.Itoa(e.Knocks)
		}
		row := []string{strings.Join(e.Patterns, " "), cmp.Or(e.HostName, "-"), cmp.Or(e.Scheme, "-"), knocks}
		if _, err := w.Write([]byte(strings.Join(row, "\t") + "\n")); err != nil {
			return err
		}
	}
	return w.Flush()
}
