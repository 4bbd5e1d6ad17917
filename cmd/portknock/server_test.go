package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestWordsForServerArePOSIX: on every system, words for the server are quoted for its POSIX
// shell. The name of a user may contain any character.
func TestWordsForServerArePOSIX(t *testing.T) {
	for by, want := range map[string]string{
		"ann@host":              `'ann@host'`,
		"":                      `''`,
		"Ann O'Neill@host":      `'Ann O'\''Neill@host'`,
		`DOMAIN\"ann" %x%@host`: `'DOMAIN\"ann" %x%@host'`,
		"$(id) `id` !!@höst":    "'$(id) `id` !!@höst'",
	} {
		if got := serverWord(by); got != want {
			t.Errorf("the word for %q is %s, want %s", by, got, want)
		}
		if script := (&server{}).lockScript(0, by); !strings.Contains(script, "printf '%s\\n' "+want+" ") {
			t.Errorf("for %q, the script does not print %s:\n%s", by, want, script)
		}
		sh, err := exec.LookPath("sh")
		if err != nil {
			continue
		}
		if out, err := exec.Command(sh, "-c", "printf %s "+want).Output(); err != nil || string(out) != by {
			t.Errorf("a shell prints %q for %s, error %v", out, want, err)
		}
	}
}

// TestPresentRulesSayWhatIsInForce: rules that are only installed are not in force.
func TestPresentRulesSayWhatIsInForce(t *testing.T) {
	for _, tt := range []struct{ rules, by, want string }{
		{"", "", "no rules for vps"},
		{"", "alice@client", "no rules for vps in force; those that a boot would load were installed by alice@client"},
		{"other", "alice@client", "other rules for vps, installed by alice@client"},
		{"as loaded", "", "the same rules for vps"},
	} {
		st := &status{Profiles: []serverStatus{{Name: "vps", Rules: tt.rules}}}
		if got := presentRules(st, tt.by); got != tt.want {
			t.Errorf("rules %q installed by %q: %q, want %q", tt.rules, tt.by, got, tt.want)
		}
	}
}
