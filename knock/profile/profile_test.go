package profile

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
)

// mustParse parses a file after [absolute].
func mustParse(t testing.TB, file string) *File {
	t.Helper()
	f, err := Parse("file", absolute(file))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// root is the start of an absolute path. On Windows, "/" alone is not enough.
var root = map[bool]string{false: "/", true: "C:/"}[runtime.GOOS == "windows"]

// absolute makes each KeyFile and HMACKeyFile that begins with "/" absolute on this system.
func absolute(file string) []byte { return []byte(strings.ReplaceAll(file, "File /", "File "+root)) }

// asOnUnix returns an output, or its JSON, with the paths of [absolute] as on Unix.
func asOnUnix(text string) string {
	if runtime.GOOS != "windows" {
		return text
	}
	return strings.NewReplacer(`C:\\`, "/", `\\`, "/", `C:\`, "/", `\`, "/").Replace(text)
}

func TestStaticDefaults(t *testing.T) {
	p, err := mustParse(t, "Host vps\n"+sequenceLine).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	want := &Profile{
		Name:           "vps",
		AddressFamily:  "any",
		Scheme:         "static",
		Sequence:       knock.Sequence{{Transport: knock.UDP, Port: 7000}, {Port: 8000}, {Port: 9000}},
		KnockDelay:     200 * time.Microsecond,
		ConnectTimeout: 9 * time.Second,
		OpenPorts:      []knock.PortRange{{First: 22, Last: 22}},
		OpenFor:        30 * time.Second,
		KnockTimeout:   5 * time.Second,
		IgnorePorts:    []knock.PortRange{{First: 80, Last: 80}, {First: 443, Last: 443}, {Transport: knock.UDP, First: 443, Last: 443}},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
}

const staticFile = `Host vps
    HostName fe80::1%%eth0
    Port 2222
    AddressFamily inet6
    BindAddress fe80::2%eth0
    Scheme Static
    Sequence 7000/udp,8000:tcp 9000
    KnockDelay 0
    ConnectTimeout 1m30s
    OpenPorts 2222 60000-61000/udp
    OpenFor 1h
    KnockTimeout 1500ms
    IgnorePorts none
`

func TestEveryStaticSetting(t *testing.T) {
	p, err := mustParse(t, staticFile).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	want := &Profile{
		Name:           "vps",
		HostName:       "fe80::1%eth0",
		Port:           2222,
		AddressFamily:  "inet6",
		BindAddress:    netip.MustParseAddr("fe80::2%eth0"),
		Scheme:         "static",
		Sequence:       knock.Sequence{{Transport: knock.UDP, Port: 7000}, {Port: 8000}, {Port: 9000}},
		ConnectTimeout: 90 * time.Second,
		OpenPorts:      []knock.PortRange{{First: 2222, Last: 2222}, {Transport: knock.UDP, First: 60000, Last: 61000}},
		OpenFor:        time.Hour,
		KnockTimeout:   1500 * time.Millisecond,
		IgnorePorts:    []knock.PortRange{},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
}

func TestOpenPortsFollowPort(t *testing.T) {
	if got, want := profileValue("Host vps\n    Port 2222\n"+sequenceLine, "vps", "OpenPorts"), "2222/tcp"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestWriteToRoundTrip(t *testing.T) {
	const want = `Host vps
    HostName fe80::1%%eth0
    Port 2222
    AddressFamily inet6
    BindAddress fe80::2%eth0
    Scheme static
    Sequence 7000/udp 8000/tcp 9000/tcp
    KnockDelay 0s
    ConnectTimeout 1m30s
    OpenPorts 2222/tcp 60000-61000/udp
    OpenFor 1h
    KnockTimeout 1s500ms
    IgnorePorts none
`
	p, err := mustParse(t, staticFile).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	n, err := p.WriteTo(&b)
	if b.String() != want || n != int64(len(want)) || err != nil {
		t.Errorf("WriteTo returned %d, %v and wrote:\n%s", n, err, &b)
	}
	again, err := mustParse(t, b.String()).Lookup("vps")
	if err != nil || !reflect.DeepEqual(again, p) {
		t.Errorf("WriteTo wrote another profile: %+v, %v", again, err)
	}
}

// TestWriteToLeavesOutOtherSchemes: WriteTo writes only settings that Parse accepts for the
// scheme. A program may have set others, such as the end of rules that another scheme had.
func TestWriteToLeavesOutOtherSchemes(t *testing.T) {
	p, err := mustParse(t, "Host vps\n"+sequenceLine).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	p.ValidUntil = time.Date(2027, 11, 21, 0, 0, 0, 0, time.UTC)
	var b strings.Builder
	p.WriteTo(&b)
	if _, err := Parse("file", []byte(b.String())); err != nil || strings.Contains(b.String(), "ValidUntil") {
		t.Errorf("Parse returns %v for the text\n%s", err, &b)
	}
}

func TestWriteToQuotesWords(t *testing.T) {
	for _, name := range []string{"Wi-Fi 2", "wan#1"} {
		p, err := mustParse(t, "Host vps\n    BindInterface \""+name+"\"\n"+sequenceLine).Lookup("vps")
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		p.WriteTo(&b)
		if again, err := mustParse(t, b.String()).Lookup("vps"); err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("WriteTo wrote another profile: %+v, %v", again, err)
		}
	}
}

func TestMarshalJSON(t *testing.T) {
	p, err := mustParse(t, staticFile).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"name":"vps","hostName":"fe80::1%eth0","port":2222,"addressFamily":"inet6","bindAddress":"fe80::2%eth0",` +
		`"scheme":"static","sequence":"7000/udp 8000/tcp 9000/tcp","knockDelay":"0s","connectTimeout":"1m30s",` +
		`"openPorts":["2222/tcp","60000-61000/udp"],"openFor":"1h0m0s","knockTimeout":"1.5s","ignorePorts":[]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	p, err = mustParse(t, "Host vps\n"+sequenceLine).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := json.Marshal(p); strings.Contains(string(got), "bindAddress") {
		t.Errorf("got a bindAddress, but the profile has none: %s", got)
	}
}

func TestBadValuesAreErrors(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"Port 0", `Port: "0" is not a port from 1 to 65535`},
		{"Port 65536", `Port: "65536" is not a port from 1 to 65535`},
		{"Port +22", `Port: "+22" is not a port from 1 to 65535`},
		{"Port ssh", `Port: "ssh" is not a port from 1 to 65535`},
		{"TokenPort 0", `TokenPort: "0" is not a port from 1 to 65535`},
		{"TokenPort 443/udp", `TokenPort: "443/udp" is not a port from 1 to 65535`},
		{"TokensPerWindow 0", `TokensPerWindow: "0" is not a number from 1 to 64`},
		{"TokensPerWindow 65", `TokensPerWindow: "65" is not a number from 1 to 64`},
		{"AddressFamily inet4", `AddressFamily: "inet4" is not one of any, inet, inet6`},
		{"BindAddress eth0", `BindAddress: "eth0" is not an IP address`},
		{"BindInterface " + strings.Repeat("x", 256), `BindInterface: "` + strings.Repeat("x", 256) + `" is not the name of a network interface`},
		{"Scheme telepathy", `Scheme: unknown scheme "telepathy"; the schemes are static, rotating, token, md5-hourly, fwknop`},
		{"KeyFile portknock-key-1:abc", "KeyFile: this looks like a key; put it into a file with mode 0600 and give the file's path"},
		{"KeyCommand Portknock-Key-1:abc", "KeyCommand: this looks like a key; put it into a file with mode 0600 and give the file's path"},
		{"HMACKeyFile base64:abc", "HMACKeyFile: this looks like a key; put it into a file with mode 0600 and give the file's path"},
		{"KeyFile ~root/key", `KeyFile: "~root/key": only ~/ is supported, for your own home folder`},
		{"KeyFile a b", `KeyFile: expected one value, got 2`},
		{"KeyCommand bin/key", `KeyCommand: "bin/key" is not a program name or an absolute path`},
		{"KeyCommand ~", `KeyCommand: "~": only ~/ is supported, for your own home folder`},
		{"DeriveHostKey true", `DeriveHostKey: "true" is not yes or no`},
		{"PortRange 20000", `PortRange: "20000" is not a range of ports such as 20000-29999`},
		{"PortRange 20000-29999/udp", `PortRange: "20000-29999/udp" is not a range of ports such as 20000-29999`},
		{"PortRange 29999-20000", `PortRange: "29999-20000" is not a range of ports such as 20000-29999`},
		{"PortRange 1-5,7-9", `PortRange: "1-5,7-9" is not a range of ports such as 20000-29999`},
		{"Knocks 1", `Knocks: "1" is not a number from 2 to 32`},
		{"Knocks 33", `Knocks: "33" is not a number from 2 to 32`},
		{"Knocks +5", `Knocks: "+5" is not a number from 2 to 32`},
		{"Protocol sctp", `Protocol: "sctp" is not tcp or udp`},
		{"Period 0", `Period: "0" is outside the range 1s to 366d`},
		{"Period 1500ms", `Period: "1500ms" must be whole seconds`},
		{"Period 367d", `Period: "367d" is outside the range 1s to 366d`},
		{"Skew 1500ms", `Skew: "1500ms" must be whole seconds`},
		{"ValidUntil never", `ValidUntil: "never" is not a time such as 2027-11-21T07:00:00Z or a day such as 2027-11-21`},
		{"ValidUntil 2027-02-29", `ValidUntil: "2027-02-29" is not a time such as 2027-11-21T07:00:00Z or a day such as 2027-11-21`},
		{
			"ValidUntil 2027-11-21T07:00:00",
			`ValidUntil: "2027-11-21T07:00:00" is not a time such as 2027-11-21T07:00:00Z or a day such as 2027-11-21`,
		},
		{
			"ValidUntil 2027-11-21T07:00:00.5Z",
			`ValidUntil: "2027-11-21T07:00:00.5Z" is not a time such as 2027-11-21T07:00:00Z or a day such as 2027-11-21`,
		},
		{"ValidUntil 2027-11-21 07:00:00", `ValidUntil: expected one value, got 2`},
		{"ValidUntil 0001-01-01", `ValidUntil: "0001-01-01" is outside the years 1970 to 9999`},
		{"ValidUntil 9999-12-31T23:30:00-01:00", `ValidUntil: "9999-12-31T23:30:00-01:00" is outside the years 1970 to 9999`},
		{"KnockDelay 10001ms", `KnockDelay: "10001ms" is outside the range 0s to 10s`},
		{"KnockDelay 5 s", `KnockDelay: expected one value, got 2`},
		{"ConnectTimeout 0", `ConnectTimeout: "0" is outside the range 1us to 1h`},
		{"ConnectTimeout 3601", `ConnectTimeout: "3601" is outside the range 1us to 1h`},
		{"OpenFor 999ms", `OpenFor: "999ms" is outside the range 1s to 1d`},
		{"OpenFor 86401", `OpenFor: "86401" is outside the range 1s to 1d`},
		{"KnockTimeout 999ms", `KnockTimeout: "999ms" is outside the range 1s to 5m`},
		{"KnockTimeout 301", `KnockTimeout: "301" is outside the range 1s to 5m`},
		{"OpenPorts none", `OpenPorts: "none": not a port from 1 to 65535`},
		{"OpenPorts 30-20", `OpenPorts: "30-20": the first port of the range is above the last`},
		{"IgnorePorts 80 none", `IgnorePorts: "none": not a port from 1 to 65535`},
		{"HostName -x", `HostName: "-x" is not a host name`},
		{"HostName a;b", `HostName: "a;b" is not a host name`},
		{"HostName %h.%d", `HostName: "%h.%d": a percent sign is only allowed in %h and %%`},
		{"HostName 50%", `HostName: "50%": a percent sign is only allowed in %h and %%`},
		{"Host a 'b'", `Host: "'b'" is not a host name or pattern`},
		{"Host a!b", `Host: "a!b" is not a host name or pattern`},
		{"Host !", `Host: "!" is not a host name or pattern`},
		{`Host "a b"`, `Host: "a b" is not a host name or pattern`},
	} {
		// The bad value is in a block of a host that nobody looks up.
		_, err := Parse("file", []byte("Host other\n"+tt.line+"\nHost vps\n"+sequenceLine))
		want := "file:2: " + tt.want
		if err == nil || !strings.HasPrefix(err.Error(), "file:2: ") {
			t.Errorf("%s: got %v, want an error in line 2", tt.line, err)
		} else if err.Error() != want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.line, err, want)
		}
	}
}

func TestGoodValues(t *testing.T) {
	for _, tt := range []struct{ line, keyword, want string }{
		{"Port 65535", "Port", "65535"},
		{"KnockDelay 0", "KnockDelay", "0s"},
		{"AddressFamily INET", "AddressFamily", "inet"},
		{"BindAddress ::ffff:192.0.2.1", "BindAddress", "192.0.2.1"},
		{"ConnectTimeout 1h", "ConnectTimeout", "1h"},
		{"OpenFor 24h", "OpenFor", "1d"},
		{"KnockTimeout 5m", "KnockTimeout", "5m"},
		{"IgnorePorts NONE", "IgnorePorts", "none"},
		{"IgnorePorts 80 8000-8100/udp", "IgnorePorts", "80/tcp 8000-8100/udp"},
		{"HostName %h.example.com", "HostName", "vps.example.com"},
		{"HostName bücher.example", "HostName", "bücher.example"},
		{"Scheme rotating\nKeyFile /k\nValidUntil 2027-11-21", "ValidUntil", "2027-11-21T00:00:00Z"},
		{"Scheme rotating\nKeyFile /k\nValidUntil 2027-11-21T07:00:00+05:30", "ValidUntil", "2027-11-21T01:30:00Z"},
	} {
		if got := profileValue("Host vps\n"+tt.line+"\nHost *\n"+sequenceLine, "vps", tt.keyword); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.line, got, tt.want)
		}
	}
}

func TestSettingConflicts(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{
			"knock at the default OpenPorts", "Host vps\n    Sequence 7000 22/tcp 9000\n",
			"file:2: Sequence: knock 2 of 3 goes to a guarded port (one of the OpenPorts)",
		},
		{
			"knock at the OpenPorts that follow Port", "Host vps\n    Port 7000\n    Sequence 7000 8000 9000\n",
			"file:3: Sequence: knock 1 of 3 goes to a guarded port (one of the OpenPorts)",
		},
		{
			"knock at the OpenPorts of another block", "Host vps\n" + sequenceLine + "Host *\n    OpenPorts 8000-9000\n",
			"file:2: Sequence: knock 2 of 3 goes to a guarded port (one of the OpenPorts)",
		},
		{
			"knock at the OpenPorts of a wildcard block", "Host *.example\n" + sequenceLine + "    OpenPorts 7000/udp\n",
			"file:2: Sequence: knock 1 of 3 goes to a guarded port (one of the OpenPorts)",
		},
		{
			"KnockDelay equals KnockTimeout", "Host vps\n    KnockDelay 1s\n    KnockTimeout 1s\n" + sequenceLine,
			"file:2: KnockDelay: 1s must be less than KnockTimeout (1s)",
		},
		{
			"KnockDelay equals the default KnockTimeout", "Host vps\n    KnockDelay 5s\n" + sequenceLine,
			"file:2: KnockDelay: 5s must be less than KnockTimeout (5s)",
		},
		{
			"BindAddress and BindInterface", "Host *.example\n    BindAddress 192.0.2.1\n    BindInterface eth0\n",
			"file:3: BindInterface: cannot be combined with BindAddress",
		},
		{
			"IPv4 BindAddress and inet6", "Host *.example\n    BindAddress 192.0.2.1\n    AddressFamily inet6\n",
			"file:2: BindAddress: 192.0.2.1 does not belong to AddressFamily inet6",
		},
		{
			"IPv6 BindAddress and inet", "Host *.example\n    AddressFamily inet\n    BindAddress 2001:db8::1\n",
			"file:3: BindAddress: 2001:db8::1 does not belong to AddressFamily inet",
		},
		{
			"ValidUntil and Sequence", "Host vps\n" + sequenceLine + "    ValidUntil 2027-11-21\n",
			"file:3: ValidUntil: cannot be used with Scheme static, whose rules do not expire",
		},
		{
			"ValidUntil and Scheme static", "Host *\n    ValidUntil 2027-11-21\n    Scheme static\n",
			"file:2: ValidUntil: cannot be used with Scheme static, whose rules do not expire",
		},
		{
			"ValidUntil and Scheme fwknop", "Host vps\n    Scheme fwknop\n    KeyFile ~/k\n    ValidUntil 2027-11-21\n",
			"file:4: ValidUntil: cannot be used with Scheme fwknop, whose rules do not expire",
		},
		{"static without Sequence", "Host vps\n    Port 22\n    Scheme static\n", "file:3: Scheme: static needs a Sequence"},
	} {
		if _, err := Parse("file", []byte(tt.file)); err == nil || err.Error() != tt.want {
			t.Errorf("%s:\ngot  %v\nwant %s", tt.name, err, tt.want)
		}
	}
	for name, file := range map[string]string{
		"knock at a guarded port by udp": "Host vps\n    Sequence 22/udp 8000\n",
		"OpenPorts from another block":   "Host vps\n    Sequence 22/tcp 8000\nHost *\n    OpenPorts 443\n",
		"Sequence from another block":    "Host vps\n    Scheme static\nHost *\n" + sequenceLine,
		"ValidUntil in another block":    "Host vps\n" + sequenceLine + "Host *\n    ValidUntil 2027-11-21\n",
		"ValidUntil with a default":      "Host vps\n    ValidUntil 2027-11-21\nHost *\n" + sequenceLine,
		"defaults without a host":        "Host nas\n    Port 22\nHost *\n    Scheme static\n",
	} {
		if _, err := Parse("file", []byte(file)); err != nil {
			t.Errorf("%s: got %v, want no error", name, err)
		}
	}
}

// No error may contain a part of the sequence, for any mistake in the file.
func TestErrorsDoNotShowSequence(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"Host vps\nSequence 17001/udp 17002/udo 17003", "file:2: Sequence: knock 2 of 3: the protocol is not tcp or udp"},
		{"Host vps\nSequence 17001/udp 170029 17003", "file:2: Sequence: knock 2 of 3: not a port from 1 to 65535"},
		{"Host vps\nSequence 17001/udp 17002;17003", "file:2: Sequence: knock 2 of 2: not a port from 1 to 65535"},
		{"Host vps\nSequence 17001-17003", "file:2: Sequence: knock 1 of 1: not a port from 1 to 65535"},
		{"Host vps\nSequence ,", "file:2: Sequence: a sequence needs at least one knock, such as 7000/udp"},
		{"Host vps\nSequence" + strings.Repeat(" 17001", 33), "file:2: Sequence: 33 knocks are too many; at most 32 are allowed"},
		{"Host vps\nSequnce 17001 17002", `file:2: unknown keyword "Sequnce"; did you mean Sequence?`},
		{"Host vps\nSequence:17001/udp", "file:2: a line must start with a keyword, such as HostName, and a space"},
		{"Host vps\nSequence 17001\n17002/udp 17003", "file:3: a line must start with a keyword, such as HostName, and a space"},
		{"Host vps\nSequence 17001\nSequence 17002", "file:3: Sequence is set twice; line 2 sets it already"},
		{"Host vps\nSequence 17001#17002", "file:2: # inside a word; put a space before a comment, or quotes around the word"},
		{"Host vps\nScheme static 17001/udp", "file:2: Scheme: expected one value, got 2"},
		{
			"Host vps\nOpenPorts 17000-17002\nSequence 17001",
			"file:3: Sequence: knock 1 of 1 goes to a guarded port (one of the OpenPorts)",
		},
		{"Host vps\nSequence 17001\xff", "file:2: the line is not UTF-8"},
	} {
		_, err := Parse("file", []byte(tt.file))
		if err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
	for _, s := range []string{"Sequence=17001/udp", "sequence 17001", "Sequnce=17001", "17001/udp", "Sequence:17001"} {
		_, err := ParseSetting("-o", s)
		if err == nil || strings.Contains(err.Error(), "17001") {
			t.Errorf("-o %s: got %v, want an error without the port", s, err)
		}
	}
}

func TestServerChecksScheme(t *testing.T) {
	const want = `unknown scheme "telepathy"; the schemes are static, rotating, token, md5-hourly, fwknop`
	if _, err := (&Profile{Scheme: "telepathy"}).Server(t.Context()); err == nil || err.Error() != want {
		t.Errorf("unknown scheme: got %v", err)
	}
	p, err := mustParse(t, "Host vps\n"+sequenceLine).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Server(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if seqs, _, err := s.Schedule.At(time.Now()); err != nil || len(seqs) != 1 || seqs[0].String() != p.Sequence.String() {
		t.Errorf("got %v, %v; want only the profile's Sequence", seqs, err)
	}
}

// TestKeywordOrder: the table of all settings has the groups of each scheme in the order
// of that scheme.
func TestKeywordOrder(t *testing.T) {
	for _, s := range schemes {
		last := -1
		for _, g := range s.groups {
			n := slices.Index(groups, g)
			if n <= last {
				t.Errorf("%s: group %d of the table follows group %d", s.name, n, last)
			}
			last = n
		}
	}
	var names []string
	for _, k := range keywords {
		names = append(names, k.name)
	}
	const want = "HostName Port AddressFamily BindAddress BindInterface Scheme Sequence KnockDelay ConnectTimeout OpenPorts OpenFor " +
		"KnockTimeout IgnorePorts KeyFile KeyCommand DeriveHostKey PortRange Knocks Protocol TokenPort TokensPerWindow Period Skew " +
		"ValidUntil Repeat SPAPort SPAProtocol AllowIP AllowIPCommand SPATimeout SPADigest SPAMode SPAUser TimeOffset NATAccess NATLocal " +
		"HMACKeyFile HMACDigest"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
