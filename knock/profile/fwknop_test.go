package profile

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock/spa"
)

const fwknopFile = `Host vps
    HostName 192.0.2.1
    Scheme fwknop
    OpenPorts 2222 53/udp
    KeyFile /keys/vps
    SPAPort 80
    SPAProtocol http
    AllowIP 198.51.100.7
    SPATimeout 1m
    SPADigest SHA3_256
    SPAMode ctr
    SPAUser "alice b"
    TimeOffset -1h30m
    NATAccess 10.0.0.5,22
    NATLocal yes
    HMACKeyFile /keys/vps.hmac
    HMACDigest sha512
`

func TestSPASettingsRoundTrip(t *testing.T) {
	p, err := mustParse(t, fwknopFile).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	want := SPA{
		Port: 80, Protocol: spa.HTTP, AllowIP: netip.MustParseAddr("198.51.100.7"), Timeout: time.Minute,
		Digest: spa.SHA3_256, Mode: spa.CTR, User: "alice b", TimeOffset: -90 * time.Minute,
		NATAccess: netip.MustParseAddrPort("10.0.0.5:22"), NATLocal: true,
		HMACKeyFile: filepath.FromSlash(root + "keys/vps.hmac"), HMACDigest: spa.SHA512,
	}
	if !reflect.DeepEqual(p.SPA, want) || p.KeyFile != filepath.FromSlash(root+"keys/vps") || p.PortRange.First != 0 || p.Period != 0 {
		t.Errorf("the file's settings are not in the profile: %+v", p)
	}
	got, err := json.Marshal(p)
	const suffix = `"keyFile":"/keys/vps","fwknop":{"port":"80","protocol":"http","allowIP":"198.51.100.7","timeout":"1m0s",` +
		`"digest":"sha3-256","mode":"ctr","user":"alice b","timeOffset":"-1h30m0s","natAccess":"10.0.0.5,22","natLocal":true,` +
		`"hmacKeyFile":"/keys/vps.hmac","hmacDigest":"sha512"}}`
	if err != nil || !strings.HasSuffix(asOnUnix(string(got)), suffix) {
		t.Errorf("wrong settings in JSON: %s, %v", got, err)
	}
	var written bytes.Buffer
	p.WriteTo(&written)
	if again, err := mustParse(t, written.String()).Lookup("vps"); err != nil || !reflect.DeepEqual(p, again) {
		t.Errorf("WriteTo wrote another profile: %v\n%s", err, &written)
	}
}

func TestSPASettingsApplyOnlyToFwknop(t *testing.T) {
	const others = "Host *\nKeyFile /keys/vps\nHMACKeyFile /keys/hmac\nSPAUser alice\n" +
		"AllowIPCommand curl -fsS http://192.0.2.1/\nPortRange 30000-30999\n"
	p, err := mustParse(t, "Host vps\nScheme fwknop\nAllowIP source\n"+others).Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	want := SPA{Port: 62201, User: "alice", HMACKeyFile: filepath.FromSlash(root + "keys/hmac")}
	if !reflect.DeepEqual(p.SPA, want) || p.PortRange.First != 0 || p.OpenPorts[0].String() != "22/tcp" {
		t.Errorf("wrong SPA settings, or a setting of another scheme: %+v", p)
	}
	var written bytes.Buffer
	p.WriteTo(&written)
	const suffix = "    KeyFile /keys/vps\n    SPAPort 62201\n    SPAProtocol udp\n    AllowIP source\n" +
		"    SPATimeout 0s\n    SPADigest sha256\n" +
		"    SPAMode cbc\n    SPAUser alice\n    TimeOffset 0s\n    NATLocal no\n    HMACKeyFile /keys/hmac\n    HMACDigest sha256\n"
	if !strings.HasSuffix(asOnUnix(written.String()), suffix) {
		t.Errorf("wrong settings written:\n%s", &written)
	}
	// The settings under Host * do not apply to a profile of the scheme static.
	p, err = mustParse(t, "Host vps\n"+sequenceLine+others).Lookup("vps")
	if err != nil || !reflect.DeepEqual(p.SPA, SPA{}) || p.KeyFile != "" {
		t.Errorf("got %+v, %v; want no SPA settings and no KeyFile", p, err)
	}
}

