package profile

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/secret"
)

const keyText = "portknock-key-1:aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypzcjt6ri"

const rotatingFile = `Host vps
    Scheme rotating
    KeyFile /keys/vps
    DeriveHostKey yes
    PortRange 30000-30999
    Knocks 7
    Protocol tcp
    Period 10m
    Skew 0
    ValidUntil 2027-11-21
`

func TestRotatingSettingsRoundTrip(t *testing.T) {
	p, err := mustParse(t, rotatingFile).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	if p.KeyFile != filepath.FromSlash(root+"keys/vps") || !p.DeriveHostKey ||
		p.PortRange != (knock.PortRange{Transport: knock.TCP, First: 30000, Last: 30999}) ||
		p.Knocks != 7 || p.Period != 10*time.Minute || p.Skew != 0 || !p.ValidUntil.Equal(time.Date(2027, 11, 21, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("the file's settings are not in the profile: %+v", p)
	}
	got, err := json.Marshal(p)
	const want = `"keyFile":"/keys/vps","deriveHostKey":true,"portRange":"30000-30999","knocks":7,"protocol":"tcp",` +
		`"period":"10m0s","skew":"0s","validUntil":"2027-11-21T00:00:00Z"}`
	if err != nil || !strings.HasSuffix(asOnUnix(string(got)), want) {
		t.Errorf("wrong settings in JSON: %s, %v", got, err)
	}
	var written bytes.Buffer
	p.WriteTo(&written)
	if again, err := mustParse(t, written.String()).Lookup("vps"); err != nil || !reflect.DeepEqual(p, again) {
		t.Errorf("WriteTo wrote another profile: %v\n%s", err, &written)
	}
}

func TestTokenSettingsRoundTrip(t *testing.T) {
	const lines = "Host vps\nScheme token\nKeyFile /k\nTokenPort 443\nTokensPerWindow 3\nPeriod 10m\nSkew 10\nKnocks 4\nPortRange 1-100\n"
	p, err := mustParse(t, lines).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	if p.TokenPort != 443 || p.TokensPerWindow != 3 || p.Period != 10*time.Minute ||
		p.Skew != 10*time.Second || p.Knocks != 0 || p.PortRange != (knock.PortRange{}) {
		t.Errorf("wrong settings, or a setting of another scheme: %+v", p)
	}
	got, err := json.Marshal(p)
	const want = `"keyFile":"/k","tokenPort":443,"tokensPerWindow":3,"period":"10m0s","skew":"10s","repeat":2}`
	if err != nil || !strings.HasSuffix(asOnUnix(string(got)), want) {
		t.Errorf("wrong settings in JSON: %s, %v", got, err)
	}
	var written bytes.Buffer
	p.WriteTo(&written)
	if !strings.HasSuffix(written.String(), "    DeriveHostKey no\n    TokenPort 443\n    TokensPerWindow 3\n    Period 10m\n    Skew 10s\n    Repeat 2\n") {
		t.Errorf("wrong settings written:\n%s", &written)
	}
	if again, err := mustParse(t, written.String()).Lookup("vps"); err != nil || !reflect.DeepEqual(p, again) {
		t.Errorf("WriteTo wrote another profile: %v\n%s", err, &written)
	}
}

// TestRepeatPerScheme: which schemes repeat their knocks, and which only dial first.
func TestRepeatPerScheme(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("k", 8)), 0o600); err != nil {
		t.Fatal(err)
	}
	const static, drawn, token = "Sequence 7000 8000", "Scheme md5-hourly", "Scheme token\nKeyCommand echo " + keyText
	for _, tt := range []struct {
		lines          string
		repeat, redial bool
	}{
		{static, false, true},
		{static + "\nRepeat 1", false, true},
		{static + "\nRepeat 2", true, false},
		{drawn, false, false},
		{drawn + "\nRepeat 2", true, false},
		{token, true, false},
		{token + "\nRepeat 1", false, false},
	} {
		p, err := mustParse(t, "Host vps\n"+tt.lines+"\nHost *\nKeyFile "+key).Lookup("vps")
		if err != nil {
			t.Fatal(err)
		}
		picker, err := p.Picker(t.Context())
		if c, ok := picker.(knock.Client); err != nil || !ok || c.Repeat != tt.repeat || c.Redial != tt.redial {
			t.Errorf("%s: got %+v, error %v; want Repeat %v, Redial %v", tt.lines, picker, err, tt.repeat, tt.redial)
		}
	}
	p, err := mustParse(t, "Host spa\nScheme fwknop\nKeyFile /k\nHost *\nRepeat 2").Lookup("spa")
	if err != nil || p.Repeat != 0 {
		t.Errorf("fwknop gets Repeat %d of Host *, error %v; want 0", p.Repeat, err)
	}
}

