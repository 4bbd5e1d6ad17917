package lab

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// File writes a file that only its owner can read, in a new folder of the test, and
// returns its path.
func File(t TB, name string, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return path
}

// ReadFile returns the text of a file.
func ReadFile(t TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}

// EditFile replaces texts in a file. oldNew lists pairs: a text and its replacement.
// EditFile fails the test if the file does not change.
func EditFile(t TB, path string, oldNew ...string) {
	t.Helper()
	text := ReadFile(t, path)
	edited := strings.NewReplacer(oldNew...).Replace(text)
	if edited == text {
		t.Fatalf("no text to replace, of the pairs %q, in\n%s", oldNew, text)
	}
	must(t, os.WriteFile(path, []byte(edited), 0o600))
}

// RulesLine returns the command with this name (test, load or unload) from the
// header of a file that portknock emit-rules has written.
func RulesLine(t TB, rules, name string) string {
	t.Helper()
	text := ReadFile(t, rules)
	line := regexp.MustCompile(`(?m)^# ` + name + `: (.*)$`).FindStringSubmatch(text)
	if line == nil {
		t.Fatalf("no line %q in the header:\n%s", name, text)
	}
	return line[1]
}
