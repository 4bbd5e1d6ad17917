package importer

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/spa"
)

// plain is a stanza that lacks nothing. What a test adds begins in line 6.
const plain = "[h]\nSPA_SERVER 192.0.2.1\nACCESS tcp/22\nALLOW_IP 198.51.100.7\nKEY abc\n"

// plainBlock is the block of plain.
const plainBlock = "Host h\n    HostName 192.0.2.1\n    Scheme fwknop\n    OpenPorts 22/tcp\n    KeyFile h.key\n    AllowIP 198.51.100.7\n"

// lacking returns plain without a variable.
func lacking(variable string) string {
	lines := strings.SplitAfter(plain, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, variable) }), "")
}

// outcome returns what a file's stanza h becomes: the lines of its block that are
// not those of plain, and its keys if they are not that of plain; or the error. The
// warnings follow, a line each.
func outcome(file string) string {
	imports, warnings, err := Fwknop("rc", []byte(file), "h")
	var words []string
	for _, i := range imports {
		for line := range strings.Lines(string(i.Block)) {
			if !strings.Contains(plainBlock, line) {
				words = append(words, strings.TrimSpace(line))
			}
		}
		for _, k := range i.Keys {
			if text := string(k.Text); k.File != "h.key" || text != "base64:YWJj\n" {
				words = append(words, k.File+" "+strings.TrimSpace(text))
			}
		}
	}
	if err != nil {
		words = []string{err.Error()}
	}
	return strings.Join(slices.Concat([]string{strings.Join(words, ", ")}, warnings), "\n")
}

