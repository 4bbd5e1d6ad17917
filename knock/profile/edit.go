package profile

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Insert returns the profile file at path, of which data is the text, with the
// imports behind all that is there but a "Host *" at the end, where defaults
// stand. What is there stays as it is. Each import becomes a profile of its own,
// or none does: it is an error if there is a profile for such a host already, or
// if something in the file would change it. Errors begin "PATH:LINE: ". Insert
// neither reads nor writes a file.
func Insert(path string, data []byte, imports []Import) ([]byte, error) {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	old, err := parse(path, dir, data)
	if err != nil {
		return nil, err
	}
	var blocks bytes.Buffer
	seen := make(map[string]bool)
	for n, i := range imports {
		name := strings.ToLower(i.Name)
		if seen[name] {
			return nil, fmt.Errorf("%s: more than one %s to import", path, i.Name)
		}
		seen[name] = true
		if err := old.vacant(i.Name); err != nil {
			return nil, err
		}
		if n > 0 {
			blocks.WriteByte('\n')
		}
		writeBlock(&blocks, i.Name, i.Settings)
	}
	alone, err := parse(path, dir, blocks.Bytes())
	if err != nil {
		return nil, err
	}
	text, at := old.insert(data, blocks.Bytes())
	// Twice: errors of the first have the places that the user can see, and the
	// second has read what is going to be written.
	grown := old.with(alone, at, bytes.Count(data, []byte("\n"))+1)
	err = grown.check()
	for n := 0; err == nil && n < len(imports); n++ {
		err = grown.sameAs(alone, imports[n])
	}
	if err != nil {
		return nil, err
	}
	if grown, err = parse(path, dir, text); err != nil {
		return nil, err
	}
	for _, i := range imports {
		if err := grown.sameAs(alone, i); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// insert returns the file's text with more blocks in it, and before which of its
// own they are.
func (f *File) insert(data, blocks []byte) (text []byte, n int) {
	at, n := f.end(data)
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
	text = append(text, blocks...)
	if len(after) > 0 {
		text = append(text, '\n')
	}
	return append(text, after...), n
}

// with returns a file that has the blocks of another before its own block n, as
// if they stood at a line.
func (f *File) with(other *File, n, line int) *File {
	grown := &File{name: f.name, dir: f.dir, byName: make(map[string][]int), blocks: slices.Clone(f.blocks)}
	var moved []*block
	for _, b := range other.blocks[1:] {
		m := &block{line: line + b.line, patterns: b.patterns}
		for _, s := range b.settings {
			s.line += line
			m.settings = append(m.settings, s)
		}
		moved = append(moved, m)
	}
	grown.blocks = slices.Insert(grown.blocks, n, moved...)
	grown.index()
	return grown
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

// end returns where in the file's text the next profile belongs, and before which
// block that is. A comment right above a line belongs to it.
func (f *File) end(data []byte) (at, n int) {
	n = len(f.blocks)
	last := f.blocks[n-1]
	if last.line == 0 || len(last.patterns) != 1 || last.patterns[0].written != "*" {
		return len(data), n
	}
	lines := slices.Collect(bytes.Lines(data))[:last.line-1]
	for len(lines) > 0 && bytes.HasPrefix(bytes.TrimLeft(lines[len(lines)-1], " \t"), []byte("#")) {
		lines = lines[:len(lines)-1]
	}
	at = len(bytes.Join(lines, nil))
	if bom := "\ufeff"; at == 0 && bytes.HasPrefix(data, []byte(bom)) {
		at = len(bom)
	}
	return at, n - 1
}

// sameAs reports whether an import is here what it is alone. Defaults that the
// import says nothing of are welcome, but what is in the packet is decided.
func (f *File) sameAs(alone *File, i Import) error {
	want, err := alone.Lookup(i.Name)
	if err != nil {
		return err
	}
	got, err := f.Lookup(i.Name)
	if err != nil {
		return err
	}
	ss := gather(f.matching(i.Name, nil))
	for _, k := range keywords {
		ours := slices.ContainsFunc(i.Settings, func(s Setting) bool { return s.Keyword == k.name })
		packets := slices.ContainsFunc(spaKeywords, func(s keyword) bool { return s.name == k.name })
		if !ours && !packets || k.get(got) == k.get(want) {
			continue
		}
		if s, ok := ss.get(k.name); ok {
			return fault(f.name, s.line, "%s would count for the imported %s too: keep it to the hosts it is for", k.name, i.Name)
		}
		return fmt.Errorf("%s: what is there prevents %s of the imported %s", f.name, k.name, i.Name)
	}
	if got.Name != want.Name {
		return fmt.Errorf("%s: the imported %s would be called %s", f.name, i.Name, got.Name)
	}
	return nil
}