func TestSettingsApplyOnlyToTheirScheme(t *testing.T) {
	for _, tt := range []struct {
		scheme string
		want   Profile
	}{
		{
			scheme: "rotating",
			want: Profile{
				PortRange: knock.PortRange{Transport: knock.UDP, First: 20000, Last: 59999}, Knocks: 5,
				Period: time.Hour, Skew: 2 * time.Minute,
			},
		},
		{
			scheme: "md5-hourly",
			want: Profile{
				PortRange: knock.PortRange{Transport: knock.TCP, First: 20000, Last: 59999}, Knocks: 5,
				Period: time.Hour, Skew: 2 * time.Minute,
			},
		},
		{"token", Profile{TokenPort: 62202, TokensPerWindow: 8, Period: time.Hour, Skew: 2 * time.Minute}},
		{"static", Profile{}},
	} {
		file := "Host vps\nScheme " + tt.scheme + "\nHost *\nSequence 1000\nKeyFile /keys/vps\nTokenPort 62202\nTokensPerWindow 8\n"
		if tt.scheme == "static" {
			file += "Host *\nValidUntil 2027-11-21\n" // only for schemes that follow the clock
		}
		p, err := mustParse(t, file).Lookup("vps")
		if err != nil {
			t.Fatal(err)
		}
		if p.PortRange != tt.want.PortRange || p.Knocks != tt.want.Knocks || p.Period != tt.want.Period ||
			p.Skew != tt.want.Skew || p.DeriveHostKey ||
			p.TokenPort != tt.want.TokenPort || p.TokensPerWindow != tt.want.TokensPerWindow || !p.ValidUntil.IsZero() {
			t.Errorf("wrong defaults, or a setting of another scheme: %+v", p)
		}
		if hasKey := tt.scheme != "static"; hasKey != (p.KeyFile != "") || hasKey != (p.Sequence == nil) {
			t.Errorf("%s: got %+v, want a Sequence or a KeyFile, as the scheme needs", tt.scheme, p)
		}
	}
}

