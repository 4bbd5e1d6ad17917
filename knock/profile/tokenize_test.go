package profile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kevinburke/ssh_config"
)

const sequenceLine = "    Sequence 7000/udp 8000 9000\n"

// TestSSHConfigQuirks shows what the library ssh_config handles wrongly when it is used
// alone. Each case also has the result of the library, so the test fails if an update of
// the library changes that result.
func TestSSHConfigQuirks(t *testing.T) {
	for _, tt := range []struct {
		name         string
		file         string
		host         string
		keyword      string
		libraryValue string // the library's value of keyword for host, or "error: …"
		want         string // this package's value of keyword for host, or "error: …"
	}{
		{
			// The library reads the BOM as a part of "Host". Therefore it sees an unknown keyword,
			// and the settings below it apply to every host.
			"BOM, another host", "\ufeffHost vps\n    Port 2222\n" + sequenceLine, "other", "Port",
			"2222", `error: no profile for "other" in file`,
		},
		{
			"BOM, host of the block", "\ufeffHost vps\n    Port 2222\n" + sequenceLine, "vps", "Port",
			"2222", "2222",
		},
		{
			// The library splits patterns only at spaces. It reads "web\tvps" as one pattern.
			"tab between patterns", "Host web\tvps\n    Port 2222\n" + sequenceLine, "vps", "Port",
			"", "2222",
		},
		{
			// The library reads the quotes as a part of the pattern.
			"quoted pattern", "Host \"vps\" \"web\"\n    Port 2222\n" + sequenceLine, "vps", "Port",
			"", "2222",
		},
		{
			// The library reads the tab before a comment as a part of the pattern.
			"tab after pattern", "Host vps\t# mine\n    Port 2222\n" + sequenceLine, "vps", "Port",
			"", "2222",
		},
		{
			// The library compiles "?" to ".?".
			"? matches the empty string", "Host vps?\n    Port 2222\n" + sequenceLine, "vps", "Port",
			"2222", `error: no profile for "vps" in file`,
		},
		{
			"host in capitals", "Host vps\n    Port 2222\n" + sequenceLine, "VPS", "Port",
			"", "2222",
		},
		{
			"pattern in capitals", "Host *.Example\n    Port 2222\n" + sequenceLine, "vps.example", "Port",
			"", "2222",
		},
		{
			// The library keeps the first quote and reads the text after "#" as a comment.
			"# inside quotes", "Host vps\n    BindInterface \"wan#1\"\n" + sequenceLine, "vps", "BindInterface",
			`"wan`, "wan#1",
		},
		{
			// ssh would read the port "22#x".
			"# inside a word", "Host vps\n    Port 22#x\n", "vps", "Port",
			"22", "error: file:2: # inside a word; put a space before a comment, or quotes around the word",
		},
		{
			// The library removes the outer quotes of two words.
			"two quoted words", "Host vps\n    OpenPorts \"22\" \"80\"\n" + sequenceLine, "vps", "OpenPorts",
			`22" "80`, "22/tcp 80/tcp",
		},
		{
			// Some criteria of Match work in the library and others do not. No error reports this
			// in time.
			"Match host", "Match host vps\n    Port 2222\n" + sequenceLine, "vps", "Port",
			"2222", "error: file:1: keyword Match is not supported; use Host",
		},
		{
			// Errors of the library have a place in the file, but no file name.
			"Match exec", "\nMatch exec true\n    Port 2222\n" + sequenceLine, "vps", "Port",
			"error: (2, 7): ssh_config: Match Exec is not supported",
			"error: file:2: keyword Match is not supported; use Host",
		},
		{
			// For the library, the path is absolute or starts at ~/.ssh, never at the file's
			// folder. It reads the included file while it parses.
			"Include", "Include no-such-folder/*\nHost vps\n    Port 2222\n" + sequenceLine, "vps", "Port",
			"2222", "error: file:1: keyword Include is not supported; put all profiles into one file",
		},
		{
			"unknown keyword", "Host vps\n    Prot 2222\n" + sequenceLine, "vps", "Port",
			"", `error: file:2: unknown keyword "Prot"; did you mean Port?`,
		},
		{
			// The library ignores the second value of a keyword.
			"keyword twice", "Host vps\n    Port 2222\n    Port 2223\n" + sequenceLine, "vps", "Port",
			"2222", "error: file:3: Port is set twice; line 2 sets it already",
		},
		{
			// For the library this is neither a blank nor a control character.
			"no-break space", "Host web\u00a0vps\n    Port 2222\n" + sequenceLine, "vps", "Port",
			"", "error: file:1: character U+00A0 is not allowed",
		},
		{
			"lone CR", "Host vps\rPort 2222\n", "vps", "Port",
			"", "error: file:1: character U+000D is not allowed",
		},
		{
			"not UTF-8", "Host vps\n    Port 22\xff\n", "vps", "Port",
			"22\ufffd", "error: file:2: the line is not UTF-8",
		},
		{
			"NUL", "Host vps\n    Port 22\x00\n", "vps", "Port",
			"22\x00", "error: file:2: character U+0000 is not allowed",
		},
		{
			"quote not closed", "Host vps\n    BindInterface \"wan 1\n", "vps", "BindInterface",
			`"wan 1`, "error: file:2: a quotation mark is not closed",
		},
		{
			// The library reads an empty value and reports no error.
			"no value", "Host vps\n    Port\n" + sequenceLine, "vps", "Port",
			"", "error: file:2: Port: no value",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := libraryValue(tt.file, tt.host, tt.keyword); got != tt.libraryValue {
				t.Errorf("the library now returns %q instead of %q", got, tt.libraryValue)
			}
			if got := profileValue(tt.file, tt.host, tt.keyword); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func libraryValue(file, host, keyword string) string {
	config, err := ssh_config.DecodeBytes([]byte(file))
	if err != nil {
		return "error: " + err.Error()
	}
	v, err := config.Get(host, keyword)
	if err != nil {
		return "error: " + err.Error()
	}
	return v
}

func profileValue(file, host, keyword string) string {
	f, err := Parse("file", absolute(file))
	if err != nil {
		return "error: " + err.Error()
	}
	p, err := f.Lookup(host)
	if err != nil {
		return "error: " + err.Error()
	}
	return keywordNamed(keyword).get(p)
}

// This package must not let the library see an Include. The library would read the named
// file and fail on its content before this package could report an error.
func TestIncludeDoesNotReadFile(t *testing.T) {
	included := filepath.Join(t.TempDir(), "included")
	if err := os.WriteFile(included, []byte("Match exec true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := "Include " + included + "\n"
	if got := libraryValue(file, "vps", "Port"); !strings.Contains(got, "Match Exec") {
		t.Errorf("the library returns %q, so it no longer reads the included file", got)
	}
	if got, want := profileValue(file, "vps", "Port"), "error: file:1: keyword Include is not supported; put all profiles into one file"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// UserSettings of the library, which its function Get uses too, returns OpenSSH's default
// for a missing keyword. This package must not.
func TestNoOpenSSHDefaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte("Host vps\n"+sequenceLine), 0o600); err != nil {
		t.Fatal(err)
	}
	u := &ssh_config.UserSettings{}
	u.ConfigFinder(func() string { return path })
	if got := u.Get("vps", "Port"); got != "22" {
		t.Errorf("the library now returns %q instead of 22", got)
	}
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := f.Lookup("vps"); err != nil || p.Port != 0 {
		t.Errorf("got %+v, %v; want Port 0", p, err)
	}
}

// GetAll of the library returns the values under Host * in addition to those of the host.
// This package must use only the first value.
func TestOnlyFirstValueCounts(t *testing.T) {
	const file = "Host vps\n    OpenPorts 22\n" + sequenceLine + "Host *\n    OpenPorts 80\n"
	config, err := ssh_config.DecodeBytes([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	if all, _ := config.GetAll("vps", "OpenPorts"); len(all) != 2 {
		t.Errorf("the library now returns %q instead of both values", all)
	}
	if got, want := profileValue(file, "vps", "OpenPorts"), "22/tcp"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The library needs seconds for a value of 200 KB, because its time grows with the square
// of the length. The limits must report an error at once.
func TestSizeLimits(t *testing.T) {
	long := "Host vps\n    Port " + strings.Repeat("2", 200_000) + "\n"
	start := time.Now()
	if got, want := profileValue(long, "vps", "Port"), "error: file:2: the line is longer than 4096 bytes"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	big := strings.Repeat("# nothing to see here\n", maxFile/20)
	if got, want := profileValue(big, "vps", "Port"), "error: file: the file is larger than 4194304 bytes"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if took := time.Since(start); took > 500*time.Millisecond {
		t.Errorf("took %v, want at most 500ms", took)
	}
}

// The slowest files within the limits take seconds, not minutes.
func TestWorstFileTakesUnderOneMinute(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	fillFile := func(line func(n int) string) string {
		var b strings.Builder
		for n := 0; ; n++ {
			l := line(n)
			if b.Len()+len(l) > maxFile {
				return b.String()
			}
			b.WriteString(l)
		}
	}
	for name, file := range map[string]string{
		"long Host lines": fillFile(func(int) string { return "Host " + strings.Repeat(strings.Repeat("y", 250)+" ", 16) + "\n" }),
		"many quotes":     fillFile(func(int) string { return "Host BindInterface " + strings.Repeat(`""`, 2000) + "x\n" }),
		"many names":      fillFile(func(n int) string { return fmt.Sprintf("Host a%d b%d c%d\nSequence 1\n", n, n, n) }),
		"many names and wildcards": fillFile(func(n int) string {
			return fmt.Sprintf("Host a%d\nSequence 1\nHost *%d\nHostName h\n", n, n)
		}),
		"one name in many blocks": fillFile(func(int) string { return "Host a\nSequence 1\n" }),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			f, err := Parse("file", []byte(file))
			parsed := time.Since(start)
			if err != nil {
				t.Fatal(err)
			}
			f.Lookup("h")
			if took := time.Since(start); took > time.Minute {
				t.Errorf("Parse and Lookup took %v, want at most 1m; Parse took %v", took, parsed)
			}
		})
	}
}

func TestErrorsHaveLineNumbers(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{"first line", "Foo 1\n", "file:1: "},
		{"no newline at the end", "Host vps\nFoo 1", "file:2: "},
		{"blank lines and comments", "\n  \n# one\n\t# two\n\nHost vps # three\n\n    Foo 1\n", "file:8: "},
		{"CRLF", "# one\r\n\r\nHost vps\r\n    Port 22\r\n\r\n    Foo 1\r\n", "file:6: "},
		{"BOM", "\ufeff# one\r\nFoo 1\n", "file:2: "},
		{"before any Host", "Port 22\n\nPort 99999\n", "file:3: "},
		{"Host line", "Host vps\n\n# one\nHost\n", "file:4: Host: no host given"},
		{"bad value", "Host vps\n    Port 22 # ok\n    KnockDelay x\n", "file:3: KnockDelay: "},
		{"LF and CRLF mixed", "Host a\r\nHost b\n\r\nHost c\r\nFoo 1", "file:5: "},
	} {
		_, err := Parse("file", []byte(tt.file))
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %s…", tt.name, err, tt.want)
		}
	}
}

func TestLineSyntax(t *testing.T) {
	for _, tt := range []struct{ name, line, keyword, want string }{
		{"one space", "Port 2222", "Port", "2222"},
		{"tabs", "\tPort\t\t2222\t", "Port", "2222"},
		{"equals", "Port=2222", "Port", "2222"},
		{"equals and blanks", "Port = 2222", "Port", "2222"},
		{"quotes", `Port "2222"`, "Port", "2222"},
		{"equals and quotes", `Port="2222"`, "Port", "2222"},
		{"any case", "pORT 2222", "Port", "2222"},
		{"comment", `Port 2222 # "not a quote`, "Port", "2222"},
		{"comment with control character", "Port 2222 # \x1b[2J", "Port", "error: file:2: character U+001B is not allowed"},
		{"comment with no-break space", "Port 2222 # a\u00a0b", "Port", "2222"},
		{"quoted blanks", `BindInterface "Wi-Fi 2"`, "BindInterface", "Wi-Fi 2"},
		{"list in quotes", `OpenPorts "22 60000-61000/udp"`, "OpenPorts", "22/tcp 60000-61000/udp"},
		{"list of quotes", `OpenPorts = "22" "60000-61000/udp"`, "OpenPorts", "22/tcp 60000-61000/udp"},
		{"empty quotes", `Port ""`, "Port", "error: file:2: Port: no value"},
		{"too many words", "Port 22 23", "Port", "error: file:2: Port: expected one value, got 2"},
		{"only equals", "= 22", "Port", "error: file:2: a line must start with a keyword, such as HostName, and a space"},
		{"NUL in the keyword", "P\x00", "Port", "error: file:2: character U+0000 is not allowed"},
	} {
		if got := profileValue("Host vps\n"+tt.line+"\n"+sequenceLine, "vps", tt.keyword); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
	if got, want := profileValue("\xff\xfeH\x00", "vps", "Port"), "error: file:1: the file is UTF-16; save it as UTF-8"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestUnknownKeywordSuggestsSimilarOne(t *testing.T) {
	for word, want := range map[string]string{
		"Sequnce":           `unknown keyword "Sequnce"; did you mean Sequence?`,
		"hostnmae":          `unknown keyword "hostnmae"; did you mean HostName?`,
		"Hots":              `unknown keyword "Hots"; did you mean Host?`,
		"KeyFil":            `unknown keyword "KeyFil"; did you mean KeyFile?`,
		"Identity":          `unknown keyword "Identity"`,
		"X":                 `unknown keyword "X"`,
		"Sequence:7000/udp": "a line must start with a keyword, such as HostName, and a space",
		"8000/tcp":          "a line must start with a keyword, such as HostName, and a space",
	} {
		if got := profileValue(word+" 9000\n", "vps", "Port"); got != "error: file:1: "+want {
			t.Errorf("%s: got another error: %s", word, got)
		}
	}
}
