package profile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/portknock/portknock/knock/secret"
)

// ErrNoProfile says that the file gives a host neither a Sequence nor a Scheme.
var ErrNoProfile = errors.New("no profile")

// File is a profile file in which every block has been checked.
type File struct {
	name   string
	dir    string // where a relative KeyFile begins; "" if the profile is in no folder
	blocks []*block

	// Blocks by number: those that only a name on their Host line can match, by
	// that name in lower case, and all others.
	byName map[string][]int
	wild   []int
}

// block is a Host line and what stands below it.
type block struct {
	line     int // of the Host line; 0 for what stands above the first
	patterns []pattern
	settings settings
}

// Setting is one keyword and its value.
type Setting struct {
	Keyword string // as the documentation spells it
	Value   string // without quotes, but in a KeyCommand; the words of a list parted by single blanks
	line    int    // where in the file; 0 if not from a file
	source  string // for errors, where it is from instead; "" if from a file
}

// settings has each keyword at most once.
type settings []Setting

// get returns the first setting of one of these keywords.
func (ss settings) get(keywords ...string) (s Setting, ok bool) {
	i := slices.IndexFunc(ss, func(s Setting) bool { return slices.Contains(keywords, s.Keyword) })
	if i < 0 {
		return Setting{}, false
	}
	return ss[i], true
}

// have reports whether there is a setting of one of these keywords.
func (ss settings) has(keywords ...string) bool {
	return slices.ContainsFunc(ss, func(s Setting) bool { return slices.Contains(keywords, s.Keyword) })
}

// knocks reports whether the settings say how to knock.
func (ss settings) defineKnocks() bool { return ss.has("Sequence", "Scheme") }

// Entry is one Host block as a list of profiles shows it. It says how long a
// sequence is, never what it is, and nothing of a key.
type Entry struct {
	Patterns []string `json:"patterns"`
	Line     int      `json:"line"`               // of the Host line, from 1
	HostName string   `json:"hostName,omitempty"` // as written, "%h" and all; "" if the block gives none
	Scheme   string   `json:"scheme,omitempty"`   // "" if the block says nothing of how to knock
	Knocks   int      `json:"knocks,omitempty"`   // in the block's Sequence, or to be drawn; 0 if it gives neither
}

