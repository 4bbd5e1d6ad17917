package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/portknock/portknock/knock/profile"
)

// importProfiles takes profiles over from another program's file.
func (a *app) importProfiles(ctx context.Context, from string) error {
	if a.shared.config == "-" {
		return usageError("profile import writes to the profile file, which cannot be standard input")
	}
	text, err := await(ctx, func() ([]byte, error) { return a.readForeign(from) })
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	imports, warnings, err := profile.ImportFwknop(from, text, a.stanza)
	a.warn(warnings)
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	path, err := a.configPath()
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	keys, err := insertProfiles(path, imports)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := a.print("wrote %s\n", key); err != nil {
			return err
		}
	}
	for _, i := range imports {
		if err := a.print("added Host %s to %s\n", i.Name, path); err != nil {
			return err
		}
	}
	return nil
}

const maxForeign = 4 << 20 // bytes

// readForeign reads a file to import, or standard input for "-".
func (a *app) readForeign(path string) ([]byte, error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, maxForeign+1)) // the reader says that it is too large
}

// configPath returns the path of the profile file, whether or not there is one.
func (a *app) configPath() (string, error) {
	if a.shared.config != "" {
		return a.shared.config, nil
	}
	path, err := profile.Find()
	if errors.Is(err, fs.ErrNotExist) && path != "" {
		err = nil
	}
	return path, err
}

// insertProfiles adds imports to the profile file at path, and writes their keys
// into files beside it, whose paths it returns. If anything fails, all is as it
// was before.
func insertProfiles(path string, imports []profile.Import) (keys []string, err error) {
	old, like, err := readConfig(path)
	if err != nil {
		return nil, &failure{code: exitProfile, err: err}
	}
	text, err := profile.Insert(path, old, imports)
	if err != nil {
		return nil, &failure{code: exitProfile, err: err}
	}

	var made []string
	defer func() {
		if err == nil {
			return
		}
		for _, m := range slices.Backward(made) {
			os.Remove(m)
		}
	}()
	dir := filepath.Dir(path)
	if made, err = makeFolders(dir); err != nil {
		return nil, err
	}
	for _, i := range imports {
		for _, k := range i.Keys {
			file := filepath.Join(dir, k.File)
			if err := createSecret(file, k.Text()); err != nil {
				return nil, err
			}
			made, keys = append(made, file), append(keys, file)
		}
	}
	if like == nil {
		return keys, createSecret(path, text)
	}
	return keys, replaceSecret(path, text, like)
}

// readConfig reads the profile file as text, if it is one that may be used. It
// returns neither if there is no file.
func readConfig(path string) (text []byte, info fs.FileInfo, err error) {
	if info, err = os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return nil, nil, fmt.Errorf("%s: a link that leads nowhere", path)
		}
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
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