func TestFwknopPlainForm(t *testing.T) {
	imports, warnings, err := Fwknop("rc", []byte(plain), "")
	if err != nil || len(imports) != 1 || warnings != nil || string(imports[0].Block) != plainBlock || imports[0].Name != "h" {
		t.Errorf("%+v, %q, %v", imports, warnings, err)
	}
	for name, tt := range map[string]struct{ file, want string }{
		"comments":        {"# x\n;x\n\n" + plain + "#KEY x\n;KEY x\r\n\r\n[x] # y\n# z\n", ""},
		"Windows lines":   {strings.ReplaceAll(plain, "\n", "\r\n"), ""},
		"no last newline": {strings.TrimSuffix(plain, "\n"), ""},
		"blanks":          {plain + "\t FW_TIMEOUT  \t 3 \t\n", "SPATimeout 3"},
		"colon":           {plain + "FW_TIMEOUT: 3\n", "SPATimeout 3"},
		"comment behind":  {plain + "FW_TIMEOUT 3 # x\nSPA_SERVER_PORT 5\t;x\n", "SPAPort 5, SPATimeout 3"},
		"other case":      {strings.Replace(plain, "[h]", "[H]", 1), "Host H"},
		"default":         {"[default]\nKEY x\nFW_TIMEOUT 7\n" + plain, "SPATimeout 7"},
		"default last":    {plain + "[Default]\nKEY x\nFW_TIMEOUT 7\n", "SPATimeout 7"},
		"other stanza":    {plain + "[x]\nnonsense\nKEY = =\n", ""},
	} {
		if got := outcome(tt.file); got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
}

// TestFwknopRefuses: what fwknop reads in another way than it looks.
func TestFwknopRefuses(t *testing.T) {
	const form = "rc:6: write a variable in capitals, a blank and a value without blanks, such as SPA_SERVER vps.example"
	const title = "rc:6: write the first line of a stanza as [NAME]"
	for name, tt := range map[string]struct{ file, want string }{
		"long line":         {plain + "#" + strings.Repeat("c", 1022) + "\n", "rc:6: longer than 1022 bytes, and fwknop reads the rest as another line: shorten it"},
		"NUL":               {plain + "KEY x\x00y\n", "rc:6: remove the control character U+0000"},
		"NUL in a comment":  {plain + "# x\x00y\n", "rc:6: remove the control character U+0000"},
		"form feed":         {plain + "FW_TIMEOUT 3\f\n", "rc:6: remove the control character U+000C"},
		"before the first":  {"FW_TIMEOUT 3\n" + plain, "rc:1: fwknop ignores a line before the first stanza: put it below [default]"},
		"BOM":               {"\ufeff[x]\n" + plain, "rc:1: fwknop ignores a line before the first stanza: put it below [default]"},
		"stanza twice":      {plain + "[x]\n[H]\n", "rc:7: [H] again: fwknop joins it to line 1, so write it there"},
		"stanza not closed": {plain + "[x\n", title},
		"stanza indented":   {plain + " [x]\n", title},
		"stanza and more":   {plain + "[x] y\n", title},
		"stanza in two":     {plain + "[[x]]\n", title},
		"blanks in a name":  {plain + "[ x ]\n", title},
		"escape in a name":  {plain + "[\u009bx]\n", title},
		"no name":           {plain + "[]\n", title},
		"only blanks":       {plain + " \n", form},
		"indented comment":  {plain + " # x\n", form},
		"no value":          {plain + "USE_HMAC\n", form},
		"comment for value": {plain + "USE_HMAC # Y\n", form},
		"equals":            {plain + "FW_TIMEOUT = 3\n", form},
		"tight equals":      {plain + "FW_TIMEOUT=3\n", form},
		"two words":         {plain + "SPOOF_USER a b\n", form},
		"equals before":     {plain + "SPOOF_USER =a\n", `rc:6: SPOOF_USER: remove the "=", which is part of the value for fwknop`},
		"colon before":      {plain + "SPOOF_USER :a\n", `rc:6: SPOOF_USER: remove the ":", which is part of the value for fwknop`},
		"hash in value":     {plain + "HMAC_KEY a#c\n", "rc:6: HMAC_KEY: fwknop ends a value at # and ;: put a blank before a comment, or write a key in base64"},
		"semicolon":         {plain + "HMAC_KEY a;c\n", "rc:6: HMAC_KEY: fwknop ends a value at # and ;: put a blank before a comment, or write a key in base64"},
		"small letters":     {plain + "spoof_user x\n", form},
		"a key's line":      {plain + "c2VjcmV0 x\n", form},
		"unknown":           {plain + "CLIENT_TIMEOUT 3\n", "rc:6: CLIENT_TIMEOUT: fwknop does not know this variable"},
		"twice":             {plain + "KEY x\n", "rc:6: KEY: line 5 has it already; keep one"},
		"fault in default":  {plain + "[default]\nnonsense\n", strings.Replace(form, "6", "7", 1)},
		"no such stanza":    {"[x]\n", `rc: no stanza "h" in it`},
		"Y not undone":      {"[default]\nRAND_PORT Y\n" + plain + "RAND_PORT N\n", "rc:8: RAND_PORT: fwknop keeps what line 2 has: remove one of them"},
		"IP not undone":     {"[default]\nALLOW_IP source\n" + lacking("ALLOW_IP") + "ALLOW_IP resolve\n", "rc:7: ALLOW_IP: fwknop keeps what line 2 has: remove one of them"},
		"minus not undone":  {"[default]\nTIME_OFFSET -90\n" + plain + "TIME_OFFSET 5m\n", "rc:8: TIME_OFFSET: fwknop keeps what line 2 has: remove one of them"},
	} {
		if got := outcome(tt.file); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, tt.want)
		}
	}
}

