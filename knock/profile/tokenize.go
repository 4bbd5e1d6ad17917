package profile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kevinburke/ssh_config"
)

// The tokenizer's time grows with the square of a value's length, so both are
// bounded before it starts.
const (
	maxFile = 4 << 20 // bytes
	maxLine = 4096    // bytes
)

// fault is an error at a place: "FILE:LINE: …", or "NAME: …" if line is 0.
func fault(name string, line int, format string, args ...any) error {
	if line > 0 {
		name = fmt.Sprintf("%s:%d", name, line)
	}
	return fmt.Errorf("%s: %w", name, fmt.Errorf(format, args...))
}

// token is one line that says something.
type statement struct {
	line    int
	keyword string
	words   []string // never none, none empty, without quotes
}

// tokenize parts a file into its lines, keywords and words.
func tokenize(name string, data []byte) (statements []statement, err error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: the file is larger than %d bytes", name, maxFile)
	}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return nil, fault(name, 1, "the file is UTF-16; save it as UTF-8")
	}
	number := 0
	for line := range strings.Lines(string(bytes.TrimPrefix(data, []byte("\ufeff")))) {
		number++
		t, err := parseLine(strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"))
		if err != nil {
			return nil, fault(name, number, "%w", err)
		}
		if t != nil {
			t.line = number
			statements = append(statements, *t)
		}
	}
	return statements, nil
}

// parseLine parts one line into its keyword and its words. A line with neither is
// nil.
func parseLine(line string) (*statement, error) {
	line, err := clean(line)
	if err != nil || line == "" {
		return nil, err
	}
	keyword, value, err := keyValue(line)
	if err != nil {
		return nil, err
	}
	t := &statement{keyword: keyword, words: splitWords(value)}
	if len(t.words) == 0 && keywordNamed(keyword) != nil {
		return nil, fmt.Errorf("%s: no value", keyword)
	}
	return t, nil
}

// keyValue has ssh_config part a line of clean into its keyword and its value,
// which keeps its quotes. The library must not see what it gets wrong:
//   - Host, Match and Include, so a dot stands before the keyword. It would split
//     the patterns of Host at single blanks, follow Match by half and read the
//     files of Include while it parses.
//   - A "#" inside quotes, where it would begin a comment. A control character
//     stands for it: no clean line has one.
//   - Quotes at both ends of the value. It would remove the first and the last
//     even where they belong to two words.
//   - A value that is missing. For this and the quotes a word stands behind the
//     value.
func keyValue(line string) (keyword, value string, err error) {
	const hash = "\x01"
	// A fault of the library's own is no reason to crash in front of ssh.
	defer func() {
		if recover() != nil {
			err = errors.New("the line cannot be parsed")
		}
	}()
	config, err := ssh_config.DecodeBytes([]byte("." + strings.ReplaceAll(line, "#", hash) + " .\n"))
	if err != nil {
		return "", "", fmt.Errorf("the line cannot be parsed: %w", err)
	}
	kv := config.Hosts[0].Nodes[0].(*ssh_config.KV)
	value = strings.TrimSuffix(kv.Value, ".")
	return strings.TrimPrefix(kv.Key, "."), strings.ReplaceAll(value, hash, "#"), nil
}

// clean checks one line and returns it without its comment and the blanks
// around it.
func clean(line string) (string, error) {
	if len(line) > maxLine {
		return "", fmt.Errorf("the line is longer than %d bytes", maxLine)
	}
	if !utf8.ValidString(line) {
		return "", errors.New("the line is not UTF-8")
	}
	quoted, blank, end := false, true, len(line) // blank: a comment can begin here
	for i, r := range line {
		comment := end < len(line)
		switch {
		case comment && r != '\t' && unicode.IsControl(r), !comment && r != '\t' && !unicode.IsPrint(r):
			// In a comment people write what they like, but not to the terminal. Elsewhere
			// there are also blanks that separate nothing and characters nobody sees.
			return "", fmt.Errorf("character %U is not allowed", r)
		case comment:
		case r == '#' && !quoted && blank:
			end = i
		case r == '#' && !quoted:
			// ssh takes it as part of the word, the library as a comment.
			return "", errors.New("# inside a word; put a space before a comment, or quotes around the word")
		case r == '"':
			quoted = !quoted
		}
		blank = r == ' ' || r == '\t'
	}
	if quoted {
		return "", errors.New("a quotation mark is not closed")
	}
	return strings.Trim(line[:end], " \t"), nil
}

// split parts a value at blanks outside quotes, and takes the quotes off.
func splitWords(s string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	for _, r := range s + " " {
		switch {
		case r == '"':
			quoted = !quoted
		case quoted || r != ' ' && r != '\t':
			word.WriteRune(r)
		case word.Len() > 0:
			words = append(words, word.String())
			word.Reset()
		}
	}
	return words
}
