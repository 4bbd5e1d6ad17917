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
	"github.com/portknock/portknock/knock/typo"
)

// keyword describes one keyword of the profile file: how to read, check and write its
// value.
type keyword struct {
	name   string
	list   bool                         // whether the keyword takes several words
	quoted bool                         // whether a word of the list may contain blanks and keeps its quotes
	secret bool                         // whether the keyword is an error on a command line
	set    func(*Profile, string) error // reads a value and checks everything that the value alone can show
	get    func(*Profile) string        // returns the value as text; "" if there is none
	json   func(*Profile) any           // returns the value in JSON; nil if JSON has the text of get
	when   func(*Profile) bool          // reports whether to show the keyword; nil if it is always shown
	path   func(*Profile) *string       // returns the field with a file's path; nil if the keyword has no path
	group  *group                       // group that has the keyword; init sets it
}

// word returns the text of get. It returns "" if the keyword does not apply to the
// scheme or must not be shown.
func (k *keyword) word(p *Profile) string {
	if !slices.Contains(schemeNamed(p.Scheme).groups, k.group) || k.when != nil && !k.when(p) {
		return ""
	}
	return k.get(p)
}

// jsonValue returns the value in JSON. It returns nil if word returns "".
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

// inJSON returns the keyword with a value in JSON that differs from the text of get.
func (k keyword) inJSON(json func(*Profile) any) keyword {
	k.json = json
	return k
}

// shownWhen returns the keyword, which is shown only for profiles for which when is true.
func (k keyword) shownWhen(when func(*Profile) bool) keyword {
	k.when = when
	return k
}

// value returns a keyword whose value parse reads and word writes. Field returns the
// place of the value in a profile.
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

// zeroAs returns a function that works as word does, but returns zero for the zero value.
func zeroAs[T comparable](zero string, word func(T) string) func(T) string {
	return func(v T) string {
		if v == *new(T) {
			return zero
		}
		return word(v)
	}
}

// text returns a keyword whose value is a word that check accepts.
func text(name string, check func(string) error, field func(*Profile) *string) keyword {
	parse := func(s string) (string, error) { return s, check(s) }
	return value(name, parse, field, strings.Clone)
}

// secretFile returns a keyword whose value is the path of a file with a key. The path
// becomes absolute later, when it is known whether the keyword applies.
func secretFile(name string, field func(*Profile) *string) keyword {
	k := text(name, checkPath, field)
	k.secret, k.path = true, field
	return k
}

// command returns a keyword whose value is a program and its arguments.
func command(name string, secret bool, field func(*Profile) *[]string) keyword {
	parse := func(s string) ([]string, error) {
		words := splitWords(s)
		return words, checkCommand(words)
	}
	k := value(name, parse, field, joinWords).inJSON(func(p *Profile) any { return *field(p) })
	k.list, k.quoted, k.secret = true, true, secret
	return k
}

// ports returns a keyword whose value is a list of ports and ranges of ports. None is the
// word for an empty list. If none is "", the list must not be empty.
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

// yesNo returns a keyword whose value is yes or no.
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

// number returns a keyword whose value is a number from least to most. The field is 0 if
// the number is not given.
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

// duration returns a keyword whose value is a duration that parse reads.
func duration(name string, parse func(string) (time.Duration, error), field func(*Profile) *time.Duration) keyword {
	return value(name, parse, field, formatDuration).inJSON(func(p *Profile) any { return field(p).String() })
}

// within returns a function that reads a duration from least to most, in whole units.
// Units matter because firewalls count some durations in seconds.
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

// keywordNamed returns the keyword of that name, or nil. Case does not matter.
func keywordNamed(name string) *keyword {
	i := slices.IndexFunc(keywords, func(k keyword) bool { return strings.EqualFold(k.name, name) })
	if i < 0 {
		return nil
	}
	return &keywords[i]
}

// unknown returns the error for an unknown keyword. It quotes the word only if all its
// characters are letters. Other words can be part of a sequence, such as
// "Sequence:7000/udp" or the second line of a sequence that a user has wrapped.
func unknown(name string) error {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) }) {
		return errors.New("a line must start with a keyword, such as HostName, and a space")
	}
	known := []string{"Host"}
	for _, k := range keywords {
		known = append(known, k.name)
	}
	return fmt.Errorf("unknown keyword %q%s", name, typo.Hint(name, known...))
}
