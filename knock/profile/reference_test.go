package profile

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// reference is the text of "portknock help config", which describes all keywords.
const reference = "../../cmd/portknock/help/config.txt"

// readTopic returns the text of a topic of the help.
func readTopic(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestReferenceHasAllKeywords: the help describes each keyword once, with the default and the
// schemes that the tables of this package have.
func TestReferenceHasAllKeywords(t *testing.T) {
	entry := regexp.MustCompile(`(?m)^    ([A-Z]\w+) (.+)\n        Default: (.+?)\.(?: Range: (\S+) to (\S+)\.)? Schemes: (.+)\.$`)
	described := map[string]int{}
	for _, m := range entry.FindAllStringSubmatch(readTopic(t, reference), -1) {
		name, values, def, least, most, used := m[1], m[2], m[3], m[4], m[5], m[6]
		described[name]++
		k := keywordNamed(name)
		if k == nil {
			t.Errorf("%s: not a keyword", name)
			continue
		}
		if wantUsed, wantDefault := k.facts(); used != wantUsed || def != wantDefault {
			t.Errorf("%s: the help has the default %q for the schemes %q, expected %q for %q", name, def, used, wantDefault, wantUsed)
		}
		for v := range strings.SplitSeq(values, "|") {
			if err := k.set(new(Profile), v); strings.ToLower(v) == v && err != nil {
				t.Errorf("the help has the value %s %s: %v", name, v, err)
			}
		}
		if least == "" {
			continue
		}
		for value, valid := range map[string]bool{least: true, most: true, next(t, least, -1): false, next(t, most, 1): false} {
			if err := k.set(new(Profile), value); (err == nil) != valid {
				t.Errorf("%s: the help has the range %s to %s, but the value %s gives: %v", name, least, most, value, err)
			}
		}
	}
	for _, k := range keywords {
		if described[k.name] != 1 {
			t.Errorf("the help describes the keyword %s %d times, expected once", k.name, described[k.name])
		}
	}
}

// facts returns what the help says of a keyword: the schemes that use it, and its default.
func (k *keyword) facts() (used, def string) {
	// The scheme of a group may still not accept a keyword. This value shows it.
	example := map[string]string{"Sequence": "1001/udp 1002 1003", "DeriveHostKey": "yes"}[k.name]
	var names, others []string
	for i := range schemes {
		s := &schemes[i]
		ss := settings{{Keyword: "Scheme", Value: s.name}}
		if example != "" {
			ss = append(ss, Setting{Keyword: k.name, Value: example})
		}
		blamed, err := ss.newProfile(s).conflict(ss)
		if !slices.Contains(s.groups, k.group) || err != nil && blamed == k.name {
			continue
		}
		names = append(names, s.name)
		p := &Profile{Scheme: s.name}
		if k.name == "Scheme" {
			p.Scheme = ""
		}
		p.setDefaults(nil)
		word := k.get(p)
		switch {
		case word == "" && k.name == "Repeat": // without a value, a client knocks once
			word = "1"
		case word == "":
			word = "none"
		}
		if def == "" {
			def = word
		}
		if word != def {
			others = append(others, s.name+": "+word)
		}
	}
	if used = strings.Join(names, ", "); len(names) == len(schemes) {
		used = "all"
	}
	if len(others) > 0 {
		def += " (" + strings.Join(others, ", ") + ")"
	}
	return used, def
}

// next returns the number that follows a number, or the first duration that is not in a range
// that ends with a duration. The direction is 1 or -1.
func next(t *testing.T, value string, direction int) string {
	if n, err := strconv.Atoi(value); err == nil {
		return strconv.Itoa(n + direction)
	}
	d, err := ParseDuration(value)
	if err != nil {
		t.Errorf("%q in the help: %v", value, err)
	}
	step := time.Microsecond
	if d >= time.Second {
		step = time.Second // some keywords take only whole seconds
	}
	return formatDuration(d + time.Duration(direction)*step)
}

// TestExamplesOfHelpAreValid: this package accepts the profiles in the help.
func TestExamplesOfHelpAreValid(t *testing.T) {
	block := regexp.MustCompile(`(?m)^        Host .*\n(            .*\n)+`)
	found := 0
	for _, path := range []string{reference, "../../cmd/portknock/help/schemes.txt"} {
		for _, text := range block.FindAllString(readTopic(t, path), -1) {
			found++
			if _, err := parse("help", t.TempDir(), []byte(text)); err != nil {
				t.Errorf("%s: %v in:\n%s", path, err, text)
			}
		}
	}
	if found < 8 {
		t.Errorf("found %d examples in the help, expected 8 or more", found)
	}
}
