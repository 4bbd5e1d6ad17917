package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/importer"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/secret"
)

// profileText is the profile file while a command changes it.
type profileText struct {
	path string
	text []byte      // "" if the file does not exist
	info fs.FileInfo // nil if the file does not exist
}

// parse returns what the text means.
func (t profileText) parse() (*profile.File, error) { return profile.Check(t.path, t.text, t.info) }

// edited is what a function for [config.change] returns.
type edited struct {
	text []byte         // new text of the profile file
	keys []importer.Key // keys for new files beside the profile file
}

// change replaces the profile file by the text that edit returns. Before that, it writes the
// keys that edit returns. If anything fails, it removes the files of these keys, and the profile
// file stays as it was. If the process is killed, the profile file is the old one or the new
// one, with all its keys. Only one process at a time changes the file.
func (c *config) change(edit func(profileText) (edited, error)) error {
	path, err := c.changeable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return notChanged(path, err)
	}
	isLocked := false
	err = locked(filepath.Dir(path), func() error {
		isLocked = true
		removeOldFiles(path)
		old, err := readProfiles(path)
		if err != nil {
			return err
		}
		new, err := edit(old)
		if err == nil {
			_, err = profile.Check(path, new.text, old.info)
		}
		if f, ok := errors.AsType[*failure](err); ok {
			return f
		}
		if err != nil {
			return &failure{code: exitProfile, err: err}
		}
		return new.write(old)
	})
	if _, ok := errors.AsType[*fs.PathError](err); ok && !isLocked {
		return notChanged(path, err)
	}
	c.path = path
	return err
}

// write writes the keys and then the text.
func (e edited) write(old profileText) (err error) {
	var made []string
	defer func() {
		for _, file := range made {
			if err != nil {
				os.Remove(file)
			}
		}
	}()
	for _, k := range e.keys {
		file := filepath.Join(filepath.Dir(old.path), k.File)
		if err := createSecret(file, k.Text); errors.Is(err, fs.ErrExist) {
			return &failure{exitUsage, err, "if no profile uses this file, remove it, then run the same command again"}
		} else if err != nil {
			return err
		}
		made = append(made, file)
	}
	return secret.Replace(old.path, e.text, old.info)
}

// changeable returns the path of the profile file, which may not exist yet. It returns an error
// if the profile file is not one that a command can change.
func (c *config) changeable() (string, error) {
	if c.path == "-" {
		return "", usageError("this command writes to the profile file, so -c - cannot be used")
	}
	path, err := c.find()
	if path == "" {
		return "", &failure{exitProfile, err, "set HOME, or name the profile file with -c"}
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return "", &failure{code: exitProfile, err: fmt.Errorf("%s: not a regular file", path)}
	}
	return path, nil
}

// pathFlag returns -c with the path that the user has given, for a command in the output. It must
// be called before find.
func (c *config) pathFlag() string {
	if c.path == "" {
		return ""
	}
	return "-c " + localWord(c.path) + " "
}

// notChanged returns the failure for a folder in which no file can be written.
func notChanged(path string, err error) error {
	return &failure{exitFailed, fmt.Errorf("cannot change %s: %w", path, err), folderHint}
}

const folderHint = "portknock must be able to create files in this folder; or name another file with -c"

// readProfiles reads the profile file. The file may be missing.
func readProfiles(path string) (t profileText, err error) {
	t.path = path
	t.info, err = os.Stat(path)
	if err == nil {
		t.text, err = os.ReadFile(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return t, &failure{code: exitProfile, err: err}
	}
	return t, nil
}

// temporaryAge is how old the temporary file of a process that was killed must be. A younger one
// may belong to another portknock that writes another file in this folder.
const temporaryAge = time.Minute

// draftAge is how old the copy of a refused profile edit must be. Until then, the user may want
// the changes in it. After that, it is only a further file with secrets.
const draftAge = 24 * time.Hour

// removeOldFiles removes the copies that profile edit has left beside a file, and what processes
// that were killed have left.
func removeOldFiles(path string) {
	removeOlder(filepath.Dir(path), draftAge, func(name string) bool { return isDraftOf(name, filepath.Base(path)) })
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	removeOlder(filepath.Dir(path), temporaryAge, func(name string) bool { return strings.HasPrefix(name, ".portknock-") })
}

// removeOlder removes the regular files of a folder that match and are older than age.
func removeOlder(dir string, age time.Duration, match func(name string) bool) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > age && match(e.Name()) {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// newSecrets draws new secrets for a profile. It returns the settings for the Host block, and the
// keys for new files beside the profile file.
func newSecrets(path string, p *profile.Profile, all []profile.Secret) (settings []profile.Setting, keys []importer.Key, err error) {
	for _, s := range all {
		value := ""
		if s.IsFile {
			kind := cmp.Or(strings.ToLower(strings.TrimSuffix(s.Keyword, "KeyFile")), "key") // key or hmac
			value = newFile(path, p.Name, kind)
			keys = append(keys, importer.Key{File: value, Text: []byte(knock.NewKey().Reveal() + "\n")})
		} else {
			seq, err := p.DrawSequence()
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", p.Name, err)
			}
			value = seq.String()
		}
		settings = append(settings, profile.Setting{Keyword: s.Keyword, Value: value})
	}
	return settings, keys, nil
}

// newFile returns the name of a file that does not exist yet beside the profile file at path.
func newFile(path, name, kind string) string {
	for n := 1; ; n++ {
		file := fileName(name) + "." + kind
		if n > 1 {
			file = fmt.Sprintf("%s-%d.%s", fileName(name), n, kind)
		}
		if _, err := os.Lstat(filepath.Join(filepath.Dir(path), file)); err != nil {
			return file
		}
	}
}

// report is the lines that tell what a command has done: each a verb and a fact.
type report []string

func (r *report) add(verb, format string, args ...any) {
	*r = append(*r, fmt.Sprintf("%-9s %s\n", verb, oneLine(fmt.Sprintf(format, args...))))
}

// addKeys adds the files of new keys beside the profile file at path.
func (r *report) addKeys(path string, keys []importer.Key) {
	for _, k := range keys {
		r.add("wrote", "%s", filepath.Join(filepath.Dir(path), k.File))
	}
}

// print prints the lines, unless -q is given.
func (r report) print(a *app) error {
	if a.log.quiet {
		return nil
	}
	return a.print("%s", strings.Join(r, ""))
}
