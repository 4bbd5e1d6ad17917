package main

import (
	"bytes"
	"context"

	"github.com/portknock/portknock/knock/importer"
	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

// profileImport is the command that imports profiles from another program's file.
type profileImport struct {
	config
	stanza string
}

func (c *profileImport) flags(a *app, f *pflag.FlagSet) {
	c.config.flags(a, f)
	f.StringVarP(&c.stanza, "name", "n", "", "import only the stanza with this `NAME`")
}

func (c *profileImport) run(ctx context.Context, a *app, args []string) error {
	if _, err := c.changeable(); err != nil {
		return err
	}
	foreign, err := await(ctx, func() ([]byte, error) { return a.readInput(args[0]) })
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	imports, warnings, err := importer.Fwknop(args[0], foreign, c.stanza)
	a.log.warn(warnings)
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	options := c.pathFlag()
	err = c.change(func(old profileText) (edited, error) {
		var blocks [][]byte
		for _, i := range imports {
			blocks = append(blocks, i.Block)
		}
		text, err := profile.Insert(old.path, old.text, bytes.Join(blocks, []byte("\n")))
		return edited{text, keysOf(imports)}, err
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

// keysOf returns the keys of all imports.
func keysOf(imports []importer.Import) (all []importer.Key) {
	for _, i := range imports {
		all = append(all, i.Keys...)
	}
	return all
}
