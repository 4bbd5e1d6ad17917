package profile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/secret"
)

// keySettings are the settings for the key of a profile.
var keySettings = &group{
	keywords: []keyword{
		secretFile("KeyFile", func(p *Profile) *string { return &p.KeyFile }),
		command("KeyCommand", true, func(p *Profile) *[]string { return &p.KeyCommand }),
		yesNo("DeriveHostKey", func(p *Profile) *bool { return &p.DeriveHostKey }).
			shownWhen(func(p *Profile) bool { return p.Period > 0 }), // shown only for schemes that follow the clock
	},
	check: func(p *Profile) (keyword string, err error) {
		if p.KeyFile != "" && len(p.KeyCommand) > 0 {
			return "KeyCommand", errors.New("cannot be combined with KeyFile")
		}
		return "", nil
	},
	complete: func(p *Profile) error {
		if !p.hasKey() {
			return fmt.Errorf("%s needs a KeyFile or a KeyCommand", p.Scheme)
		}
		return nil
	},
}

// LoadKey reads a file with the text of one key; see [knock.ParseKey]. The file must be
// regular and have at most 4096 bytes. The file must meet ssh's rules for a private key,
// as [secret.Read] describes them.
func LoadKey(path string) (knock.Key, error) { return loadKey(path, parseKey) }

// loadKey is LoadKey with parse instead of [parseKey].
func loadKey(path string, parse func([]byte) (knock.Key, error)) (knock.Key, error) {
	text, err := secret.Read(path)
	if err != nil {
		return knock.Key{}, err
	}
	text, err = withoutMark(text)
	var k knock.Key
	if err == nil {
		k, err = parse(text)
	}
	if err != nil {
		return knock.Key{}, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// key reads the profile's key. No other function opens the KeyFile or runs the KeyCommand.
func (p *Profile) key(ctx context.Context, parse func([]byte) (knock.Key, error)) (k knock.Key, err error) {
	if p.KeyFile != "" {
		k, err = loadKey(p.KeyFile, parse)
	} else {
		k, err = run(ctx, p, "KeyCommand", p.KeyCommand, "a key", parse)
	}
	if err == nil && p.DeriveHostKey {
		k = k.Derive(p.Name)
	}
	return k, err
}

// hasKey reports whether the profile has a KeyFile or a KeyCommand.
func (p *Profile) hasKey() bool { return p.KeyFile != "" || len(p.KeyCommand) > 0 }

func parseKey(text []byte) (knock.Key, error) {
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return knock.Key{}, errors.New("empty, expected a key")
	}
	return knock.ParseKey(string(text))
}

// parseSecret returns a key that is the text itself, without one final newline.
func parseSecret(text []byte) (knock.Key, error) { return knock.KeyFrom(trimNewline(text)), nil }

// trimNewline removes one newline from the end. It also removes a newline of Windows
// ("\r\n"), because programs on Windows print only this newline.
func trimNewline(text []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
}

// run runs a command and returns the result of parse for the line that it prints; see
// [secret.Runner.Run]. An error names the program, but not its arguments, because these
// are private to the user.
func run[T any](
	ctx context.Context, p *Profile, keyword string, command []string, what string, parse func([]byte) (T, error),
) (v T, err error) {
	name, err := expandHome(command[0])
	var text []byte
	if err == nil {
		text, err = p.Runner.Run(ctx, slices.Concat([]string{name}, command[1:]), what)
	}
	if err == nil {
		v, err = parse(text)
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w", keyword, command[0], err)
	}
	return v, err
}

// checkPath returns an error for a path that [keyPath] and [expandHome] cannot use in any
// folder.
func checkPath(path string) error {
	// Without this check, the error for a missing file would show the key.
	if lower := strings.ToLower(path); strings.HasPrefix(lower, "portknock-key-1:") || strings.HasPrefix(lower, "base64:") {
		return errors.New("this looks like a key; put it into a file with mode 0600 and give the file's path")
	}
	if rest, tilde := strings.CutPrefix(path, "~"); tilde && (rest == "" || !os.IsPathSeparator(rest[0])) {
		return fmt.Errorf("%q: only ~/ is supported, for your own home folder", path)
	}
	return nil
}

// keyPath returns the absolute path of a KeyFile. "~/" is the user's home. Any other
// relative path starts at dir, the folder of the profile file. In ssh_config it would
// start at the working folder, where another user can have put a file.
func keyPath(path, dir string) (string, error) {
	path, err := expandHome(path)
	switch {
	case err != nil:
		return "", err
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	case dir == "":
		return "", fmt.Errorf("%q must be an absolute path, because the profile was not read from a folder", path)
	}
	return filepath.Join(dir, path), nil
}

// expandHome replaces "~/" at the start of a path with the user's home.
func expandHome(path string) (string, error) {
	if !strings.HasPrefix(path, "~") {
		return path, nil
	}
	home := homeDir()
	if home == "" {
		return "", fmt.Errorf("%q: no home folder; set HOME to an absolute path", path)
	}
	return filepath.Join(home, path[1:]), nil
}

// checkCommand returns an error for a command whose program would be searched for in the
// working folder.
func checkCommand(words []string) error {
	if len(words) == 0 {
		return errors.New("no command given")
	}
	name := words[0]
	if err := checkPath(name); err != nil {
		return err
	}
	if filepath.Base(name) != name && !strings.HasPrefix(name, "~") && !filepath.IsAbs(name) {
		return fmt.Errorf("%q is not a program name or an absolute path", name)
	}
	return nil
}

// joinWords joins words so that [splitWords] can split them again.
func joinWords(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quoteWord(w)
	}
	return strings.Join(quoted, " ")
}

// quoteWord puts quotes around a word that needs them. No word contains a quote itself.
func quoteWord(w string) string {
	if strings.ContainsAny(w, " \t#") {
		return `"` + w + `"`
	}
	return w
}

// SharesKey returns the other hosts that use the key of the profile p, sorted. A host is
// the Name of a profile, or a pattern with a wildcard of a Host line in the file.
// SharesKey leaves out other names of the same server. It compares each KeyFile and
// KeyCommand, and does not read a key.
//
// An attacker who has the rules of one of these servers can open all of them.
// DeriveHostKey prevents this, because it gives each host its own key. SharesKey thus
// ignores profiles that have it.
func (f *File) SharesKey(p *Profile) (others []string) {
	if !p.hasKey() || p.DeriveHostKey {
		return nil
	}
	for _, b := range f.blocks[1:] {
		for _, pattern := range b.patterns {
			if pattern.not {
				continue
			}
			// For a pattern with a wildcard, look up a host name that it matches.
			q, err := f.Lookup(strings.NewReplacer("*", "x", "?", "x").Replace(pattern.text))
			switch {
			case err != nil || q.DeriveHostKey || q.KeyFile != p.KeyFile || !slices.Equal(q.KeyCommand, p.KeyCommand):
			case p.HostName != "" && sameHost(p.HostName, q.HostName) && p.Port == q.Port:
				// q is the same server under another name.
			case pattern.wild:
				others = append(others, pattern.text)
			case q.Name != p.Name:
				others = append(others, q.Name)
			}
		}
	}
	slices.Sort(others)
	return slices.Compact(others)
}
