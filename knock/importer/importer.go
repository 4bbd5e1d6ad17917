// Package importer converts files of other programs into profiles. Each program has
// its own Go file.
//
// An importer accepts only lines that mean what they seem to mean. For a line that the
// other program reads differently from how a person reads it, the importer returns an
// error. The error names the line and the expected form. Without this error, a user would
// find out much later that a profile does not open the ports, or asks for something else.
package importer

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/portknock/portknock/knock/profile"
)

// Import is a profile made from another program's file.
type Import struct {
	Name  string // host that the profile is for
	Block []byte // Host block of the profile, for [profile.Insert]
	Keys  []Key  // keys that Block refers to
}

// Key is a key that an [Import] refers to, as a KeyFile or an HMACKeyFile.
type Key struct {
	File string // name of the key file, in the folder of the profile file
	Text []byte // text of the key file
}

// Options say what to convert. The zero Options convert everything in a file that contains
// the addresses of its servers.
type Options struct {
	Section string // the only section to convert, in fwknop's words a stanza; "" for all sections
	Name    string // name of the profile, or the first of a knockd.conf; "" for a name from the file or the Host
	Host    string // address of the server, for a file that does not contain it; "" for other files

	// Settings are more settings for each profile. They replace those from the file, and the
	// first of each keyword counts.
	Settings []profile.Setting
}

var (
	// ErrUnclear means that a file is not clearly the file of one program.
	ErrUnclear = errors.New("unknown kind of file")
	// ErrNoHost means that a file does not contain the address of the server, and Options
	// do not either.
	ErrNoHost = errors.New("the file does not contain the address of the server")
)

// programFile is a file of a program that can be converted.
type programFile struct {
	program string                 // name of the program
	name    string                 // usual name of the file
	isLine  func(line string) bool // reports whether the program, and no other one, knows the first word of a line
	local   bool                   // the file is the server's own, and does not contain the server's address
	convert func(f *source, data []byte, o Options) ([]Import, error)
}

// programs returns the files of all programs.
func programs() []programFile {
	return []programFile{
		{"fwknop", ".fwknoprc", isFwknopLine, false, convertFwknop},
		{"knockd", "knockd.conf", isKnockdLine, true, convertKnockd},
		{"portknocker", "portknocker.ini", isPortknockerLine, false, convertPortknocker},
	}
}

// Programs returns the names of the programs whose files [Convert] can convert: fwknop for
// the .fwknoprc of fwknop's client, knockd for the knockd.conf of a server, and portknocker
// for the portknocker.ini of dbolivar's python_port_knocker.
func Programs() (names []string) {
	for _, p := range programs() {
		names = append(names, p.program)
	}
	return names
}

