package profile

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Block returns the text of the Host block of one host with these settings. If the
// settings contradict each other, or if one is missing, Block returns an error.
//
// Most settings come from [ParseSetting]. It refuses a Sequence, KeyFile, HMACKeyFile or
// KeyCommand, so these are [Setting] literals. Block does not check the Value of a
// literal. Each Keyword must be one of the profile file, and must not occur twice; Block
// does not check this.
func Block(host string, given []Setting) ([]byte, error) {
	if err := CheckHost(host); err != nil {
		return nil, err
	}
	place := func(s Setting) int {
		return slices.IndexFunc(keywords, func(k keyword) bool { return k.name == s.Keyword })
	}
	given = slices.SortedStableFunc(slices.Values(given), func(a, b Setting) int { return place(a) - place(b) })
	p := settings(given).newProfile(settings(given).scheme())
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

// Insert returns the text of a profile file with more Host blocks in it. Path is the
// file's path. Data is the file's text, which may be empty. Insert puts the new blocks at
// the end, or before the last block if this is a "Host *" with defaults. All other text
// stays unchanged.
//
// The parameter blocks holds one or more texts of [Block]. Each names one host, and
// becomes a separate profile. Insert returns an error, and inserts no block, also in
// these two cases:
//   - The file already has a profile for such a host.
//   - A setting in the file would change the new profile.
//
// Errors start with "PATH:LINE: ", or with "PATH: " if they are not about one line.
// Insert neither reads nor writes a file.
func Insert(path string, data, blocks []byte) ([]byte, error) {
	dir := filepath.Dir(path)
	old, err := parse(path, dir, data)
	if err != nil {
		return nil, err
	}
	// Line numbers in errors must be those of the file that the user can see. Therefore
	// the new blocks get line numbers after the file's own, and after an empty line.
	above := bytes.Repeat([]byte("\n"), bytes.Count(data, []byte("\n"))+min(1, len(data)))
	imported, err := parse(path, dir, append(above, blocks...))
	if err != nil {
		return nil, err
	}
	if all := imported.blocks[0].settings; len(all) > 0 {
		return nil, fault(path, all[0].line, "a setting precedes the first Host line")
	}
	added := imported.blocks[1:]
	for _, b := range added {
		if err := old.checkNewHost(imported, b.patterns); err != nil {
			return nil, err
		}
	}
	text, n := old.insert(data, blocks)
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: the file is larger than %d bytes", path, maxFile)
	}
	merged := &File{name: path, dir: dir, blocks: slices.Insert(slices.Clone(old.blocks), n, added...), byName: make(map[string][]int)}
	merged.index()
	for _, b := range added {
		if err := merged.checkUnchanged(imported, b); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// checkNewHost returns an error if a Host line of the new blocks is not for exactly one
// host. It also returns an error if the file already has a block for this host, by its
// name or by its HostName. The file imported has only the new blocks.
func (f *File) checkNewHost(imported *File, patterns []pattern) error {
	name := patterns[0]
	i := slices.IndexFunc(f.blocks, func(b *block) bool { return slices.Contains(b.literals(), name.text) })
	p, err := f.Lookup(name.text)
	switch {
	case len(patterns) > 1 || !name.literal():
		return fmt.Errorf("%s: the block to import for %s must name exactly one host", f.name, name.written)
	case len(imported.byName[name.text]) > 1:
		return fmt.Errorf("%s: host %s is imported more than once", f.name, name.written)
	case i >= 0:
		return fault(f.name, f.blocks[i].line, "a Host line already names %s", name.written)
	case err == nil && p.Name != name.text:
		return fmt.Errorf("%s: host %s already has a profile: %s", f.name, name.written, p.Name)
	}
	return nil
}

// insert returns the file's text with more blocks in it, and the block number of the first
// new block. If the last block is a "Host *", the new blocks go before this block and the
// comment directly above it.
func (f *File) insert(data, blocks []byte) ([]byte, int) {
	const bom = "\ufeff"
	before, after, n := string(data), "", len(f.blocks)
	if last := f.blocks[n-1]; last.line > 0 && len(last.patterns) == 1 && last.patterns[0].written == "*" {
		n--
		lines := slices.Collect(strings.Lines(strings.TrimPrefix(before, bom)))
		start := last.line - 1
		for start > 0 && strings.HasPrefix(strings.TrimLeft(lines[start-1], " \t"), "#") {
			start--
		}
		after = "\n" + strings.Join(lines[start:], "")
		before = before[:len(before)+1-len(after)]
	}
	for before != "" && before != bom && !strings.HasSuffix(before, "\n\n") && !strings.HasSuffix(before, "\n\r\n") {
		before += "\n"
	}
	return []byte(before + string(blocks) + after), n
}

// checkUnchanged returns an error if the host of a block has another profile in f than in
// imported, the file with only the new blocks. The file f may give the host defaults that
// the block does not have, but it must not change the SPA packet.
func (f *File) checkUnchanged(imported *File, b *block) error {
	name := b.patterns[0].written
	want, err := imported.Lookup(name)
	if err != nil {
		return err
	}
	got, err := f.Lookup(name)
	if err != nil {
		return err
	}
	ss := gather(f.matching(name, nil))
	for _, k := range keywords {
		if !b.settings.has(k.name) && k.group != spaSettings || k.word(got) == k.word(want) {
			continue
		}
		if s, ok := ss.get(k.name); ok {
			return fault(f.name, s.line, "%s also applies to the imported host %s; limit it to the hosts that need it", k.name, name)
		}
		return fmt.Errorf("%s: a setting in this file overrides %s of the imported host %s", f.name, k.name, name)
	}
	return nil
}
