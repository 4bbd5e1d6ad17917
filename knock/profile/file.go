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

// ErrNoProfile means that the file has neither a Sequence nor a Scheme for a host.
var ErrNoProfile = errors.New("no profile")

// File is a profile file in which every block has been checked.
type File struct {
	name   string   // file name in errors
	dir    string   // folder where a relative KeyFile starts; "" if the file is in no folder
	first  string   // comment on the first line; "" if the line is not a comment
	blocks []*block // settings above the first Host line, then the Host blocks

	// wild has the numbers of the blocks that have a wildcard in a pattern without "!".
	// byName has the numbers of the other blocks, for each name on their Host line. The
	// names are in lower case.
	byName map[string][]int
	wild   []int
}

// block is a Host line and the settings below it.
type block struct {
	line     int // line number of the Host line; 0 for settings above the first Host line
	patterns []pattern
	settings settings
}

// Setting is a keyword and its value.
type Setting struct {
	Keyword string // keyword with its usual capitals, such as HostName
	Value   string // value with one space between words; quotes are removed, except from a command
	line    int    // line number in the file; 0 if the setting is not from a file
	source  string // source for errors if the setting is not from a file, such as an option; else ""
}

// written returns the value as a line of the file has it.
func (s Setting) written() string {
	if keywordNamed(s.Keyword).list {
		return s.Value
	}
	return quoteWord(s.Value)
}

// settings is a list of settings. No keyword occurs twice in it.
type settings []Setting

// get returns the first setting that has one of these keywords.
func (ss settings) get(keywords ...string) (s Setting, ok bool) {
	i := slices.IndexFunc(ss, func(s Setting) bool { return slices.Contains(keywords, s.Keyword) })
	if i < 0 {
		return Setting{}, false
	}
	return ss[i], true
}

// has reports whether a setting has one of these keywords.
func (ss settings) has(keywords ...string) bool {
	return slices.ContainsFunc(ss, func(s Setting) bool { return slices.Contains(keywords, s.Keyword) })
}

// defineKnocks reports whether the settings say how to knock: by a Sequence or a Scheme.
func (ss settings) defineKnocks() bool { return ss.has("Sequence", "Scheme") }

// Entry describes a Host block in a list of profiles. It contains the length of a
// sequence, but never the sequence itself or anything about a key.
type Entry struct {
	Patterns []string `json:"patterns"`           // patterns of the Host line, as written
	Line     int      `json:"line"`               // line number of the Host line, from 1
	HostName string   `json:"hostName,omitempty"` // HostName as written, with any "%h"; "" if the block gives none
	Scheme   string   `json:"scheme,omitempty"`   // scheme, static for a Sequence alone; "" if the block gives neither
	Knocks   int      `json:"knocks,omitempty"`   // length of the Sequence, or the setting Knocks; 0 if the block gives neither
}

// Load reads the profile file at path. A relative KeyFile or HMACKeyFile is relative to
// the file's folder.
//
// The file must belong to the user or to root, and other users must not be able to write
// it. If the file contains a Sequence, other users must not be able to read it either. On
// Windows, SYSTEM and the administrators take the place of root.
//
// The path may lead to a pipe, such as /dev/fd/63 of a shell's process substitution, or
// to a character device. Load then does not make these checks, and a relative KeyFile is
// an error, as in [Parse].
func Load(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat() // of the open file: by now, the path may name another file
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
	if err == nil && regular {
		err = f.checkReaders(path, info)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Check reads a text that is meant for the profile file at path, and makes the checks of [Load].
// Info describes the file now, and is nil if the file does not exist. Check does not read the
// file.
func Check(path string, data []byte, info fs.FileInfo) (*File, error) {
	if info != nil {
		if err := secret.CheckOwner(path, info); err != nil {
			return nil, err
		}
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	f, err := parse(path, dir, data)
	if err == nil && info != nil {
		err = f.checkReaders(path, info)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// checkReaders returns an error if f contains a Sequence and other users can read the file at
// path.
func (f *File) checkReaders(path string, info fs.FileInfo) error {
	if !slices.ContainsFunc(f.blocks, func(b *block) bool { return b.settings.has("Sequence") }) {
		return nil
	}
	return secret.CheckReaders(path, info, "a Sequence")
}

// Parse reads the text of a profile file. Errors start with its name, as "NAME:LINE: ".
// A relative KeyFile or HMACKeyFile is an error of Parse or [File.Lookup], because the
// text has no folder that it could be relative to.
func Parse(name string, data []byte) (*File, error) { return parse(name, "", data) }

func parse(name, dir string, data []byte) (*File, error) {
	statements, err := tokenize(name, data)
	if err != nil {
		return nil, err
	}
	f := &File{name: name, dir: dir, byName: make(map[string][]int)}
	line, _, _ := strings.Cut(string(data), "\n")
	if text, ok := strings.CutPrefix(line, "#"); ok {
		f.first = strings.TrimSpace(text)
	}
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

// newSetting returns the setting in a statement. It checks everything that it can check
// without other statements.
func newSetting(t statement) (Setting, error) {
	k := keywordNamed(t.keyword)
	switch {
	case strings.EqualFold(t.keyword, "Match"):
		return Setting{}, errors.New("keyword Match is not supported; use Host")
	case strings.EqualFold(t.keyword, "Include"):
		return Setting{}, errors.New("keyword Include is not supported; put all profiles into one file")
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

// ParseSetting reads a setting that is not in a file: "Keyword=Value" or "Keyword Value".
// The parameter source says where the setting comes from, such as "-o". Errors start with
// "SOURCE: ". A Sequence, KeyFile, HMACKeyFile or KeyCommand is an error, because every
// user of the machine can see a command line.
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

// checkOverride returns the setting in a statement that is not from a file.
func checkOverride(source string, t statement) (Setting, error) {
	s, err := newSetting(t)
	k := keywordNamed(t.keyword)
	switch {
	case strings.EqualFold(t.keyword, "Host"):
		err = errors.New("a Host line cannot be set here, only in the profile file")
	case k != nil && k.secret:
		err = fmt.Errorf("set %s in the profile file; every user of this machine can see a command line", k.name)
	}
	if err != nil {
		return Setting{}, fault(source, 0, "%w", err)
	}
	s.source = source
	return s, nil
}

// checkAgain is checkOverride for a Setting that may not come from ParseSetting.
func (s Setting) checkAgain() (Setting, error) {
	words := []string{s.Value}
	if k := keywordNamed(s.Keyword); k != nil && k.quoted {
		words = splitWords(s.Value)
	}
	return checkOverride(cmp.Or(s.source, "setting"), statement{keyword: s.Keyword, words: words})
}

// Comment returns the text of the comment on the first line, without the "#" and the
// blanks around the text. It returns "" if the first line does not start with "#". A
// program can store facts about the file there.
func (f *File) Comment() string { return f.first }

// Entries describes the Host blocks, in file order.
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
