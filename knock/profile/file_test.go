package profile

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
)

func TestParseSetting(t *testing.T) {
	for s, want := range map[string]Setting{
		"Port=2222":               {"Port", "2222", 0, "-o"},
		"port 2222":               {"Port", "2222", 0, "-o"},
		"Port = \"2222\"":         {"Port", "2222", 0, "-o"},
		"OpenPorts=22 60000/udp":  {"OpenPorts", "22 60000/udp", 0, "-o"},
		"BindInterface=\"Wi Fi\"": {"BindInterface", "Wi Fi", 0, "-o"},
	} {
		if got, err := ParseSetting("-o", s); err != nil || got != want {
			t.Errorf("%s: got another setting or an error: %+v, %v", s, got, err)
		}
	}
	for s, want := range map[string]string{
		"":                "-o: expected a setting such as Port=2222",
		"# Port=22":       "-o: expected a setting such as Port=2222",
		"Port":            "-o: Port: no value",
		"Port=":           "-o: Port: no value",
		"Port=x":          `-o: Port: "x" is not a port from 1 to 65535`,
		"Prot=22":         `-o: unknown keyword "Prot"; did you mean Port?`,
		"Port=22\nPort=1": "-o: expected one setting, got several lines",
		"Host=vps":        "-o: a Host line cannot be set here, only in the profile file",
		"Match=all":       "-o: keyword Match is not supported; use Host",
		"Port=\x00":       "-o: character U+0000 is not allowed",
		"Sequence=7000":   "-o: set Sequence in the profile file; every user of this machine can see a command line",
		"KeyFile=/key":    "-o: set KeyFile in the profile file; every user of this machine can see a command line",
		"keycommand=pass": "-o: set KeyCommand in the profile file; every user of this machine can see a command line",
	} {
		if _, err := ParseSetting("-o", s); err == nil || err.Error() != want {
			t.Errorf("%s:\ngot  %v\nwant %s", s, err, want)
		}
	}
}

func TestOverridePrecedesFile(t *testing.T) {
	f := mustParse(t, "Host vps\n    Port 22\n    KnockDelay 1ms\n"+sequenceLine+"Host *\n    KnockTimeout 1m\n")
	p, err := f.Lookup("vps", Setting{Keyword: "port", Value: "2222"}, Setting{Keyword: "Port", Value: "3333"})
	if err != nil || p.Port != 2222 || p.OpenPorts[0].First != 2222 {
		t.Errorf("got %+v, %v; want the first Port of the override, 2222", p, err)
	}
	for _, tt := range []struct {
		s    Setting
		want string
	}{
		{Setting{Keyword: "Sequence", Value: "1234"}, "setting: set Sequence in the profile file; every user of this machine can see a command line"},
		{Setting{Keyword: "Port", Value: ""}, `setting: Port: "" is not a port from 1 to 65535`},
		{Setting{Keyword: "BindInterface", Value: ""}, `setting: BindInterface: "" is not the name of a network interface`},
		{Setting{Keyword: "BindInterface", Value: `a"b`}, `setting: BindInterface: "a\"b" is not the name of a network interface`},
		{
			Setting{Keyword: "OpenPorts", Value: "8000"},
			"file:4: Sequence: knock 2 of 3 goes to a guarded port (one of the OpenPorts)",
		},
		{Setting{Keyword: "KnockTimeout", Value: "1s"}, ""},
	} {
		_, err := f.Lookup("vps", tt.s)
		if got := fmt.Sprint(err); got != tt.want && (err != nil || tt.want != "") {
			t.Errorf("%+v:\ngot  %v\nwant %s", tt.s, err, tt.want)
		}
	}
	_, err = f.Lookup("vps", Setting{Keyword: "KnockDelay", Value: "10s"}, Setting{Keyword: "KnockTimeout", Value: "2s"})
	if want := "setting: KnockDelay: 10s must be less than KnockTimeout (2s)"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	// The error names the source of an override that contradicts a setting in the file.
	family, err := ParseSetting("-6", "AddressFamily inet6")
	if err != nil {
		t.Fatal(err)
	}
	_, err = mustParse(t, "Host vps\nScheme fwknop\nKeyFile /k\n").Lookup("vps", family)
	if want := "-6: AddressFamily: fwknopd opens ports for IPv4 only"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	// The words of a command stay separate words.
	f = mustParse(t, "Host vps\nScheme fwknop\nKeyFile /k\n")
	s, err := ParseSetting("-o", `AllowIPCommand=curl -fsS "a b"`)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := f.Lookup("vps", s); err != nil || !slices.Equal(p.SPA.AllowIPCommand, []string{"curl", "-fsS", "a b"}) {
		t.Errorf("got %+v, %v", p, err)
	}
	// With a Scheme in override, an address still finds the profile by its HostName.
	f = mustParse(t, "Host vps\n    HostName 192.0.2.1\n"+sequenceLine)
	if p, err := f.Lookup("192.0.2.1", Setting{Keyword: "Scheme", Value: "static"}); err != nil || p.Name != "vps" {
		t.Errorf("got %+v, %v; want the profile vps", p, err)
	}
	// A Scheme in override does not give a profile to a host without one.
	if _, err := f.Lookup("other", Setting{Keyword: "Scheme", Value: "static"}); !errors.Is(err, ErrNoProfile) {
		t.Errorf("got %v, want ErrNoProfile", err)
	}
}

func TestEntriesListHostBlocks(t *testing.T) {
	f := mustParse(t, `Port 22
Host VPS 203.0.113.7 !web
    HostName %h.example
    Sequence 7000 8000 9000

Host *
    ConnectTimeout 5
# last
Host plain
    Scheme static
Host *
    Sequence 1000
`)
	want := []Entry{
		{Patterns: []string{"VPS", "203.0.113.7", "!web"}, Line: 2, HostName: "%h.example", Scheme: "static", Knocks: 3},
		{Patterns: []string{"*"}, Line: 6},
		{Patterns: []string{"plain"}, Line: 9, Scheme: "static"},
		{Patterns: []string{"*"}, Line: 11, Scheme: "static", Knocks: 1},
	}
	if got := f.Entries(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := mustParse(t, "").Entries(); got == nil || len(got) != 0 {
		t.Errorf("empty file: got %#v, which JSON does not write as []", got)
	}
}

func TestCommentOfTheFirstLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "",
		"#":                             "",
		"# {\"a\": 1} # b \r\nHost x\n": `{"a": 1} # b`,
		"Host x # a\n":                  "",
		"\n# a\n":                       "",
	} {
		if got := mustParse(t, text).Comment(); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
