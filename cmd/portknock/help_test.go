package main

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// blocks has the forms of the blocks of a topic. Empty lines separate the blocks.
var blocks = map[string]*regexp.Regexp{
	"heading":   regexp.MustCompile(`^[A-Z][A-Z/~._0-9 -]*$`),
	"paragraph": regexp.MustCompile(`^(    \S.*\n)*    \S.*$`),
	"entry":     regexp.MustCompile(`^    \S.*(\n        \S.*)+$`), // a term, and its text
	"example":   regexp.MustCompile(`^        .*(\n        .*)*$`),
}

// TestTopicsHaveOneForm: a topic begins with its name and what it is about. The other blocks
// have one of the forms in blocks. So another program can read the text.
func TestTopicsHaveOneForm(t *testing.T) {
	for _, name := range topics() {
		text, ok := strings.CutSuffix(topic(name), "\n")
		all := strings.Split(text, "\n\n")
		if !ok || !strings.HasPrefix(all[0], name+": ") || strings.Contains(all[0], "\n") {
			t.Errorf("%s: the text must begin with a line %q and end with one newline", name, name+": ...")
		}
		for _, block := range all[1:] {
			fits := func(form *regexp.Regexp) bool { return form.MatchString(block) }
			if !slices.ContainsFunc(slices.Collect(maps.Values(blocks)), fits) {
				t.Errorf("%s: not a heading, paragraph, entry or example:\n%s", name, block)
			}
		}
		for line := range strings.SplitSeq(text, "\n") {
			if utf8.RuneCountInString(line) > 90 || strings.ContainsRune(line, '\t') || strings.TrimRight(line, " ") != line {
				t.Errorf("%s: more than 90 columns, a tab, or a space at the end:\n%s", name, line)
			}
		}
	}
}

// TestUsageListsTopicsAndCommands: the usage text names each topic and each command.
func TestUsageListsTopicsAndCommands(t *testing.T) {
	if lines := strings.Count(usage, "\n") + 1; lines < 24 || lines > 60 {
		t.Errorf("the usage text has %d lines, expected 24 to 60", lines)
	}
	_, list, _ := strings.Cut(usage, "\nTopics ")
	list, _, _ = strings.Cut(list, "\n\n")
	var listed []string
	for _, line := range strings.Split(list, "\n")[1:] {
		listed = append(listed, strings.Fields(line)[0])
	}
	if !slices.Equal(listed, topics()) {
		t.Errorf("the usage text lists the topics %q, expected %q", listed, topics())
	}
	for _, r := range table() {
		group, name, member := strings.Cut(r.name, " ")
		if !member {
			name = group
		}
		pattern := `(?m)^  (\S+ .*\| )?` + name + `\b`
		if member {
			pattern = `(?m)^  ` + group + ` (.*\| )?` + name + `\b`
		}
		if r.command != nil && !regexp.MustCompile(pattern).MatchString(usage) {
			t.Errorf("the usage text does not list %q", r.name)
		}
	}
}

// TestCommandsHaveTopics: the help of each command that a topic describes names that topic.
func TestCommandsHaveTopics(t *testing.T) {
	for _, r := range table() {
		if more, isMember := topicOf[r.name], strings.Contains(r.name, " "); !isMember && more == "" && r.name != "version" && r.name != "help" {
			t.Errorf("the command %s has no topic", r.name)
		}
	}
	for name, more := range topicOf {
		if topic(more) == "" {
			t.Errorf("the command %s has the topic %q, which does not exist", name, more)
		}
	}
}
