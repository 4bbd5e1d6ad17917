package profile

import (
	"bytes"
	"errors"
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
// does not check this. [Profile.Secrets] says which of them a profile needs.
func Block(host string, given []Setting) ([]byte, error) {
	place := func(s Setting) int {
		return slices.IndexFunc(keywords, func(k keyword) bool { return k.name == s.Keyword })
	}
	given = slices.SortedStableFunc(slices.Values(given), func(a, b Setting) int { return place(a) - place(b) })
	p, err := Draft(host, given)
	if err != nil {
		return nil, err
	}
	if err := p.complete(); err != nil {
		return nil, fmt.Errorf("%s: %w", "Scheme", err)
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
//   - The file already has a profile for such a host. The error matches [ErrExists].
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
	more, err := parse(path, dir, append(above, blocks...))
	if err != nil {
		return nil, err
	}
	if all := more.blocks[0].settings; len(all) > 0 {
		return nil, fault(path, all[0].line, "a setting precedes the first Host line")
	}
	added := more.blocks[1:]
	for _, b := range added {
		if err := old.checkNewHost(more, b.patterns); err != nil {
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
		if err := merged.checkUnchanged(more, b); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// ErrExists means that a file already has a profile for a host.
var ErrExists = errors.New("the host already has a profile")

// existsError is an error that matches ErrExists and says where the profile is.
type existsError struct{ error }

func (existsError) Is(target error) bool { return target == ErrExists }

// checkNewHost returns an error if a Host line of the new blocks is not for exactly one
// host. It also returns an error that matches ErrExists if the file already has a block for this host, by its
// name or by its HostName. The file more has only the new blocks.
func (f *File) checkNewHost(more *File, patterns []pattern) error {
	name := patterns[0]
	i := slices.IndexFunc(f.blocks, func(b *block) bool { return slices.Contains(b.literals(), name.text) })
	p, err := f.Lookup(name.text)
	switch {
	case len(patterns) > 1 || !name.literal():
		return fmt.Errorf("%s: the new block for %s must name exactly one host", f.name, name.written)
	case len(more.byName[name.text]) > 1:
		return fmt.Errorf("%s: host %s is added more than once", f.name, name.written)
	case i >= 0:
		return existsError{fault(f.name, f.blocks[i].line, "a Host line already names %s", name.written)}
	case err == nil && p.Name != name.text:
		o, _ := f.Origin(name.text)
		return existsError{fault(f.name, o.Line, "host %s already has a profile: %s", name.written, p.Name)}
	}
	return nil
}

// bom is the byte order mark that programs of Windows write at the start of a file.
const bom = "\ufeff"

// insert returns the file's text with more blocks in it, and the block number of the first
// new block. If the last block is a "Host *", the new blocks go before this block and the
// comment directly above it.
func (f *File) insert(data, blocks []byte) ([]byte, int) {
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
// more, the file with only the new blocks. The file f may give the host defaults that
// the block does not have, but it must not change the SPA packet.
func (f *File) checkUnchanged(more *File, b *block) error {
	name := b.patterns[0].written
	want, err := more.Lookup(name)
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
		s, ok := ss.get(k.name)
		if !ok { // an alternative prevents the setting, such as a Scheme the Sequence
			s, _ = ss.get("Sequence", "Scheme", "KeyFile", "KeyCommand", "AllowIP", "AllowIPCommand")
		}
		advice := "move it below a Host line"
		if !slices.Contains(f.blocks[0].settings, s) {
			advice = "add !" + name + " to its Host line"
		}
		return fault(f.name, s.line, "%s also applies to the new host %s; %s", s.Keyword, name, advice)
	}
	return nil
}

// Remove returns the text of a profile file without a host, which may be a pattern of a Host
// line. Path is the file's path, and data is the file's text. If the host is the Name of a
// profile, Remove also removes the other names of this profile.
//
// A Host block for no other host disappears, together with the comment directly above it
// and the indented comment directly below it. If an empty line follows, it disappears too;
// at the end of the file, this is the empty line before. On any other Host line, only the
// names disappear. All other text stays unchanged.
//
// If no Host line names the host, the error matches [ErrNoProfile]. Other errors start with
// "PATH:LINE: ", or with "PATH: " if they are not about one line. Remove neither reads nor
// writes a file.
func Remove(path string, data []byte, host string) ([]byte, error) {
	f, err := parse(path, filepath.Dir(path), data)
	if err != nil {
		return nil, err
	}
	names := f.namesOf(host)
	mark, lines := splitLines(data)
	found := false
	for n, b := range slices.Backward(f.blocks) {
		var gone []int // numbers of the patterns to remove
		last := true   // no other host is left
		for i, p := range b.patterns {
			switch {
			case p.not || b.line == 0: // line 0: settings above the first Host line
			case slices.Contains(names, p.text):
				gone = append(gone, i)
			default:
				last = false
			}
		}
		found = found || len(gone) > 0
		switch {
		case len(gone) == 0:
		case last:
			start, end := f.extent(n, lines)
			lines = slices.Delete(lines, start, end)
		default:
			if lines[b.line-1], err = withoutWords(lines[b.line-1], gone); err != nil {
				return nil, fault(path, b.line, "Host: %w", err)
			}
		}
	}
	if !found {
		return nil, fmt.Errorf("%w: no Host line in %s names %s", ErrNoProfile, path, host)
	}
	text := []byte(mark + strings.Join(lines, ""))
	if _, err := parse(path, filepath.Dir(path), text); err != nil {
		return nil, err
	}
	return text, nil
}

// namesOf returns the names to remove for a host, in lower case: all names of its profile if the
// host is the Name of a profile, or else only the host.
func (f *File) namesOf(host string) []string {
	host = strings.ToLower(host)
	names := []string{host}
	for _, b := range f.blocks {
		for _, name := range b.literals() {
			if f.profileName(name, f.matching(name, nil)) == host {
				names = append(names, name)
			}
		}
	}
	return names
}

// extent returns the lines of a Host block, from start up to but not including end, as [Remove]
// describes them.
func (f *File) extent(number int, lines []string) (start, end int) {
	isBlank := func(n int) bool { return strings.TrimSpace(lines[n]) == "" }
	// indented returns the number of blanks before the comment in a line, and -1 for another line.
	indented := func(n int) int {
		text := strings.TrimLeft(lines[n], " \t")
		if !strings.HasPrefix(text, "#") {
			return -1
		}
		return len(lines[n]) - len(text)
	}
	b := f.blocks[number]
	host := lines[b.line-1]
	own := len(host) - len(strings.TrimLeft(host, " \t"))
	start, end = b.line-1, b.line
	for start > 0 && indented(start-1) == own {
		start--
	}
	for _, s := range b.settings {
		end = max(end, s.line)
	}
	for end < len(lines) && indented(end) > own {
		end++
	}
	switch {
	case end < len(lines) && isBlank(end):
		end++
	case end == len(lines) && start > 0 && isBlank(start-1):
		start--
	}
	return start, end
}

// splitLines returns the lines of a text with their ends, and the byte order mark before them.
func splitLines(data []byte) (mark string, lines []string) {
	text := strings.TrimPrefix(string(data), bom)
	return string(data[:len(data)-len(text)]), slices.Collect(strings.Lines(text))
}

// span is the place of a word in a line, with its quotes.
type span struct{ start, end int }

// wordsIn returns the places of the words of the value in a line with a keyword.
func wordsIn(line string) (words []span, err error) {
	text := strings.TrimRight(line, "\r\n")
	isBlank := func(c byte) bool { return c == ' ' || c == '\t' }
	i := 0
	skip := func(while func(c byte) bool) {
		for i < len(text) && while(text[i]) {
			i++
		}
	}
	skip(isBlank)
	skip(func(c byte) bool { return !isBlank(c) && c != '=' })
	skip(isBlank)
	if i < len(text) && text[i] == '=' {
		i++
	}
	var unquoted []string
	for {
		skip(isBlank)
		if i == len(text) || text[i] == '#' {
			break
		}
		start, quoted := i, false
		skip(func(c byte) bool {
			quoted = quoted != (c == '"')
			return quoted || !isBlank(c)
		})
		words = append(words, span{start, i})
		unquoted = append(unquoted, strings.ReplaceAll(text[start:i], `"`, ""))
	}
	// The parser uses a library to split a line. What it reads must be what is replaced.
	if t, err := parseLine(text); err != nil || t == nil || len(words) == 0 || !slices.Equal(t.words, unquoted) {
		return nil, errors.New("the line has an unusual form; change it in an editor")
	}
	return words, nil
}

// withoutWords returns a line without the words of its value that have these numbers. The blanks
// before such a word go too.
func withoutWords(line string, gone []int) (string, error) {
	words, err := wordsIn(line)
	if err != nil {
		return "", err
	}
	text := line[:words[0].start]
	first := true
	for i, w := range words {
		if slices.Contains(gone, i) {
			continue
		}
		if !first {
			text += line[words[i-1].end:w.start]
		}
		first = false
		text += line[w.start:w.end]
	}
	return text + line[words[len(words)-1].end:], nil
}
