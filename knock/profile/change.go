package profile

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Change returns the text of a profile file with other settings for one profile. Path is the
// file's path, data is the file's text, and name is the Name of the profile. Change replaces only
// the value of a setting, in the line that sets it now. A setting that the profile does not use
// yet gets a new line below, with the same indent. All other text stays unchanged.
//
// If the settings contain another Scheme, they must also contain the [Profile.Secrets] of that
// scheme. The secrets that only the old scheme uses disappear, and new lines take the place of
// the first of them. Any other setting in a block of the profile that only the old scheme uses is
// an error.
//
// A setting that changes or disappears must be in a Host block that is only for this profile.
// Otherwise Change returns an error, because other profiles would change too. Errors start with
// "PATH:LINE: ", or with "PATH: " if they are not about one line. Change neither reads nor
// writes a file.
func Change(path string, data []byte, name string, changed []Setting) ([]byte, error) {
	f, err := parse(path, filepath.Dir(path), data)
	if err != nil {
		return nil, err
	}
	p, err := f.Lookup(name)
	if err != nil {
		return nil, err
	}
	after, err := f.plan(p, changed)
	if err != nil {
		return nil, err
	}
	// Change the blocks too, which keep the line numbers of the old text. A user cannot see the
	// new text, so an error must name a line of the old one.
	mark, lines := splitLines(data)
	for _, b := range f.blocks {
		var ss settings
		for _, s := range b.settings {
			new, ok := after[s.line]
			if !ok {
				ss = append(ss, s)
				continue
			}
			if lines[s.line-1], err = rewriteLine(lines[s.line-1], s.Keyword, new, lines[b.line-1]); err != nil {
				return nil, fault(path, s.line, "%s: %w", s.Keyword, err)
			}
			ss = append(ss, new...)
		}
		b.settings = ss
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	ss := gather(f.matching(p.Name, nil))
	for _, c := range changed {
		if s, ok := ss.get(c.Keyword); !ok || s.Value != c.Value { // the setting is in a block above, too
			alternative, _ := ss.get("KeyCommand")
			return nil, f.notOwn(p, cmp.Or(s, alternative), c.Keyword)
		}
	}
	text := []byte(mark + strings.Join(lines, ""))
	if f, err = parse(path, filepath.Dir(path), text); err == nil {
		_, err = f.Lookup(name)
	}
	return text, err
}

// plan returns what the lines with settings of the profile p become: for each line number, the
// settings of the line and of the new lines below it. Lines that stay are not in the plan.
func (f *File) plan(p *Profile, changed settings) (after map[int]settings, err error) {
	had, old := gather(f.matching(p.Name, nil)), schemeNamed(p.Scheme)
	scheme := old
	if changed.has("Scheme") {
		scheme = changed.scheme()
	}
	after = make(map[int]settings)
	place := 0 // number of the line for new settings
	var unused []Setting
	for _, s := range had { // in the order of lines
		isSecret := slices.ContainsFunc(p.Secrets(), func(secret Secret) bool { return secret.Keyword == s.Keyword })
		group := keywordNamed(s.Keyword).group
		switch {
		case scheme == old || changed.has(s.Keyword):
		case isSecret && !f.owns(p, s):
			return nil, f.notOwn(p, s, s.Keyword)
		case isSecret:
			after[s.line] = nil
			place = cmp.Or(place, s.line)
		case f.owns(p, s) && slices.Contains(old.groups, group) && !slices.Contains(scheme.groups, group):
			unused = append(unused, s)
		}
	}
	if len(unused) > 0 {
		var names []string
		for _, s := range unused {
			names = append(names, s.Keyword)
		}
		return nil, fault(f.name, unused[0].line, "%s: not used with Scheme %s; first remove %s from this block",
			names[0], scheme.name, strings.Join(names, ", "))
	}
	isGone := place > 0
	var added settings
	for _, c := range changed {
		s, ok := had.get(c.Keyword)
		switch {
		case ok && f.owns(p, s):
			c.line = s.line
			after[s.line] = settings{c}
			if !isGone {
				place = s.line
			}
		case ok && slices.Contains(old.groups, keywordNamed(c.Keyword).group):
			return nil, f.notOwn(p, s, c.Keyword)
		default:
			added = append(added, c)
		}
	}
	if place == 0 {
		return nil, fmt.Errorf("%s: no block for %s sets %s", f.name, p.Name, changed[0].Keyword)
	}
	for _, c := range added {
		c.line = place
		after[place] = append(after[place], c)
	}
	return after, nil
}

// owns reports whether a setting is in a Host block that is only for the profile p.
func (f *File) owns(p *Profile, s Setting) bool {
	b := f.blocks[slices.IndexFunc(f.blocks, func(b *block) bool { return slices.Contains(b.settings, s) })]
	return !slices.ContainsFunc(b.patterns, func(pattern pattern) bool {
		return !pattern.not && (pattern.wild || f.profileName(pattern.text, f.matching(pattern.text, nil)) != p.Name)
	})
}

// notOwn returns the error for a setting that is not only for the profile p, and that prevents
// another value of the keyword.
func (f *File) notOwn(p *Profile, s Setting, keyword string) error {
	return fault(f.name, s.line, "%s: not only for %s; give %[2]s a %[3]s in a block of its own above", s.Keyword, p.Name, keyword)
}

// rewriteLine returns a line, which sets the keyword, with other settings instead. The first
// setting keeps the comment, and a setting of the same keyword keeps the line's form. Each other
// setting gets a line with the same indent, which ends as the Host line does.
func rewriteLine(line, keyword string, settings []Setting, hostLine string) (string, error) {
	words, err := wordsIn(line)
	if err != nil {
		return "", err
	}
	before, after := line[:words[0].start], line[words[len(words)-1].end:]
	indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
	end := hostLine[len(strings.TrimRight(hostLine, "\r\n")):]
	text := ""
	for i, s := range settings {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += end
		}
		switch {
		case i > 0:
			text += indent + s.Keyword + " " + s.written() + end
		case s.Keyword == keyword:
			text = before + s.written() + after
		default:
			text = indent + s.Keyword + " " + s.written() + after
		}
	}
	return text, nil
}
