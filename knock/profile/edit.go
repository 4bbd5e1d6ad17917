package profile

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Block returns the Host block of one host with these settings, as text. Settings
// that contradict each other, or that lack one, are an error.
func Block(host string, given []Setting) ([]byte, error) {
	if err := CheckHost(host); err != nil {
		return nil, err
	}
	given = slices.Clone(given)
	slices.SortStableFunc(given, func(a, b Setting) int { return place(a) - place(b) })
	p := settings(given).fill(settings(given).scheme())
	p.Name = host
	p.setDefaults(given)
	keyword, err := p.conflict(given)
	if err == nil {
		keyword, err = "Scheme", p.complete()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyword, err)
	}
	var b bytes.Buffer
	writeBlock(&b, host, given)
	return b.Bytes(), nil
}

// place returns where the documentation has a setting among the others.
func place(s Setting) int {
	return slices.IndexFunc(keywords, func(k keyword) bool { return k.name == s.Keyword })
}

// Insert returns the text of a profile file with more blocks in it. Path and data
// are the file's path and its text, which may be empty. The blocks stand at the
// end, but before a last "Host *" with defaults; all other text stays as it is.
//
// Each block is for one host, as [Block] makes it, and becomes a profile of its
// own. If the file has a profile for such a host already, or if a setting in the
// file would change the new profile, that is an error, and no block is inserted.
// Errors begin "PATH:LINE: ". Insert neither reads nor writes a file.
func Insert(path string, data, blocks []byte) ([]byte, error) {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	old, err := parse(path, dir, data)
	if err != nil {
		return nil, err
	}
	alone, err := parse(path, dir, blocks)
	if err != nil {
		return nil, err
	}
	if all := alone.blocks[0].settings; len(all) > 0 {
		return nil, fault(path, all[0].line, "a setting stands before the first block")
	}
	for _, b := range alone.blocks[1:] {
		name := b.patterns[0].written
		switch {
		case len(b.patterns) > 1 || !b.patterns[0].literal():
			return nil, fmt.Errorf("%s: the block for %s is not for one host", path, name)
		case len(alone.byName[b.patterns[0].text]) > 1:
			return nil, fmt.Errorf("%s: more than one %s to import", path, name)
		}
		if err := old.vacant(name); err != nil {
			return nil, err
		}
	}
	text, first := old.insert(data, blocks)
	tokens, err := tokenize(path, text)
	if err != nil {
		return nil, err
	}
	// Errors have the lines of the file that the user can see. What is new is
	// behind them.
	lines := func(text []byte) int { return bytes.Count(text, []byte("\n")) }
	for i := range tokens {
		switch n := &tokens[i].line; {
		case *n > first+lines(blocks):
			*n -= lines(text) - lines(data)
		case *n > first:
			*n += lines(data) + 1 - first
		}
	}
	grown, err := build(path, dir, tokens)
	if err != nil {
		return nil, err
	}
	for _, b := range alone.blocks[1:] {
		if err := grown.sameAs(alone, b); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// insert returns the file's text with more blocks in it, and how many lines stand
// before them.
func (f *File) insert(data, blocks []byte) (text []byte, lines int) {
	at := f.end(data)
	before, after := data[:at], data[at:]
	text = slices.Clone(before)
	if rest := bytes.TrimPrefix(before, []byte("\ufeff")); len(rest) > 0 {
		if !bytes.HasSuffix(rest, []byte("\n")) {
			text = append(text, '\n')
		}
		if !bytes.HasSuffix(rest, []byte("\n\n")) && !bytes.HasSuffix(rest, []byte("\n\r\n")) {
			text = append(text, '\n')
		}
	}
	lines = bytes.Count(text, []byte("\n"))
	text = append(text, blocks...)
	if len(after) > 0 {
		text = append(text, '\n')
	}
	return append(text, after...), lines
}

// vacant reports whether no block is a host's own yet, by its name or by its
// HostName.
func (f *File) vacant(name string) error {
	for _, b := range f.blocks {
		if slices.Contains(b.literals(), strings.ToLower(name)) {
			return fault(f.name, b.line, "there is a Host %s already", name)
		}
	}
	if p, err := f.Lookup(name); err == nil && p.Name != strings.ToLower(name) {
		return fmt.Errorf("%s: there is a profile for %s already: %s", f.name, name, p.Name)
	}
	return nil
}

// end returns where in the file's text the next profile belongs. A comment right
// above a line belongs to it.
func (f *File) end(data []byte) (at int) {
	last := f.blocks[len(f.blocks)-1]
	if last.line == 0 || len(last.patterns) != 1 || last.patterns[0].written != "*" {
		return len(data)
	}
	lines := slices.Collect(bytes.Lines(data))[:last.line-1]
	for len(lines) > 0 && bytes.HasPrefix(bytes.TrimLeft(lines[len(lines)-1], " \t"), []byte("#")) {
		lines = lines[:len(lines)-1]
	}
	at = len(bytes.Join(lines, nil))
	if bom := "\ufeff"; at == 0 && bytes.HasPrefix(data, []byte(bom)) {
		at = len(bom)
	}
	return at
}

// sameAs reports whether the host of a block is here what it is in the file alone.
// The file may give it defaults that the block does not have, but may not change
// the packet.
func (f *File) sameAs(alone *File, b *block) error {
	name := b.patterns[0].written
	want, err := alone.Lookup(name)
	if err != nil {
		return err
	}
	got, err := f.Lookup(name)
	if err != nil {
		return err
	}
	ss := gather(f.matching(name, nil))
	for i := range keywords {
		k := &keywords[i]
		if !b.settings.have(k.name) && k.of != spaSettings || k.word(got) == k.word(want) {
			continue
		}
		if s, ok := ss.get(k.name); ok {
			return fault(f.name, s.line, "%s would count for the imported %s too: keep it to the hosts it is for", k.name, name)
		}
		return fmt.Errorf("%s: what is there prevents %s of the imported %s", f.name, k.name, name)
	}
	if got.Name != want.Name {
		return fmt.Errorf("%s: the imported %s would be called %s", f.name, name, got.Name)
	}
	return nil
}
