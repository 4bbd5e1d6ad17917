package rules

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// emitScript returns the script for guards.
func emitScript(t *testing.T, f Format, o Options, s Script, guards ...Guard) string {
	t.Helper()
	var text strings.Builder
	if err := f.EmitScript(&text, guards, o, s); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// TestScriptLinesAreShort: an administrator can read a script on a terminal. Only the
// elements of sets, the commands of daemons, and rules of iptables, which must be on one
// line, are longer than 120 characters.
func TestScriptLinesAreShort(t *testing.T) {
	o := Options{From: noon, Until: noon.Add(3 * time.Hour), DropPolicy: true, Log: true}
	token, hour := tokenGuard(t, "A-long-name.example"), mustGuard(t, "Another-long-name", "1", "2222 60000-61000/udp")
	hour.Schedule, hour.Skew, hour.Fingerprint = hourly(5), 2*time.Minute, "0123456789abcdef"
	for _, f := range []Format{"nftables", "iptables"} {
		for line := range strings.Lines(emitScript(t, f, o, Script{}, token, hour, mustGuard(t, "vps", "7001 8003 9005", "22"))) {
			rule := f == "iptables" && strings.Contains(line, "-A PORTKNOCK")
			if utf8.RuneCountInString(line) > 121 && !strings.HasPrefix(line, "add element ") && !rule {
				t.Errorf("%s: %s", f, line)
			}
		}
	}
}

// TestScriptIsOneCommand: everything in a script except variables is in functions, and the
// last line calls the first of them. A copy that was cut off does nothing.
func TestScriptIsOneCommand(t *testing.T) {
	for _, f := range []Format{"nftables", "iptables", "knockd"} {
		text := emitScript(t, f, Options{}, Script{}, mustGuard(t, "vps", "7001 8003 9005", "22"))
		if !strings.HasPrefix(text, "#!/bin/sh\n") || !strings.HasSuffix(text, "\nmain \"$@\"\n") {
			t.Errorf("%s: the script begins with %.20q and ends with %q", f, text, text[len(text)-20:])
		}
		if n := strings.Count(text, "\nmain "); n != 1 {
			t.Errorf("%s: the script calls main %d times", f, n)
		}
	}
}

// TestScriptsWithOtherRulesHaveOtherIDs: a script recognizes its own trial by its ID.
func TestScriptsWithOtherRulesHaveOtherIDs(t *testing.T) {
	id := func(o Options, sequence string) string {
		_, rest, _ := strings.Cut(emitScript(t, "nftables", o, Script{}, mustGuard(t, "vps", sequence, "22")), "\nid=")
		id, _, _ := strings.Cut(rest, "\n")
		return id
	}
	first := id(Options{}, "7001 8003 9005")
	if len(first) != 12 || first != id(Options{}, "7001 8003 9005") {
		t.Errorf("the ID is %q, and another one at the second time", first)
	}
	for name, other := range map[string]string{"sequence": id(Options{}, "7001 8003 9006"), "option": id(Options{Log: true}, "7001 8003 9005")} {
		if other == first {
			t.Errorf("another %s has the same ID", name)
		}
	}
}

// TestScriptRefusesItsOwnMarks: text of a profile cannot end the rules in the script early.
func TestScriptRefusesItsOwnMarks(t *testing.T) {
	var b lines
	if err := hereDocument(&b, "f", "a\nEND_OF_RULES\nb"); err == nil {
		t.Error("a text with the mark of its end is accepted")
	}
	g := mustGuard(t, "x'; reboot; '$(reboot)`reboot`", "7001 8003 9005", "22")
	if text := emitScript(t, "nftables", Options{}, Script{}, g); !strings.Contains(text, `='x'\''; reboot; '\''$(reboot)`+"`reboot`'\n") {
		t.Errorf("the name of the profile is not quoted:\n%s", text)
	}
}