// TestFwknopVariables: what becomes of each variable.
func TestFwknopVariables(t *testing.T) {
	const none = "rc: no stanza that can be imported\n"
	h := strings.Repeat("h", 129)
	for lines, want := range map[string]string{
		"SPA_SERVER_PORT 443":                      "SPAPort 443",
		"SPA_SERVER_PORT 443x":                     `rc:6: SPA_SERVER_PORT: "443x" is not a plain number such as 30`,
		"SPA_SERVER_PORT 0":                        `rc:6: SPA_SERVER_PORT: SPAPort: "0" is neither a port from 1 to 65535 nor random`,
		"SPA_SERVER_PORT random":                   `rc:6: SPA_SERVER_PORT: "random" is not a plain number such as 30`,
		"RAND_PORT y\nSPA_SERVER_PORT 5":           "SPAPort random",
		"RAND_PORT yes":                            `rc:6: RAND_PORT: "yes" is not Y or N`,
		"RAND_PORT N":                              "",
		"RAND_PORT Y\nSPA_SERVER_PROTO tcp":        none + "rc:1: [h] is left out: SPAPort: random goes with the SPAProtocol udp only",
		"SPA_SERVER_PORT 22\nSPA_SERVER_PROTO tcp": none + "rc:1: [h] is left out: SPAPort: 22/tcp is one of the OpenPorts, and a guarded port takes no packet",
		"SPA_SERVER_PROTO HTTP":                    "SPAProtocol http",
		"SPA_SERVER_PROTO udpraw":                  "\nrc:1: [h] has what no setting stands for: SPA_SERVER_PROTO (line 6)",
		"SPA_SERVER_PROTO icmp":                    none + "rc:6: [h] is left out: icmp needs root, and is not supported",
		"SPA_SERVER_PROTO tcpraw":                  none + "rc:6: [h] is left out: tcpraw needs root, and is not supported",
		"SPA_SERVER_PROTO https":                   `rc:6: SPA_SERVER_PROTO: SPAProtocol: "https" is not udp, tcp or http`,
		"SERVER_RESOLVE_IPV4 Y":                    "",
		"FW_TIMEOUT 65535":                         "SPATimeout 65535",
		"FW_TIMEOUT 030":                           `rc:6: FW_TIMEOUT: "030" is not a plain number such as 30`,
		"FW_TIMEOUT 1h":                            `rc:6: FW_TIMEOUT: "1h" is not a plain number such as 30`,
		"FW_TIMEOUT 99999999999999999999":          `rc:6: FW_TIMEOUT: SPATimeout: "99999999999999999999" is too long a time`,
		"TIME_OFFSET 5400":                         "TimeOffset 5400",
		"TIME_OFFSET -5M":                          "TimeOffset -5m",
		"TIME_OFFSET 5xHm":                         `rc:6: TIME_OFFSET: "5xHm" is not a plain time such as 90, -5m or 1h`,
		"TIME_OFFSET 1h30m":                        `rc:6: TIME_OFFSET: "1h30m" is not a plain time such as 90, -5m or 1h`,
		"TIME_OFFSET -":                            `rc:6: TIME_OFFSET: "-" is not a plain time such as 90, -5m or 1h`,
		"DIGEST_TYPE SHA3_512":                     "SPADigest sha3_512",
		"ENCRYPTION_MODE Cfb":                      "SPAMode cfb",
		"ENCRYPTION_MODE Asymmetric":               none + "rc:6: [h] is left out: GnuPG is not supported",
		"SPOOF_USER Bob":                           "SPAUser Bob",
		"SPOOF_USER " + h:                          "rc:6: SPOOF_USER: fwknop cuts a name after 29 bytes: shorten it",
		`SPOOF_USER a"b`:                           `rc:6: SPOOF_USER: "a\"b" cannot be written into a profile`,

		"ENCRYPTION_MODE legacy":                     "SPAMode legacy",
		"ENCRYPTION_MODE legacy\nHMAC_KEY x":         "rc:7: HMAC_KEY: fwknop refuses an HMAC key with ENCRYPTION_MODE legacy",
		"HMAC_KEY xyz\nUSE_HMAC Y":                   "HMACKeyFile h.hmac, h.hmac base64:eHl6",
		"HMAC_KEY xyz\nUSE_HMAC N":                   "rc:7: USE_HMAC: fwknop uses an HMAC key that it has: remove the key or this",
		"HMAC_KEY_BASE64 eHl6\nHMAC_DIGEST_TYPE MD5": "HMACKeyFile h.hmac, HMACDigest md5, h.hmac base64:eHl6",
		"HMAC_KEY abc":                               "rc:6: HMAC_KEY: fwknop refuses an HMAC key that is the key",
		"HMAC_KEY " + h:                              "rc:6: HMAC_KEY: fwknop takes 128 bytes of a key at most, and these are 129",
		"USE_HMAC Y":                                 none + "rc:6: [h] is left out: it has neither HMAC_KEY nor HMAC_KEY_BASE64, and no other HMAC key is read",
		"KEY_BASE64 eHl6":                            "rc:6: KEY_BASE64: fwknop takes the KEY of line 5: keep one of them",
		"USE_GPG Y\nGPG_SIGNING_PW x":                none + "rc:6: [h] is left out: GnuPG is not supported",
		"GPG_SIGNING_PW xyz":                         "rc:6: GPG_SIGNING_PW: fwknop takes it for KEY, KEY_BASE64 or KEY_FILE: remove it, or call it so",
		"HMAC_KEY_FILE /k":                           "rc:6: HMAC_KEY_FILE: fwknop takes it for KEY, KEY_BASE64 or KEY_FILE: remove it, or call it so",
		"VERBOSE Y\nUSE_GPG N\nGPG_SIGNER y":         "\nrc:1: [h] has what no setting stands for: VERBOSE (line 6), GPG_SIGNER (line 8)",

		"NAT_ACCESS 10.0.0.5,80":              "NATAccess 10.0.0.5,80",
		"NAT_ACCESS 10.0.0.5:80":              "NATAccess 10.0.0.5,80",
		"NAT_ACCESS 10.0.0.5\nNAT_PORT 99":    "OpenPorts 99/tcp, NATAccess 10.0.0.5,22",
		"NAT_ACCESS 10.0.0.5,x":               `rc:6: NAT_ACCESS: NATAccess: "10.0.0.5,x" is not an IPv4 address and a port such as 10.0.0.5,22`,
		"NAT_ACCESS lan,22":                   none + `rc:6: [h] is left out: NAT to "lan", which is not an IPv4 address, is not supported`,
		"NAT_LOCAL Y":                         "NATAccess 192.0.2.1,22, NATLocal yes",
		"NAT_LOCAL Y\nNAT_ACCESS 10.0.0.5,80": "NATAccess 10.0.0.5,80, NATLocal yes",
		"RESOLVE_IP_HTTPS Y":                  "rc:4: ALLOW_IP: with it fwknop does not resolve: remove it, or RESOLVE_IP_HTTP and RESOLVE_IP_HTTPS",
	} {
		if got := outcome(plain + lines + "\n"); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", lines, got, want)
		}
	}
	const web = "\nrc:5: [h] asks a web page for the address, which becomes AllowIPCommand curl: it must answer with the address alone"
	for file, want := range map[string]string{
		lacking("SPA_SERVER"):                                                              none + "rc:1: [h] is left out: it has no SPA_SERVER",
		lacking("SPA_SERVER") + "SPA_SERVER fe80::1%eth0\n":                                "HostName fe80::1%%eth0",
		lacking("SPA_SERVER") + "SPA_SERVER a_?\n":                                         `rc:5: SPA_SERVER: HostName: "a_?" is not a host name`,
		lacking("ACCESS"):                                                                  "\nrc:1: [h] has no ACCESS, which fwknop wants on its command line then; OpenPorts is 22/tcp",
		lacking("ACCESS") + "ACCESS tcp/22,udp/53\n":                                       "OpenPorts 22/tcp 53/udp",
		lacking("ACCESS") + "ACCESS tcp/22,tcp/23\nNAT_PORT 99\n":                          "rc:6: NAT_PORT: fwknop refuses it with several ports in ACCESS",
		lacking("ACCESS") + "ACCESS TCP/22\n":                                              `rc:5: ACCESS: "TCP/22" is not ports such as tcp/22,udp/53`,
		lacking("ACCESS") + "ACCESS tcp/022\n":                                             `rc:5: ACCESS: "tcp/022" is not ports such as tcp/22,udp/53`,
		lacking("ACCESS") + "ACCESS tcp/22,\n":                                             `rc:5: ACCESS: "tcp/22," is not ports such as tcp/22,udp/53`,
		lacking("ACCESS") + "ACCESS tcp/0\n":                                               `rc:5: ACCESS: OpenPorts: "0/tcp": not a port from 1 to 65535`,
		lacking("ALLOW_IP"):                                                                "AllowIP source\nrc:1: [h] has no ALLOW_IP, which fwknop wants on its command line then; AllowIP is source",
		lacking("ALLOW_IP") + "ALLOW_IP SOURCE\n":                                          "AllowIP source",
		lacking("ALLOW_IP") + "ALLOW_IP 0.0.0.0\n":                                         "AllowIP source",
		lacking("ALLOW_IP") + "ALLOW_IP vps.example\n":                                     `rc:5: ALLOW_IP: AllowIP: "vps.example" is neither an IPv4 address nor source`,
		lacking("ALLOW_IP") + "ALLOW_IP resolve\n":                                         "AllowIPCommand curl -4 -fsS https://www.cipherdyne.org/cgi-bin/myip\nrc:1:" + web[6:],
		lacking("ALLOW_IP") + "RESOLVE_URL -o/x\nRESOLVE_IP_HTTP Y\nRESOLVE_HTTP_ONLY Y\n": "AllowIPCommand curl -4 -fsS http://-o/x" + web,
		lacking("ALLOW_IP") + "RESOLVE_URL http://192.0.2.1/\nRESOLVE_IP_HTTPS Y\n":        "AllowIPCommand curl -4 -fsS http://192.0.2.1/" + web,
		lacking("KEY"):                                                  none + "rc:1: [h] is left out: it has neither KEY nor KEY_BASE64, and no other key is read",
		lacking("KEY") + "KEY_FILE /k\n":                                none + "rc:1: [h] is left out: it has neither KEY nor KEY_BASE64, and no other key is read",
		lacking("KEY") + "KEY_BASE64 YWI\n":                             "h.key base64:YWI=",
		lacking("KEY") + "KEY_BASE64 YWI=\n":                            "h.key base64:YWI=",
		lacking("KEY") + "KEY_BASE64 YW=j\n":                            "rc:5: KEY_BASE64: not base64: is it all there?",
		lacking("KEY") + "KEY_BASE64 YWJjZ\n":                           "rc:5: KEY_BASE64: not base64: is it all there?",
		lacking("KEY") + "KEY_BASE64 ==\n":                              `rc:5: KEY_BASE64: remove the "=", which is part of the value for fwknop`,
		lacking("KEY") + "KEY " + h[:33] + "\n":                         "rc:5: KEY: fwknop takes 32 bytes of a key at most, and these are 33",
		lacking("KEY") + "KEY " + h[:17] + "\nENCRYPTION_MODE legacy\n": "rc:5: KEY: fwknop takes 16 bytes of a key at most, and these are 17",
	} {
		if got := outcome(file); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", file, got, want)
		}
	}
}

