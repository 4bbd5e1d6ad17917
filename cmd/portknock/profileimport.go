package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/portknock/portknock/knock/importer"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/secret"
	"github.com/spf13/pflag"
)

// profileImport takes profiles over from another program's file.
type profileImport struct {
	config
	stanza string
}

func (c *profileImport) flags(a *app, f *pflag.FlagSet) {
	c.config.flags(a, f)
	f.StringVarP(&c.stanza, "name", "n", "", "only the stanza of this `NAME`")
}

func (c *profileImport) run(ctx context.Context, a *app, args []string) error {
	if c.path == "-" {
		return usageError("profile import writes to the profile file, which cannot be standard input")
	}
	from := args[0]
	text, err := await(ctx, func() ([]byte, error) { return a.readForeign(from) })
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	imports, warnings, err := importer.Fwknop(from, text, c.stanza)
	a.log.warn(warnings)
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	path, err := c.find()
	if err != nil && (path == "" || !errors.Is(err, fs.ErrNotExist)) {
		return &failure{code: exitProfile, err: err}
	}
	keys, err := insertProfiles(path, imports)
	if err != nil {
		return err
	}
	done := ""
	for _, key := range keys {
		done += "wrote " + key + "\n"
	}
	for _, i := range imports {
		done += "added Host " + i.Name + " to " + path + "\n"
	}
	return a.print("%s", done)
}

// insertProfiles adds imports to the profile file at path, and writes their keys
// into files beside it, whose paths it returns. If anything fails, all is as it
// was before.
func insertProfiles(path string, imports []importer.Import) (keys []string, err error) {
	var blocks [][]byte
	for _, i := range imports {
		blocks = append(blocks, i.Block)
	}
	text, like, err := readConfig(path)
	if err == nil {
		text, err = profile.Insert(path, text, bytes.Join(blocks, []byte("\n")))
	}
	if err != nil {
		return nil, &failure{code: exitProfile, err: err}
	}

	var made []string
	defer func() {
		for _, m := range slices.Backward(made) {
			if err != nil {
				os.Remove(m)
			}
		}
	}()
	dir := filepath.Dir(path)
	if made, err = makeFolders(dir); err != nil {
		return nil, err
	}
	for _, i := range imports {
		for _, k := range i.Keys {
			file := filepath.Join(dir, k.File)
			if err := createSecret(file, k.Text); err != nil {
				return nil, err
			}
			made, keys = append(made, file), append(keys, file)
		}
	}
	if like == nil {
		return keys, createSecret(path, text)
	}
	return keys, secret.Replace(path, text, like)
}

// readConfig reads the profile file as text, if it is one that may be used. It
// returns neither if there is no file.
func readConfig(path string) (text []byte, info fs.FileInfo, err error) {
	info, err = os.Stat(path)
	_, missing := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && missing == nil:
		return nil, nil, fmt.Errorf("%s: a link that leads nowhere", path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular():
		return nil, nil, fmt.Errorf("%s: not a regular file", path)
	}
	if _, err := profile.Load(path); err != nil {
		return nil, nil, err
	}
	text, err = os.ReadFile(path)
	return text, info, err
}

// makeFolders makes a folder and those that it is in, for their owner alone, and
// returns those that were not there.
func makeFolders(dir string) (made []string, err error) {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil || d == filepath.Dir(d) {
			break
		}
		made = append(made, d)
	}
	slices.Reverse(made)
	return made, os.MkdirAll(dir, 0o700)
}