// Load reads the profile file at path. On Unix the file must belong to the user
// or to root, others must not be able to write it, nor to read it if it holds a
// Sequence. A pipe, such as /dev/fd/63 of a shell's process substitution, is
// read as it is.
func Load(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat() // of what is open, not of what the path has come to mean since
	if err != nil {
		return nil, err
	}
	dir, regular := "", info.Mode().IsRegular()
	switch {
	case regular:
		if err = secret.CheckOwner(path, info); err == nil {
			dir, err = filepath.Abs(filepath.Dir(path))
		}
	case info.Mode()&(fs.ModeNamedPipe|fs.ModeCharDevice) == 0:
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, err
	}
	f, err := parse(path, dir, data)
	if err == nil && regular && slices.ContainsFunc(f.blocks, func(b *block) bool { return b.settings.has("Sequence") }) {
		err = secret.CheckReaders(path, info, "a Sequence")
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Parse reads a profile file. Its name is for errors, which begin "NAME:LINE: ".
// As it is in no folder, a relative KeyFile is an error.
func Parse(name string, data []byte) (*File, error) { return parse(name, "", data) }

func parse(name, dir string, data []byte) (*File, error) {
	statements, err := tokenize(name, data)
	if err != nil {
		return nil, err
	}
	return build(name, dir, statements)
}

// build makes a file of its lines.
func build(name, dir string, statements []statement) (*File, error) {
	f := &File{name: name, dir: dir, byName: make(map[string][]int)}
	f.blocks = append(f.blocks, &block{patterns: []pattern{{text: "*", wild: true}}})
	for _, t := range statements {
		last := f.blocks[len(f.blocks)-1]
		if strings.EqualFold(t.keyword, "Host") {
			b, err := newBlock(t)
			if err != nil {
				return nil, fault(name, t.line, "Host: %w", err)
			}
			f.blocks = append(f.blocks, b)
			continue
		}
		s, err := newSetting(t)
		if err != nil {
			return nil, fault(name, t.line, "%w", err)
		}
		if first, twice := last.settings.get(s.Keyword); twice {
			return nil, fault(name, t.line, "%s is set twice; line %d sets it already", s.Keyword, first.line)
		}
		last.settings = append(last.settings, s)
	}
	f.index()
	if err := f.check(); err != nil {
		return nil, err
	}
	return f, nil
}

func newBlock(t statement) (*block, error) {
	if len(t.words) == 0 {
		return nil, errors.New("no host given")
	}
	b := &block{line: t.line, patterns: make([]pattern, len(t.words))}
	for i, w := range t.words {
		var err error
		if b.patterns[i], err = parsePattern(w); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// newSetting checks a line for all that can be said of it alone.
func newSetting(t statement) (Setting, error) {
	k := keywordNamed(t.keyword)
	switch {
	case strings.EqualFold(t.keyword, "Match"):
		return Setting{}, errors.New("Match is not supported; use Host")
	case strings.EqualFold(t.keyword, "Include"):
		return Setting{}, errors.New("Include is not supported; put all profiles into one file")
	case k == nil:
		return Setting{}, unknown(t.keyword)
	case !k.list && len(t.words) > 1:
		return Setting{}, fmt.Errorf("%s: expected one value, got %d", k.name, len(t.words))
	}
	s := Setting{Keyword: k.name, Value: strings.Join(t.words, " "), line: t.line}
	if k.quoted {
		s.Value = joinWords(t.words)
	}
	if err := k.set(new(Profile), s.Value); err != nil {
		return Setting{}, fmt.Errorf("%s: %w", k.name, err)
	}
	return s, nil
}

// ParseSetting reads a setting that is in no file, "Keyword=Value" or "Keyword
// Value". Its source, such as the option that gave it, is for errors, which begin
// "SOURCE: ". A Sequence, KeyFile or KeyCommand is refused: everybody on the
// machine can see a command line.
func ParseSetting(source, s string) (Setting, error) {
	t, err := parseLine(s)
	switch {
	case strings.Contains(s, "\n"):
		err = errors.New("expected one setting, got several lines")
	case err == nil && t == nil:
		err = errors.New("expected a setting such as Port=2222")
	}
	if err != nil {
		return Setting{}, fault(source, 0, "%w", err)
	}
	return checkOverride(source, *t)
}

// checkOverride checks a setting that is from no file.
func checkOverride(source string, t statement) (Setting, error) {
	s, err := newSetting(t)
	k := keywordNamed(t.keyword)
	switch {
	case strings.EqualFold(t.keyword, "Host"):
		err = errors.New("Host cannot be set here; only the profile file can")
	case k != nil && k.secret:
		err = fmt.Errorf("set %s in the profile file; every user of this machine can see a command line", k.name)
	}
	if err != nil {
		return Setting{}, fault(source, 0, "%w", err)
	}
	s.source = source
	return s, nil
}

// checkAgain is checkOverride for a Setting that need not come from ParseSetting.
func (s Setting) checkAgain() (Setting, error) {
	words := []string{s.Value}
	if k := keywordNamed(s.Keyword); k != nil && k.quoted {
		words = splitWords(s.Value)
	}
	return checkOverride(cmp.Or(s.source, "setting"), statement{keyword: s.Keyword, words: words})
}

// Entries returns the Host blocks in file order.
func (f *File) Entries() []Entry {
	entries := []Entry{}
	for _, b := range f.blocks[1:] {
		p := b.settings.newProfile(nil)
		e := Entry{Line: b.line, HostName: p.HostName, Knocks: max(len(p.Sequence), p.Knocks)}
		if b.settings.defineKnocks() {
			e.Scheme = b.settings.scheme().name
		}
		for _, p := range b.patterns {
			e.Patterns = append(e.Patterns, p.written)
		}
		entries = append(entries, e)
	}
	return entries
}
