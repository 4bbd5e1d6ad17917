package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/portknock/portknock/knock/importer"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/secret"
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

// check checks the flags.
func (c *profileImport) check() error {
	if c.from != "" && !slices.Contains(importer.Programs(), c.from) {
		guess := cmp.Or(typo.Hint(c.from, importer.Programs()...), "; expected "+strings.Join(importer.Programs(), ", "))
		return usageError("--from: unknown program %q%s", c.from, guess)
	}
	for flag, host := range map[string]string{"--as": c.chosen.Name, "--host": c.chosen.Host} {
		if err := profile.CheckHost(host); host != "" && err != nil {
			return usageError("%s: %w", flag, err)
		}
	}
	return nil
}

func (c *profileImport) run(ctx context.Context, a *app, args []string) error {
	if c.path == "-" {
		return usageError("profile import writes to the profile file, so -c - cannot be used")
	}
	foreign, err := await(ctx, func() ([]byte, error) { return a.readInput(args[0]) })
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	imports, err := c.convert(a, args[0], foreign)
	if err != nil {
		return err
	}
	path, err := c.find()
	if path == "" { // an error with a path only means that the file does not exist yet
		return &failure{code: exitProfile, err: err}
	}
	text, info, err := insertImports(path, imports)
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	done, err := writeImports(path, text, info, imports)
	if err != nil {
		return err
	}
	return a.print("%s", done)
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

// insertImports returns the text of the profile file at path with imports inserted, and the
// file's info before the import. info is nil if the file does not exist yet.
func insertImports(path string, imports []importer.Import) (text []byte, info fs.FileInfo, err error) {
	info, err = os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	case err == nil && !info.Mode().IsRegular():
		err = fmt.Errorf("%s: not a regular file", path)
	case err == nil:
		if _, err = profile.Load(path); err == nil {
			text, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	var blocks [][]byte
	for _, i := range imports {
		blocks = append(blocks, i.Block)
	}
	text, err = profile.Insert(path, text, bytes.Join(blocks, []byte("\n")))
	return text, info, err
}

// writeImports writes the keys of imports to files beside the profile file at path, and then
// writes text to the profile file. It returns a line for each thing that it has done. If
// anything fails, it removes all files and folders that it has made, and the profile file
// stays as it was.
func writeImports(path string, text []byte, info fs.FileInfo, imports []importer.Import) (done string, err error) {
	var made []string // folders and files that were made, in this order
	defer func() {
		for _, m := range slices.Backward(made) {
			if err != nil {
				os.Remove(m)
			}
		}
	}()
	dir := filepath.Dir(path)
	for d := dir; d != filepath.Dir(d); d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil {
			break
		}
		made = slices.Insert(made, 0, d)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	added := ""
	for _, i := range imports {
		for _, k := range i.Keys {
			file := filepath.Join(dir, k.File)
			if err := createSecret(file, k.Text); err != nil {
				return "", err
			}
			made = append(made, file)
			done += "wrote " + file + "\n"
		}
		added += "added Host " + i.Name + " to " + path + "\n"
	}
	return done + added, secret.Replace(path, text, info)
}
