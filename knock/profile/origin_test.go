package profile

import "testing"

// TestOriginNamesTheBlock: Origin names the block that gives the scheme, and says whether the
// host was found by its name or by its HostName.
func TestOriginNamesTheBlock(t *testing.T) {
	f, err := Parse("config", []byte(`Sequence 1/udp 2/udp
Host vps web
    HostName 203.0.113.7
    Scheme rotating
    KeyCommand pass vps
Host *.example.com
    Sequence 3/udp 4/udp
Host later
    ConnectTimeout 5
`))
	if err != nil {
		t.Fatal(err)
	}
	// The settings above the first Host line come first for every host.
	if got, ok := f.Origin("vps"); !ok || got != (Origin{Line: 0, Patterns: ""}) {
		t.Errorf("with settings above the first Host line: %+v, %v", got, ok)
	}
	f, err = Parse("config", []byte(`Host vps web
    HostName 203.0.113.7
    ConnectTimeout 5
Host *.example.com
    Sequence 3/udp 4/udp
Host vps
    Sequence 5/udp 6/udp
`))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]Origin{
		"vps":            {Line: 6, Patterns: "vps"},
		"VPS":            {Line: 6, Patterns: "vps"},
		"203.0.113.7":    {Line: 6, Patterns: "vps", ByHostName: true},
		"db.example.com": {Line: 4, Patterns: "*.example.com"},
	} {
		if got, ok := f.Origin(host); !ok || got != want {
			t.Errorf("%s: %+v, %v, want %+v", host, got, ok, want)
		}
	}
	for _, host := range []string{"web", "other"} {
		if got, ok := f.Origin(host); ok {
			t.Errorf("%s: %+v, want no profile", host, got)
		}
	}
}
