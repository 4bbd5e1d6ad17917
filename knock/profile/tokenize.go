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

// commandLine stands for the file's name in the place of a setting from -o.
const commandLine = "-o"

// fault is an error at a place: "FILE:LINE: …".
func fault(name string, line int, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if name == commandLine {
		return fmt.Errorf("%s: %w", name, err)
	}
	return fmt.Errorf("%s:%d: %w", name, line, err)
}

// token is one line that says something.
type token struct {
	line    int
	keyword string
	words   []string // never none, none empty, without quotes
}

// mark is put before every keyword, so that Host, Match and Include are to the
// library keywords like any other. It would part the patterns of Host at single
// blanks and forget the line, follow Match by half and read the files of
// Include while it parses.
const mark = "."

// hash stands in for a "#" inside quotes, where the library would begin a
// comment. No file can hold it: control characters are refused.
const hash = "\x01"

// tokenize parts a file into its lines, keywords and words. The library finds
// keyword and value; what it gets wrong is kept from it or refused here.
func tokenize(name string, data []byte) (tokens []token, err error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxFile)
	}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return nil, fault(name, 1, "this is UTF-16; save it as UTF-8")
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))

	var marked strings.Builder
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		line, err := clean(line)
		if err != nil {
			return nil, fault(name, number, "%w", err)
		}
		if line != "" {
			marked.WriteString(mark + strings.ReplaceAll(line, "#", hash))
		}
		marked.WriteByte('\n')
	}

	// A fault of the library's own is no reason to crash in front of ssh.
	defer func() {
		if r := recover(); r != nil {
			tokens, err = nil, fmt.Errorf("%s: cannot be parsed", name)
		}
	}()
	config, err := ssh_config.DecodeBytes([]byte(marked.String()))
	if err != nil {
		return nil, fmt.Errorf("%s: cannot be parsed: %w", name, err)
	}
	for _, host := range config.Hosts {
		for _, node := range host.Nodes {
			kv, ok := node.(*ssh_config.KV)
			if !ok {
				continue
			}
			t := token{line: kv.Pos().Line, keyword: strings.TrimPrefix(kv.Key, mark)}
			t.words = split(strings.ReplaceAll(rawValue(kv), hash, "#"))
			if len(t.words) == 0 && keywordNamed(t.keyword) != nil {
				return nil, fault(name, t.line, "%s: no value", t.keyword)
			}
			tokens = append(tokens, t)
		}
	}
	return tokens, nil
}

// clean checks one line and returns it without its comment and the blanks
// around it.
func clean(line string) (string, error) {
	if len(line) > maxLine {
		return "", fmt.Errorf("longer than %d bytes", maxLine)
	}
	if !utf8.ValidString(line) {
		return "", errors.New("not UTF-8")
	}
	quoted, blank := false, true // blank: a comment can begin here
	for i, r := range line {
		switch {
		case r == '#' && !quoted && blank:
			if err := checkComment(line[i:]); err != nil {
				return "", err
			}
			return strings.Trim(line[:i], " \t"), nil
		case r == '#' && !quoted:
			// ssh takes it as part of the word, the library as a comment.
			return "", errors.New("a # inside a word: put a blank before a comment, or quotes around the word")
		case r != '\t' && !unicode.IsPrint(r):
			// Among them blanks that separate nothing and characters nobody sees.
			return "", fmt.Errorf("the character %U has no place here", r)
		case r == '"':
			quoted = !quoted
		}
		blank = r == ' ' || r == '\t'
	}
	if quoted {
		return "", errors.New("a quote is not closed")
	}
	return strings.Trim(line, " \t"), nil
}

// checkComment lets people write what they like, but not to the terminal.
func checkComment(s string) error {
	for _, r := range s {
		if r != '\t' && unicode.IsControl(r) {
			return fmt.Errorf("the character %U has no place here", r)
		}
	}
	return nil
}

// rawValue returns the value with its quotes. KV.Value is without the first and
// the last even where these belong to two words.
func rawValue(kv *ssh_config.KV) string {
	s := strings.TrimLeft(kv.String(), " ")
	s = strings.TrimPrefix(s, kv.Key)
	if v, ok := strings.CutPrefix(s, " = "); ok {
		return v
	}
	return strings.TrimPrefix(s, " ")
}

// split parts a value at blanks outside quotes, and takes the quotes off.
func split(s string) []string {
	var words []string
	var word strings.Builder
	quoted := false
	for _, r := range s + " " {
		switch {
		case r == '"':
			quoted = !quoted
		case !quoted && (r == ' ' || r == '\t'):
			if word.Len() > 0 {
				words = append(words, word.String())
			}
			word.Reset()
		default:
			word.WriteRune(r)
		}
	}
	return words
}