// TestFwknopStanzas: which stanzas are imported, under which names.
func TestFwknopStanzas(t *testing.T) {
	body := strings.TrimPrefix(plain, "[h]\n")
	const same = "rc:7: [b] has the SPA_SERVER of a, which is the profile that ssh's %h finds: name the profile b to use it"
	for name, tt := range map[string]struct{ file, stanza, want, warned string }{
		"all":              {"[default]\n[a]\n" + body + "[b]\n" + body, "", "a b", same},
		"other servers":    {"[a]\n" + body + "[b]\n" + strings.Replace(body, "192.0.2.1", "vps.example", 1), "", "a b", ""},
		"one":              {"[a]\n" + body + "[b]\nfoo\n", "A", "a", ""},
		"default below":    {"[default]\n" + body + "[a]\nKEY y\n", "", "a", "rc:2: [default] applies to the other stanzas and is not imported; import it by its name"},
		"default alone":    {"[default]\n" + body, "", "192.0.2.1", ""},
		"default by name":  {"[a]\n[default]\n" + body, "Default", "192.0.2.1", ""},
		"names":            {"[*.a]\n" + body + "[my host]\n" + body + "[vps]\n" + body + "[\xffb]\n" + body, "", "vps", "rc:1: [*.a] is left out: \"*.a\" is not a host name\nrc:6: [my host] is left out: \"my host\" is not a host name\nrc:16: [\xffb] is left out: \"\\xffb\" is not a host name"},
		"GnuPG among them": {"[a]\nUSE_GPG Y\n" + body + "[b]\n" + body, "", "b", "rc:2: [a] is left out: GnuPG is not supported"},
		"fault among them": {"[b]\n" + body + "[a]\nUSE_GPG x\n", "", `rc:7: USE_GPG: "x" is not Y or N`, ""},
		"none":             {"# nothing\n", "", "rc: no stanza that can be imported", ""},
		"key files":        {"[2001:db8::1]\n" + body, "", "2001:db8::1", ""},
	} {
		imports, warned, err := Fwknop("rc", []byte(tt.file), tt.stanza)
		var names []string
		for _, i := range imports {
			names = append(names, i.Name)
		}
		got := strings.Join(names, " ")
		if err != nil {
			got = err.Error()
		}
		if got != tt.want || strings.Join(warned, "\n") != tt.warned {
			t.Errorf("%s:\ngot  %s\nwant %s\nwarned: %s\nwant    %s", name, got, tt.want, strings.Join(warned, "\n"), tt.warned)
		}
	}
}