// The first obtained of two alternative settings prevents the other, such as a KeyFile
// and a KeyCommand.
func TestFirstOfTwoAlternativesWins(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"Host vps\nKeyFile /a\nHost *\nScheme rotating\nKeyCommand b\n", "rotating  /a"},
		{"Host vps\nKeyCommand b\nHost *\nScheme rotating\nKeyFile /a\n", "rotating b "},
		{"Host vps\nSequence 1000 3000\nHost *\nScheme rotating\nKeyFile /a\n", "static  "},
		{"Host vps\nScheme rotating\nHost *\nSequence 1000 3000\nKeyFile /a\n", "rotating  /a"},
		{"Host vps\nScheme Static\nHost *\nSequence 1000 3000\n", "static  "},
	} {
		p, err := mustParse(t, tt.file).Lookup("vps")
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Scheme + " " + joinWords(p.KeyCommand) + " " + asOnUnix(p.KeyFile); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestKeySchemeConflicts(t *testing.T) {
	for _, tt := range []struct{ lines, want string }{
		{"Scheme rotating", "file:2: Scheme: rotating needs a KeyFile or a KeyCommand"},
		{"Scheme md5-hourly", "file:2: Scheme: md5-hourly needs a KeyFile or a KeyCommand"},
		{"Scheme token", "file:2: Scheme: token needs a KeyFile or a KeyCommand"},
		{"Scheme token\nKeyFile /k\nSequence 17001", "file:4: Sequence: is only used with Scheme static, not with token"},
		{"Scheme token\nKeyFile /k\nPeriod 4m", "file:4: Period: 4m must be more than twice Skew (2m)"},
		{"Scheme token\nKeyFile /k\nTokenPort 60500\nOpenPorts 22 60000-61000/udp",
			"file:5: OpenPorts: 60000-61000/udp includes TokenPort (60500), which must not be a guarded port"},
		{"Scheme token\nKeyFile /k\nOpenPorts 62202/udp",
			"file:4: OpenPorts: 62202/udp includes TokenPort (62202), which must not be a guarded port"},
		{"KeyFile /k\nKeyCommand c", "file:3: KeyCommand: cannot be combined with KeyFile"},
		{"Scheme rotating\nSequence 17001", "file:3: Sequence: is only used with Scheme static, not with rotating"},
		{"Scheme rotating\nKeyFile k", `file:3: KeyFile: "k" must be an absolute path, because the profile was not read from a folder`},
		{"Scheme rotating\nKeyFile /k\nSkew 30m", "file:4: Skew: 30m must be less than half of Period (1h)"},
		{"Scheme rotating\nKeyFile /k\nPeriod 4m", "file:4: Period: 4m must be more than twice Skew (2m)"},
		{"Scheme rotating\nKeyFile /k\nPortRange 1000-1003", "file:4: PortRange: 4 ports are too few for 5 different knocks"},
		{"Scheme rotating\nKeyFile /k\nOpenPorts 22 60000-61000/udp\nPortRange 50000-60000",
			"file:2: Scheme: PortRange and Protocol include OpenPorts 60000-61000/udp; a guarded port cannot be a knock"},
		{"Scheme md5-hourly\nKeyFile /k\nPeriod 2h", "file:4: Period: must be one hour with Scheme md5-hourly"},
		{"Scheme md5-hourly\nKeyFile /k\nProtocol udp", "file:4: Protocol: must be tcp with Scheme md5-hourly"},
		{"Scheme md5-hourly\nKeyFile /k\nDeriveHostKey yes", "file:4: DeriveHostKey: cannot be used with Scheme md5-hourly"},
	} {
		_, err := Parse("file", absolute("Host vps\n"+tt.lines+"\n"))
		if err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
	for _, lines := range []string{
		"Scheme rotating\nKeyFile /k\nOpenPorts 30000/tcp", // no conflict: the knocks are UDP
		"Scheme rotating\nKeyFile /k\nPeriod 241",
		"Scheme rotating\nKeyFile /k\nOpenPorts 62202/udp",           // no conflict: 62202 is the port of another scheme, token
		"Scheme token\nKeyFile /k\nTokenPort 443\nOpenPorts 443/tcp", // no conflict: tokens are UDP
		"Scheme token\nKeyFile /k\nOpenPorts 20000-59999/udp",
		"Scheme md5-hourly\nKeyFile /k\nPeriod 60m",
	} {
		mustParse(t, "Host vps\n"+lines+"\n")
	}
	_, err := Parse("file", absolute("Host 192.0.2.1\nScheme rotating\nKeyFile /k\nDeriveHostKey yes\n"))
	if want := "file:4: DeriveHostKey: 192.0.2.1 is an address; add a name to its Host line"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestKeyFileOfWindows: programs of Windows may write a byte order mark and "\r\n".
func TestKeyFileOfWindows(t *testing.T) {
	for text, want := range map[string]string{
		"\ufeff" + keyText + "\r\n": keyText,
		"\xff\xfep\x00o\x00":        "FILE: the file is UTF-16; save it as UTF-8",
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := secret.Create(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		k, err := LoadKey(path)
		got := k.Reveal()
		if err != nil {
			got = strings.ReplaceAll(err.Error(), path, "FILE")
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
	path := filepath.Join(t.TempDir(), "secret")
	if err := secret.Create(path, []byte("\ufeffa secret\r\n")); err != nil {
		t.Fatal(err)
	}
	if k, err := loadKey(path, parseSecret); err != nil || string(k.Bytes()) != "a secret" {
		t.Errorf("got another secret, error %v", err)
	}
}

// A relative KeyFile starts at the folder of the profile file. "~/" is the user's home.
func TestKeyPathStartsAtProfileFolderOrHome(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	dir := t.TempDir()
	for name, want := range map[string]string{
		"vps.key": filepath.Join(dir, "vps.key"), "../k": filepath.Join(dir, "..", "k"), "~/k": filepath.Join(home, "k"), "~k": "",
		filepath.Join(home, "a b"): filepath.Join(home, "a b"),
	} {
		path := filepath.Join(dir, "config")
		if err := os.WriteFile(path, []byte("Host vps\nScheme rotating\nKeyFile \""+name+"\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Load(path)
		if want == "" {
			if err == nil {
				t.Errorf("%s: got no error", name)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if p, err := f.Lookup("vps"); err != nil || p.KeyFile != want {
			t.Errorf("%s: got %v, %v; want %s", name, p, err, want)
		}
	}
}

// Lookup, Entries, WriteTo, SharesKey and MarshalJSON do not read a key.
func TestKeysAreReadLazily(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	f := mustParse(t, "Host vps\nScheme rotating\nKeyCommand touch \""+ran+"\"\nHost web\nScheme rotating\nKeyFile /no/such/key\n")
	f.Entries()
	for _, host := range []string{"vps", "web"} {
		p, err := f.Lookup(host)
		if err != nil {
			t.Fatal(err)
		}
		p.WriteTo(io.Discard)
		f.SharesKey(p)
		if _, err := json.Marshal(p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the KeyCommand ran")
	}
}

func TestSharesKeyListsOtherHosts(t *testing.T) {
	f := mustParse(t, `Host vps 192.0.2.1 VPS.example
    HostName 192.0.2.1
    KeyFile /k
    Scheme rotating
Host web db !mail
    KeyFile /k
    Scheme md5-hourly
Host own
    KeyFile /own
    Scheme rotating
Host derived
    KeyFile /k
    Scheme rotating
    DeriveHostKey yes
Host fixed
    KeyFile /k
    Sequence 1000 3000
Host *.corp !no.corp
    KeyFile /k
    Scheme rotating
Host *.fleet
    KeyCommand pass key
    Scheme rotating
`)
	for host, want := range map[string][]string{
		"vps":     {"*.corp", "db", "web"},
		"db":      {"*.corp", "vps", "web"},
		"own":     nil,
		"derived": nil,
		"fixed":   nil,
		"a.corp":  {"*.corp", "db", "vps", "web"},
		"a.fleet": {"*.fleet"},
	} {
		p, err := f.Lookup(host)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.SharesKey(p); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", host, got, want)
		}
	}
}

func TestKeyCommandKeepsQuotedWords(t *testing.T) {
	p, err := mustParse(t, "Host vps\nScheme rotating\nKeyCommand pass \"my key\"  -x=\"a#b\" c\n").Lookup("vps")
	if want := []string{"pass", "my key", "-x=a#b", "c"}; err != nil || !slices.Equal(p.KeyCommand, want) {
		t.Fatalf("got %q, %v", p.KeyCommand, err)
	}
	var written bytes.Buffer
	p.WriteTo(&written)
	if again, err := mustParse(t, written.String()).Lookup("vps"); err != nil || !reflect.DeepEqual(p, again) {
		t.Errorf("WriteTo wrote another profile: %v\n%s", err, &written)
	}
}
