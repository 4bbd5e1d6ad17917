package profile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
)

// keyword is one line of the documentation's table of settings.
type keyword struct {
	name   string
	list   bool                         // takes several words
	quoted bool                         // of which each may hold blanks, and keeps its quotes
	secret bool                         // must not stand on a command line
	set    func(*Profile, string) error // reads one value, and checks what can be checked of it alone
	get    func(*Profile) string        // writes it; "" if there is none
	json   func(*Profile) any           // what JSON has where get writes something; nil for what get writes
	when   func(*Profile) bool          // whether to show it; nil for always
	path   func(*Profile) *string       // the file that it names; nil if it names none
	group  *group                       // the group that has it, which fills this in
}

// word returns what get writes, "" if the keyword does not apply or is not to be
// shown.
func (k *keyword) word(p *Profile) string {
	if !slices.Contains(schemeNamed(p.Scheme).groups, k.group) || k.when != nil && !k.when(p) {
		return ""
	}
	return k.get(p)
}

// jsonValue returns the value in JSON, nil if there is none.
func (k *keyword) jsonValue(p *Profile) any {
	word := k.word(p)
	switch {
	case word == "":
		return nil
	case k.json != nil:
		return k.json(p)
	}
	return word
}

// inJSON returns the keyword with another value in JSON than what get writes.
func (k keyword) inJSON(json func(*Profile) any) keyword {
	k.json = json
	return k
}

// shownWhen returns the keyword, to be shown for some profiles only.
func (k keyword) shownWhen(when func(*Profile) bool) keyword {
	k.when = when
	return k
}

// value is the keyword of what parse reads and word writes.
func value[T any](name string, parse func(string) (T, error), field func(*Profile) *T, word func(T) string) keyword {
	return keyword{
		name: name,
		set: func(p *Profile, v string) (err error) {
			*field(p), err = parse(v)
			return err
		},
		get: func(p *Profile) string { return word(*field(p)) },
	}
}

// zeroAs returns word, but with another text for the zero value.
func zeroAs[T comparable](zero string, word func(T) string) func(T) string {
	return func(v T) string {
		if v == *new(T) {
			return zero
		}
		return word(v)
	}
}

// text is the keyword of a word that check accepts.
func text(name string, check func(string) error, field func(*Profile) *string) keyword {
	parse := func(s string) (string, error) { return s, check(s) }
	return value(name, parse, field, strings.Clone)
}

// secretFile is the keyword of a file with a key. Its path is made absolute once it is
// known whether the keyword applies.
func secretFile(name string, field func(*Profile) *string) keyword {
	k := text(name, checkPath, field)
	k.secret, k.path = true, field
	return k
}

// command is the keyword of a program and its arguments.
func command(name string, secret bool, field func(*Profile) *[]string) keyword {
	parse := func(s string) ([]string, error) {
		words := splitWords(s)
		return words, checkCommand(words)
	}
	k := value(name, parse, field, joinWords).inJSON(func(p *Profile) any { return *field(p) })
	k.list, k.quoted, k.secret = true, true, secret
	return k
}

// ports is the keyword of ports and ranges of ports. None is the word for an empty
// list, "" if there must be one.
func ports(name, none string, field func(*Profile) *[]knock.PortRange) keyword {
	parse := func(s string) ([]knock.PortRange, error) {
		if none != "" && strings.EqualFold(s, none) {
			return []knock.PortRange{}, nil
		}
		return knock.ParsePortRanges(s)
	}
	word := func(ranges []knock.PortRange) string { return cmp.Or(strings.Join(portWords(ranges), " "), none) }
	k := value(name, parse, field, word).inJSON(func(p *Profile) any { return portWords(*field(p)) })
	k.list = true
	return k
}

func portWords(ranges []knock.PortRange) []string {
	words := make([]string, len(ranges))
	for i, r := range ranges {
		words[i] = r.String()
	}
	return words
}

// yesNo is the keyword of what is yes or no.
func yesNo(name string, field func(*Profile) *bool) keyword {
	parse := func(s string) (bool, error) {
		yes := strings.EqualFold(s, "yes")
		if !yes && !strings.EqualFold(s, "no") {
			return false, fmt.Errorf("%q is not yes or no", s)
		}
		return yes, nil
	}
	word := zeroAs("no", func(bool) string { return "yes" })
	return value(name, parse, field, word).inJSON(func(p *Profile) any { return orNil(*field(p)) })
}

// orNil returns nil instead of a zero value.
func orNil[T comparable](v T) any {
	if v == *new(T) {
		return nil
	}
	return v
}

// number is the keyword of a number from least to most, which is 0 where there is
// none.
func number[T int | uint16](name, what string, least, most uint64, field func(*Profile) *T) keyword {
	parse := func(s string) (T, error) {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("%q is not %s from %d to %d", s, what, least, most)
		}
		return T(n), nil
	}
	return value(name, parse, field, zeroAs("", decimal[T])).inJSON(func(p *Profile) any { return *field(p) })
}

func decimal[T int | uint16](n T) string { return strconv.Itoa(int(n)) }

// duration is the keyword of a time that parse reads.
func duration(name string, parse func(string) (time.Duration, error), field func(*Profile) *time.Duration) keyword {
	return value(name, parse, field, formatDuration).inJSON(func(p *Profile) any { return field(p).String() })
}

// within reads a time from least to most, in whole units: firewalls count some
// times in seconds.
func within(least, most, unit time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := ParseDuration(s)
		switch {
		case err != nil:
			return 0, err
		case d%unit != 0:
			return 0, fmt.Errorf("%q must be whole seconds", s)
		case d < least || d > most:
			return 0, fmt.Errorf("%q is outside the range %s to %s", s, formatDuration(least), formatDuration(most))
		}
		return d, nil
	}
}

// keywordNamed returns the keyword of that name in any case, or nil.
func keywordNamed(name string) *keyword {
	i := slices.IndexFunc(keywords, func(k keyword) bool { return strings.EqualFold(k.name, name) })
	if i < 0 {
		return nil
	}
	return &keywords[i]
}

// unknown is the error for a keyword that is none. It quotes letters only:
// "Sequence:7000/udp" is one word, and so is the second line of a sequence that
// somebody has wrapped.
func unknown(name string) error {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) }) {
		return errors.New("a line must start with a keyword, such as HostName, and a space")
	}
	best, least := "", 3
	for _, k := range append([]keyword{{name: "Host"}}, keywords...) {
		if d := distance(strings.ToLower(name), strings.ToLower(k.name)); d < least {
			best, least = k.name, d
		}
	}
	if best == "" {
		return fmt.Errorf("unknown keyword %q", name)
	}
	return fmt.Errorf("unknown keyword %q; did you mean %s?", name, best)
}

// distance is the Levenshtein distance of a and b in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