// TestFwknopLargeFile takes hours if the time grows with the square of the size.
func TestFwknopLargeFile(t *testing.T) {
	const n = 100_000
	var file strings.Builder
	for i := range n {
		fmt.Fprintf(&file, "[%d]\n", i)
	}
	_, warned, err := Fwknop("rc", []byte(file.String()), "")
	if err == nil || len(warned) != n {
		t.Errorf("%d warnings, %v", len(warned), err)
	}
}

// TestImportedKeyFiles: names that differ have files that do.
func TestImportedKeyFiles(t *testing.T) {
	body := strings.TrimPrefix(plain, "[h]\n")
	for name, want := range map[string]string{
		"VPS-1.example": "vps-1.example.key", "büro": "büro.key", "дом": "дом.key",
		"a@b": "a_40b.key", "a:b": "a_3ab.key", "2001:db8::1": "2001_3adb8_3a_3a1.key",
	} {
		imports, _, err := Fwknop("rc", []byte("["+name+"]\n"+body), "")
		if err != nil || imports[0].Keys[0].File != want {
			t.Errorf("%s: %v, %v, want %s", name, imports, err, want)
		}
	}
}

// TestImportedKeys: the profile reads the key that the stanza gives, whatever bytes
// are in it.
func TestImportedKeys(t *testing.T) {
	for line, want := range map[string]string{
		"KEY abc": "abc", "KEY base64:x": "base64:x", "KEY portknock-key-1:x": "portknock-key-1:x", "KEY_BASE64 AP8K": "\x00\xff\n",
	} {
		imports, _, err := Fwknop("rc", []byte(lacking("KEY")+line+"\n"), "")
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for file, text := range map[string][]byte{"config": imports[0].Block, imports[0].Keys[0].File: imports[0].Keys[0].Text} {
			if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := profile.Load(filepath.Join(dir, "config"))
		if err != nil {
			t.Fatal(err)
		}
		p, err := f.Lookup("h")
		if err != nil {
			t.Fatal(err)
		}
		picker, err := p.Picker(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := picker.(*spa.Request).Key.Bytes(); !bytes.Equal(got, []byte(want)) {
			t.Errorf("%s: got %q", line, got)
		}
	}
}

// FuzzFwknop: what is imported is a profile.
func FuzzFwknop(f *testing.F) {
	f.Add([]byte(plain))
	f.Add([]byte("[default]\nALLOW_IP resolve\nRESOLVE_URL x{1,2}\"%\nRAND_PORT Y\n" + lacking("ALLOW_IP") + "[h2]\nSPA_SERVER fe80::1%eth0\nNAT_ACCESS 10.0.0.1\nHMAC_KEY x\nTIME_OFFSET -3m\nSPOOF_USER a'b\n"))
	f.Add([]byte(plain + "SPA_SERVER_PROTO tcp\nRAND_PORT Y\n"))
	f.Add([]byte("[::1%a]\nSPA_SERVER %h\nKEY_BASE64 AAAA=\n[%h]\nSPA_SERVER a\xff\nKEY x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		imports, _, err := Fwknop("rc", data, "")
		if err != nil {
			if !strings.HasPrefix(err.Error(), "rc:") {
				t.Fatalf("no place: %v", err)
			}
			return
		}
		var blocks [][]byte
		for _, i := range imports {
			blocks = append(blocks, i.Block)
		}
		// Insert parses what it has made, and looks it up.
		if _, err := profile.Insert("config", []byte("Host *\n    ConnectTimeout 20\n"), bytes.Join(blocks, []byte("\n"))); err != nil {
			t.Fatalf("%v\n%s", err, bytes.Join(blocks, []byte("\n")))
		}
	})
}
