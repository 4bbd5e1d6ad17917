package typo

import "testing"

func TestHint(t *testing.T) {
	known := []string{"knock", "knockd", "nftables", "iptables", "emit-rules", "HostName", "--option", "--optional"}
	for word, want := range map[string]string{
		"knok":           "knock",
		"KNOCKD":         "knockd",
		"nft":            "nftables",
		"hostnmae":       "HostName",
		"emit":           "emit-rules",
		"--optinal":      "--optional",
		"--opt":          "", // two words begin with it
		"kn":             "",
		"n":              "",
		"":               "",
		"ab":             "",
		"vps":            "",
		"knockingknocks": "",
	} {
		if want != "" {
			want = "; did you mean " + want + "?"
		}
		if got := Hint(word, known...); got != want {
			t.Errorf("Hint(%q) is %q, want %q", word, got, want)
		}
	}
}