// fileNames returns the usual names of the files that can be converted.
func fileNames() string {
	var names []string
	for _, p := range programs() {
		names = append(names, p.name)
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// Recognize returns the name of the program whose file has the text data. A line counts if
// only one program knows its first word. If no line counts, or if lines of several programs
// count, Recognize returns an error that matches [ErrUnclear].
func Recognize(file string, data []byte) (program string, err error) {
	first := 0 // number of the line that decided
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		for _, p := range programs() {
			if p.program == program || !p.isLine(strings.TrimSpace(line)) {
				continue
			}
			if program != "" {
				return "", fmt.Errorf("%s:%d: %w: this line is for %s, but line %d for %s", file, n, ErrUnclear, p.program, first, program)
			}
			program, first = p.program, n
		}
	}
	if program == "" {
		return "", fmt.Errorf("%s: %w; expected a %s", file, ErrUnclear, fileNames())
	}
	return program, nil
}

// Convert converts the text of a file of a program, one of [Programs].
//
// Convert accepts only what the program reads as a person reads it. It returns an error for
// any other line, and for a value that no setting accepts. A section may be correct but have
// no equivalent profile. Convert leaves out such a section, with a warning. If no section
// remains, Convert returns an error.
//
// Warnings and errors begin with "FILE:LINE: ", or "FILE: " without a line. They never
// contain any part of a key or a sequence. Convert may return warnings together with an
// error.
func Convert(program, file string, data []byte, o Options) (imports []Import, warnings []string, err error) {
	all := programs()
	i := slices.IndexFunc(all, func(p programFile) bool { return p.program == program })
	switch {
	case i < 0:
		return nil, nil, fmt.Errorf("unknown program %q; the programs are %s", program, strings.Join(Programs(), ", "))
	case !all[i].local && o.Host != "":
		return nil, nil, fmt.Errorf("%s: a %s contains the addresses of its servers, so no other can be given", file, all[i].name)
	case all[i].local && o.Host == "":
		return nil, nil, fmt.Errorf("%s: %w", file, ErrNoHost)
	}
	f := &source{name: file, named: make(map[string]*section), settings: o.Settings}
	imports, err = all[i].convert(f, data, o)
	if err == nil && len(imports) > 1 && imports[1].Name == o.Name {
		err = fmt.Errorf("%s: %d profiles cannot all have the name %s; choose one by its name in the file", file, len(imports), o.Name)
	}
	if err != nil {
		imports = nil
	}
	return imports, f.warnings, err
}

// maxFile is the size limit of a file, in bytes.
const maxFile = 4 << 20

// source is a file of another program.
type source struct {
	name     string
	sections []*section
	named    map[string]*section // sections by name
	settings []profile.Setting   // settings for each profile, from [Options]
	warnings []string
}

// section is a line [NAME] and the lines below it. Only the first error of a section
// counts: after the error, no call has an effect. The error matters only if the section is
// converted.
type section struct {
	file              *source
	name              string
	line              int
	values            map[string]value
	server, addressIn string // address of the server in lower case, and the variable that contains it
	settings          []profile.Setting
	result            Import
	err               error
}

// value is a line that sets a variable.
type value struct {
	variable string
	text     string
	line     int // 0 if the section does not have the variable
}

// errLeftOut means that a section cannot become a profile. A warning says why.
var errLeftOut = errors.New("left out")

// fault returns an error for a line.
func (f *source) fault(line int, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", f.name, line, fmt.Errorf(format, args...))
}

// readLines calls read for each line, without its end, and with its number. The program
// reads the rest of a line of more than most bytes as another line.
func (f *source) readLines(data []byte, program string, most int, read func(line string, n int) error) error {
	if len(data) > maxFile {
		return fmt.Errorf("%s: the file is larger than %d bytes", f.name, maxFile)
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		n++
		control := strings.IndexFunc(line, func(c rune) bool { return c < ' ' && c != '\t' || c == '\ufeff' })
		switch {
		case most > 0 && len(line) > most:
			return f.fault(n, "longer than %d bytes, and %s reads the rest as another line; shorten it", most, program)
		case control >= 0:
			return f.fault(n, "remove the control character %U", []rune(line[control:])[0])
		}
		if err := read(line, n); err != nil {
			return err
		}
	}
	return nil
}

// begin adds a section. The key identifies the section among all sections of the file.
func (f *source) begin(noun, name, key string, n int) error {
	if first := f.named[key]; first != nil {
		return f.fault(n, "%s [%s] appears twice; move its lines into the %[1]s at line %[3]d", noun, name, first.line)
	}
	s := &section{file: f, name: name, line: n, values: make(map[string]value)}
	f.named[key] = s
	f.sections = append(f.sections, s)
	return nil
}

// last returns the section to which the next line belongs, nil before the first section.
func (f *source) last() *section {
	if len(f.sections) == 0 {
		return nil
	}
	return f.sections[len(f.sections)-1]
}

// convertAll converts these sections, and returns an error if none can be converted.
func (f *source) convertAll(noun string, chosen []*section, convert func(*section)) (imports []Import, err error) {
	found := map[string]string{} // name of the first profile for each server
	for _, s := range chosen {
		if convert(s); s.err == errLeftOut {
			continue
		}
		if s.err != nil {
			return nil, s.err
		}
		first := cmp.Or(found[s.server], s.result.Name)
		s.warn(first != s.result.Name, value{}, "has the same %s as profile %s, which ssh's %%h finds; to use it, name profile %s",
			s.addressIn, first, s.result.Name)
		found[s.server] = first
		imports = append(imports, s.result)
	}
	if len(imports) == 0 {
		return nil, fmt.Errorf("%s: the file has no %s that can be imported", f.name, noun)
	}
	return imports, nil
}

// warn adds a warning if due is true. The warning is about a value, or about the whole
// section if from is the zero value.
func (s *section) warn(due bool, from value, format string, args ...any) {
	if due && s.err == nil {
		warning := s.file.fault(cmp.Or(from.line, s.line), "[%s] %w", s.name, fmt.Errorf(format, args...))
		s.file.warnings = append(s.file.warnings, warning.Error())
	}
}

// leaveOut is like warn, and also leaves out the section if due is true.
func (s *section) leaveOut(due bool, from value, format string, args ...any) {
	s.warn(due, from, "is left out: "+format, args...)
	if due && s.err == nil {
		s.err = errLeftOut
	}
}

// refuse sets the section's error, about a value, if due is true.
func (s *section) refuse(due bool, from value, format string, args ...any) {
	if due && s.err == nil {
		s.err = s.file.fault(from.line, from.variable+": "+format, args...)
	}
}

// add adds a value. A variable that appears twice is an error, because only one of its
// values counts for the program.
func (s *section) add(v value) {
	first, twice := s.values[v.variable]
	s.refuse(twice, v, "line %d sets it already; keep one of them", first.line)
	s.values[v.variable] = v
}

// sorted returns the values in the order of the file.
func (s *section) sorted() []value {
	return slices.SortedFunc(maps.Values(s.values), func(a, b value) int { return a.line - b.line })
}

// set adds the setting that a value becomes. It refuses a text with a double quote,
// because a profile file would drop the quotes.
func (s *section) set(from value, keyword, text string) {
	s.refuse(strings.Contains(text, `"`), from, "%q cannot be written into a profile", from.text)
	if s.err == nil {
		var setting profile.Setting
		source := fmt.Sprintf("%s:%d: %s", s.file.name, from.line, from.variable)
		setting, s.err = profile.ParseSetting(source, keyword+" "+text)
		s.settings = append(s.settings, setting)
	}
}

// setHostName adds the setting for the address of the server, which comes from a variable.
func (s *section) setHostName(from value, variable, address string) {
	s.server, s.addressIn = strings.ToLower(address), variable
	s.set(from, "HostName", strings.ReplaceAll(address, "%", "%%"))
}

// setName gives the profile the first of these names that is not "".
func (s *section) setName(names ...string) {
	s.result.Name = cmp.Or(names...)
	err := profile.CheckHost(s.result.Name)
	s.leaveOut(err != nil, value{}, "%w", err)
}

// maxKnocks is the largest number of knocks in a sequence.
const maxKnocks = 32

// addSequence adds the sequence, which has these words. The function cut returns nil for a
// word that is not a knock. Otherwise element 1 is the port, and element 2 the protocol.
// Errors do not quote a word, because a sequence is a secret.
func (s *section) addSequence(from value, words []string, cut func(word string) []string) {
	s.refuse(len(words) > maxKnocks, from, "%d knocks are too many; at most %d are allowed", len(words), maxKnocks)
	var knocks []string
	for i, word := range words {
		match := cut(word)
		s.refuse(match == nil, from, "knock %d of %d is not a port and a protocol, such as 7000:tcp", i+1, len(words))
		if s.err != nil {
			return
		}
		port, err := strconv.ParseUint(match[1], 10, 16)
		s.refuse(err != nil || port == 0, from, "knock %d of %d is not a port from 1 to 65535", i+1, len(words))
		knocks = append(knocks, fmt.Sprintf("%d/%s", port, cmp.Or(strings.ToLower(match[2]), "tcp")))
	}
	s.settings = append(s.settings, profile.Setting{Keyword: "Sequence", Value: strings.Join(knocks, " ")})
}

// finish makes the section's Import. It leaves out the section if the settings contradict each
// other.
func (s *section) finish() {
	if s.err == nil {
		var settings []profile.Setting
		for _, candidate := range slices.Concat(s.file.settings, s.settings) {
			if !slices.ContainsFunc(settings, func(have profile.Setting) bool { return have.Keyword == candidate.Keyword }) {
				settings = append(settings, candidate)
			}
		}
		var err error
		s.result.Block, err = profile.Block(s.result.Name, settings)
		s.leaveOut(err != nil, value{}, "%w", err)
	}
}

// lazy returns a function that compiles an expression at its first call. A login starts
// the command, which links this package, but does not import anything.
func lazy(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