func TestSPASettingErrors(t *testing.T) {
	for _, tt := range []struct{ lines, want string }{
		{"", "file:2: Scheme: fwknop needs a KeyFile or a KeyCommand"},
		{"KeyFile /k\nSequence 7000", "file:4: Sequence: is only used with Scheme static, not with fwknop"},
		{"KeyFile /k\nKeyCommand c", "file:4: KeyCommand: cannot be combined with KeyFile"},
		{"KeyFile /k\nHMACKeyFile /k", "file:4: HMACKeyFile: must be another file than KeyFile"},
		{"KeyFile /k\nHMACKeyFile h", `file:4: HMACKeyFile: "h" must be an absolute path, because the profile was not read from a folder`},
		{"KeyFile /k\nHMACKeyFile /h\nSPAMode legacy", "file:4: HMACKeyFile: cannot be used with SPAMode legacy"},
		{"KeyFile /k\nAddressFamily inet6", "file:4: AddressFamily: fwknopd opens ports for IPv4 only"},
		{"KeyFile /k\nBindAddress ::1", "file:4: BindAddress: fwknopd opens ports for IPv4 only"},
		{"KeyFile /k\nDeriveHostKey yes", "file:4: DeriveHostKey: cannot be used with Scheme fwknop"},
		{"KeyFile /k\nRepeat 2", "file:4: Repeat: cannot be used with Scheme fwknop: fwknopd accepts each packet only once"},
		{"KeyFile /k\nRepeat 3", `file:4: Repeat: "3" is not a number from 1 to 2`},
		{"KeyFile /k\nOpenPorts 22 60000-61000/udp", "file:4: OpenPorts: fwknopd opens only single ports; 60000-61000/udp is a range"},
		{"KeyFile /k\nAllowIP 192.0.2.1\nAllowIPCommand c", "file:5: AllowIPCommand: cannot be combined with AllowIP"},
		{"KeyFile /k\nNATLocal yes", "file:2: Scheme: NATLocal needs a NATAccess"},
		{"NATLocal true", `file:3: NATLocal: "true" is not yes or no`},
		{"KeyFile /k\nSPAPort random\nSPAProtocol tcp", "file:4: SPAPort: random is only possible with SPAProtocol udp"},
		{"KeyFile /k\nSPAPort 22\nSPAProtocol tcp", "file:4: SPAPort: 22/tcp is one of the OpenPorts; a guarded port cannot receive the packet"},
		{"SPAPort 0", `file:3: SPAPort: "0" is not a port from 1 to 65535 or random`},
		{"SPAPort 70000", `file:3: SPAPort: "70000" is not a port from 1 to 65535 or random`},
		{"SPAProtocol icmp", `file:3: SPAProtocol: "icmp" is not udp, tcp or http`},
		{"AllowIP 2001:db8::1", `file:3: AllowIP: "2001:db8::1" is not an IPv4 address or source`},
		{"AllowIP home.example", `file:3: AllowIP: "home.example" is not an IPv4 address or source`},
		{"AllowIPCommand bin/ip", `file:3: AllowIPCommand: "bin/ip" is not a program name or an absolute path`},
		{"SPATimeout 1500ms", `file:3: SPATimeout: "1500ms" must be whole seconds`},
		{"SPATimeout 65537", `file:3: SPATimeout: "65537" is outside the range 0s to 18h12m16s`},
		{"SPADigest sha224", `file:3: SPADigest: "sha224" is not one of sha256, md5, sha1, sha384, sha512, sha3-256, sha3-512`},
		{"SPAMode gcm", `file:3: SPAMode: "gcm" is not one of cbc, ecb, cfb, ofb, ctr, legacy`},
		{"SPAUser a/b", `file:3: SPAUser: user name "a/b": use printable ASCII characters without any of "/\[]:;|=,+*?<>`},
		{"SPAUser " + strings.Repeat("x", 49), `file:3: SPAUser: the user name has 49 characters; 1 to 48 are allowed`},
		{"TimeOffset 1.5h", `file:3: TimeOffset: "1.5h" is not a time such as 90 or -1h30m`},
		{"NATAccess 10.0.0.5:22", `file:3: NATAccess: "10.0.0.5:22" is not an IPv4 address and a port such as 10.0.0.5,22`},
		{"NATAccess 10.0.0.5,0", `file:3: NATAccess: "10.0.0.5,0" is not an IPv4 address and a port such as 10.0.0.5,22`},
		{"HMACDigest crc", `file:3: HMACDigest: "crc" is not one of sha256, md5, sha1, sha384, sha512, sha3-256, sha3-512`},
	} {
		_, err := Parse("file", absolute("Host vps\nScheme fwknop\n"+tt.lines+"\n"))
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s:\ngot  %v\nwant %s", tt.lines, err, tt.want)
		}
	}
}

func TestParseForeignKey(t *testing.T) {
	for text, want := range map[string]string{
		"pass word\n":       "pass word",
		" x \n\n":           " x \n",
		"x\r\n":             "x", // "\r\n" is a newline of Windows
		"x\r\r\n":           "x\r",
		"base64:AAEC/w==\n": "\x00\x01\x02\xff",
		" base64:AAEC":      " base64:AAEC",
		keyText + "\n": "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f" +
			"\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f",
		"":                         "",
		"\n":                       "",
		"base64:\n":                "",
		"base64:%%%":               "",
		"base64:AAEC/w":            "\x00\x01\x02\xff",
		"portknock-key-1:mistyped": "",
	} {
		k, err := parseForeignKey([]byte(text))
		if string(k.Bytes()) != want || (err != nil) != (want == "") {
			t.Errorf("%q: got another key or no error: %q, %v", text, k.Bytes(), err)
		}
		if err != nil && strings.Contains(err.Error(), "mistyped\"") {
			t.Errorf("%q: the error contains the key: %v", text, err)
		}
	}
}
