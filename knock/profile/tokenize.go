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

// The tokenizer checks these limits first, because its time grows with the square of a
// value's length.
const (
	maxFile = 4 << 20 // bytes in a file
	maxLine = 4096    // bytes in a line
)

// fault returns an error with its place: "FILE:LINE: …", or "NAME: …" if line is 0.
func fault(name string, line int, format string, args ...any) error {
	if line > 0 {
		name = fmt.Sprintf("%s:%d", name, line)
	}
	return fmt.Errorf("%s: %w", name, fmt.Errorf(format, args...))
}

// statement is a line of a file that has a keyword.
type statement struct {
	line    int
	keyword string
	words   []string // words of the value, without quotes; a file gives no empty word
}

// tokenize returns the statements of a file. It leaves out lines without a keyword.
func tokenize(name string, data []byte) (statements []statement, err error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: the file is larger than %d bytes", name, maxFile)
	}
	if data, err = withoutMark(data); err != nil {
		return nil, fault(name, 1, "%w", err)
	}
	number := 0
	for line := range strings.Lines(string(data)) {
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

// withoutMark removes the byte order mark that programs of Windows write at the start of a
// file. It returns an error for UTF-16, in which PowerShell 5.1 writes a file with ">".
func withoutMark(data []byte) ([]byte, error) {
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return nil, errors.New("the file is UTF-16; save it as UTF-8")
	}
	return bytes.TrimPrefix(data, []byte("\ufeff")), nil
}

// parseLine splits one line into its keyword and its words. It returns nil for a line
// without a keyword. Keywords of settings must have at least one word.
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

// keyValue uses the library ssh_config to split a line into its keyword and its value.
// The line must come from clean. The value keeps its quotes. keyValue changes the line
// so that the library does not see what it handles wrongly:
//   - Host, Match and Include: the library would split the patterns of Host at single
//     spaces, support only half of Match, and read the files of Include while it
//     parses. keyValue puts a dot before the keyword.
//   - "#" inside quotes: the library would start a comment there. keyValue replaces the
//     "#" with a control character that a line from clean cannot contain.
//   - Quotes at both ends of the value: the library would remove the first and the last
//     quote even if they belong to two words. keyValue adds a word after the value.
//   - A missing value: the word after the value helps here too.
func keyValue(line string) (keyword, value string, err error) {
	const hash = "\x01"
	// A panic in the library must not crash a program that ssh depends on.
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

// clean checks one line. It returns the line without its comment and without the blanks
// around the rest. A blank is a space or a tab.
func clean(line string) (string, error) {
	if len(line) > maxLine {
		return "", fmt.Errorf("the line is longer than %d bytes", maxLine)
	}
	if !utf8.ValidString(line) {
		return "", errors.New("the line is not UTF-8")
	}
	quoted, blank, end := false, true, len(line) // blank: whether a comment can start here
	for i, r := range line {
		comment := end < len(line)
		switch {
		case comment && r != '\t' && unicode.IsControl(r), !comment && r != '\t' && !unicode.IsPrint(r):
			// A control character in a comment could change a terminal that shows the file. Other
			// characters are allowed there. Outside a comment, invisible characters and other
			// kinds of space, which do not separate words, are errors too.
			return "", fmt.Errorf("character %U is not allowed", r)
		case comment:
		case r == '#' && !quoted && blank:
			end = i
		case r == '#' && !quoted:
			// ssh reads this "#" as part of the word, but the library would start a comment.
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

// splitWords splits a value at blanks outside quotes and removes the quotes.
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
