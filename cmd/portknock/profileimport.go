package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/portknock/portknock/knock/importer"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/typo"
	"github.com/spf13/pflag"
)

// profileImport is the command that imports profiles from another program's file.
type profileImport struct {
	config
	from   string
	chosen importer.Options
}

func (c *profileImport) flags(a *app, f *pflag.FlagSet) {
	c.config.flags(a, f)
	f.StringVar(&c.from, "from", "", "the file is of this `PROGRAM`: "+strings.Join(importer.Programs(), ", "))
	f.StringVarP(&c.chosen.Section, "name", "n", "", "import only the stanza or section with this `NAME`")
	f.StringVar(&c.chosen.Name, "as", "", "give the profile this `NAME`")
	f.StringVar(&c.chosen.Host, "host", "", "`ADDRESS` of the server, which a knockd.conf does not contain")
}

// check checks the flags. The settings of -o go into the profiles.
func (c *profileImport) check() error {
	if c.from != "" && !slices.Contains(importer.Programs(), c.from) {
		guess := cmp.Or(typo.Hint(c.from, importer.Programs()...), "; expected "+strings.Join(importer.Programs(), ", "))
		return usageError("--from: unknown program %q%s", c.from, guess)
	}
	if err := profile.CheckHost(c.chosen.Name); c.chosen.Name != "" && err != nil {
		return usageError("--as: %w", err)
	}
	if err := cmp.Or(checkHostFlag(c.chosen.Host), c.config.check()); err != nil {
		return err
	}
	c.chosen.Settings = c.settings
	return nil
}

func (c *profileImport) run(ctx context.Context, a *app, args []string) error {
	if _, err := c.changeable(); err != nil {
		return err
	}
	foreign, err := await(ctx, func() ([]byte, error) { return a.readInput(args[0]) })
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	imports, err := c.convert(a, args[0], foreign)
	if err != nil {
		return err
	}
	options := c.pathFlag()
	err = c.change(func(old profileText) (edited, error) {
		var blocks [][]byte
		for _, i := range imports {
			blocks = append(blocks, i.Block)
		}
		text, err := profile.Insert(old.path, old.text, bytes.Join(blocks, []byte("\n")))
		const hint = "for another name: -n NAME --as NEWNAME; to replace the old profile: portknock profile remove"
		return edited{text, keysOf(imports)}, profileFailure(err, profile.ErrExists, hint)
	})
	if err != nil {
		return err
	}
	var r report
	r.addKeys(c.path, keysOf(imports))
	for _, i := range imports {
		r.add("added", "Host %s to %s", i.Name, c.path)
	}
	refreshSSHConfig(ctx, a, c.path, &r)
	if len(imports) == 1 {
		r.add("next", "portknock %scheck %s", options, imports[0].Name)
	} else {
		r.add("next", "portknock %sprofile list", options)
	}
	return r.print(a)
}

// convert returns the profiles in the text of a file, and prints warnings about it.
func (c *profileImport) convert(a *app, file string, data []byte) ([]importer.Import, error) {
	from, err := c.from, error(nil)
	if from == "" {
		from, err = importer.Recognize(file, data)
	}
	var imports []importer.Import
	var warnings []string
	if err == nil {
		imports, warnings, err = importer.Convert(from, file, data, c.chosen)
	}
	a.log.warn(warnings)
	switch {
	case errors.Is(err, importer.ErrUnclear):
		return nil, &failure{exitProfile, err, "name the program with --from: " + strings.Join(importer.Programs(), ", ")}
	case errors.Is(err, importer.ErrNoHost):
		return nil, &failure{exitProfile, err, "add --host ADDRESS; --as NAME also gives the profile a short name"}
	case err != nil:
		return nil, &failure{code: exitProfile, err: err}
	}
	return imports, nil
}

// keysOf returns the keys of all imports.
func keysOf(imports []importer.Import) (all []importer.Key) {
	for _, i := range imports {
		all = append(all, i.Keys...)
	}
	return all
}
