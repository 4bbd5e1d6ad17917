package profile

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/portknock/portknock/knock"
)

// rcBase is a stanza that lacks nothing. What a test adds begins in line 6.
const rcBase = "[h]\nSPA_SERVER 192.0.2.1\nACCESS tcp/22\nALLOW_IP 198.51.100.7\nKEY abc\n"

// rcImport returns what a file's stanza h becomes, on one line: its settings that
// are not those of rcBase, and its keys; or the error; and all warnings.
func rcImport(t testing.TB, file string) (got string, warnings string) {
	t.Helper()
	imports, warned, err := ImportFwknop("rc", []byte(file), "h")
	warnings = strings.Join(warned, "\n")
	if err != nil {
		return err.Error(), warnings
	}
	return rcSummary(imports[0]), warnings
}

func rcSummary(i Import) string {
	base := []string{"HostName 192.0.2.1", "Scheme fwknop", "OpenPorts 22/tcp", "AllowIP 198.51.100.7", "KeyFile h.key", "HMACKeyFile h.hmac"}
	var words []string
	for _, s := range i.Settings {
		if line := s.Keyword + " " + s.Value; !slices.Contains(base, line) {
			words = append(words, line)
		}
	}
	for _, k := range i.Keys {
		words = append(words, fmt.Sprintf("%s=%.40s", k.File, k.Key.Bytes()))
	}
	return strings.Join(words, " ")
}

// TestFwknopGrammar holds down what fwknop 2.6.10 was seen to do.
func TestFwknopGrammar(t *testing.T) {
	const key = "h.key=abc"
	long := strings.Repeat("c", 1022)
	for name, tt := range map[string]struct{ file, want, warned string }{
		"plain":          {rcBase, key, ""},
		"capitals":       {strings.Replace(rcBase, "[h]", "[H]", 1), "H", ""},
		"comments":       {rcBase + "#KEY x\n;KEY x\n\r\n\n", key, ""},
		"NUL":            {rcBase + "\x00KEY x\nKEY y\x00z\n", "h.key=y", ""},
		"blanks before":  {rcBase + "\t \v\fFW_TIMEOUT 3\n", "SPATimeout 3 " + key, ""},
		"several blanks": {rcBase + "KEY\t\v\f xyz\r\n", "h.key=xyz", ""},
		"last wins":      {rcBase + "KEY one\nKEY two\n", "h.key=two", ""},
		"no newline":     {rcBase + "KEY xyz", "h.key=xyz", ""},
		"comment behind": {rcBase + "KEY xyz # mine\nKEY xyz ;mine\n", "h.key=xyz", ""},
		"colon":          {rcBase + "KEY: xyz\n", "h.key=xyz", ""},

		"two colons":      {rcBase + "KEY:: xyz\n", "rc:6: a line begins with a variable, such as SPA_SERVER, and a blank", ""},
		"blank, colon":    {rcBase + "KEY :xyz\n", "h.key=:xyz", `rc:6: KEY: fwknop takes the ":" for the value, or for part of it; between the two belongs a blank only`},
		"equals":          {rcBase + "KEY = xyz\n", "h.key==", `rc:6: KEY: fwknop takes the "=" for the value, or for part of it; between the two belongs a blank only`},
		"equals, tight":   {rcBase + "KEY=xyz\n", "rc:6: a line is a variable, a blank and a value, such as SPA_SERVER vps.example", ""},
		"hash in value":   {rcBase + "KEY ab#c\n", "h.key=ab", `rc:6: KEY: to fwknop the value ends before the "#"`},
		"semicolon":       {rcBase + "KEY ab;c\n", "h.key=ab", `rc:6: KEY: to fwknop the value ends before the ";"`},
		"two words":       {rcBase + "KEY ab cd\n", "h.key=ab", "rc:6: KEY: to fwknop the value ends at the first blank"},
		"no value":        {rcBase + "KEY\n", "rc:6: a line is a variable, a blank and a value, such as SPA_SERVER vps.example", ""},
		"comment only":    {rcBase + "KEY ;xyz\n", "rc:6: a line is a variable, a blank and a value, such as SPA_SERVER vps.example", ""},
		"NUL for a value": {rcBase + "KEY \x00xyz\n", "rc:6: a line is a variable, a blank and a value, such as SPA_SERVER vps.example", ""},
		"only blanks":     {rcBase + "  \n", "rc:6: only blanks, which fwknop refuses", ""},
		"blanks, hash":    {rcBase + " # comment\n", "rc:6: to fwknop this is no comment: nothing may stand before the # or ;", ""},
		"small letters":   {rcBase + "key xyz\n", "rc:6: variables are written in capitals: KEY", ""},
		"a key's line":    {rcBase + "c2VjcmV0 x\n", "rc:6: a line begins with a variable, such as SPA_SERVER, and a blank", ""},
		"unknown":         {rcBase + "SPA_SERVR x\n", `rc:6: unknown variable "SPA_SERVR"; did you mean SPA_SERVER?`, ""},
		"CLIENT_TIMEOUT":  {rcBase + "CLIENT_TIMEOUT 3\n", "rc:6: fwknop's sample file has CLIENT_TIMEOUT, but fwknop refuses it; it is called FW_TIMEOUT", ""},

		"split, comment":   {rcBase + "#" + long + "KEY xyz\n", "h.key=xyz", "rc:6: a line of more than 1023 bytes: fwknop takes the rest for another line"},
		"split, rest":      {rcBase + "#" + long + "c\nKEY xyz\n", "rc:6: a line is a variable, a blank and a value, such as SPA_SERVER vps.example", "rc:6: a line of more than 1023 bytes: fwknop takes the rest for another line"},
		"split at newline": {rcBase + "#" + long + "\nFW_TIMEOUT 5x\n", "SPATimeout 5 " + key, `rc:7: FW_TIMEOUT: fwknop reads "5x" as 5`},

		"other stanza":         {rcBase + "[x]\nfoo\n  \n[foo\nKEY xyz\n", key, ""},
		"again":                {rcBase + "[x]\nKEY x\n [H] \nKEY y\n", "h.key=y", ""},
		"name not trimmed":     {rcBase + "[ h ]\nKEY xyz\n", key, ""},
		"text behind a stanza": {rcBase + "[x]\n[h]]# x\nKEY xyz\n", "h.key=xyz", ""},
		"bracket in a name":    {rcBase + "[[h]\nKEY xyz\n", key, ""},
		"no name":              {rcBase + "[]\nKEY xyz\n", key, ""},
		"not closed":           {rcBase + "[x\n", "rc:6: a line is a variable, a blank and a value, such as SPA_SERVER vps.example", ""},
		"before the first":     {"foo bar\n" + rcBase, key, "rc:1: stands before the first stanza, where fwknop ignores it"},
		"default":              {"[default]\nKEY x\nFW_TIMEOUT 7\n" + rcBase, "SPATimeout 7 " + key, ""},
		"default last":         {rcBase + "[Default]\nKEY x\nFW_TIMEOUT 7\n", "SPATimeout 7 " + key, ""},
		"default twice":        {"[default]\nFW_TIMEOUT 7\n" + rcBase + "[DEFAULT]\nSPOOF_USER bob\n", "SPATimeout 7 SPAUser bob " + key, ""},
		"fault in default":     {rcBase + "[default]\nfoo bar\n", "rc:7: a line begins with a variable, such as SPA_SERVER, and a blank", ""},
		"missing":              {"[x]\n" + strings.Split(rcBase, "\n")[1] + "\n", "rc: no stanza [h]", ""},
		"empty":                {"", "rc: no stanza [h]", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, warned := rcImport(t, tt.file)
			if tt.want == "H" {
				if imports, _, err := ImportFwknop("rc", []byte(tt.file), "h"); err != nil || imports[0].Name != "H" {
					t.Errorf("got %+v, %v", imports, err)
				}
				return
			}
			if got != tt.want || warned != tt.warned {
				t.Errorf("got  %s\nwant %s\nwarned: %s\nwant    %s", got, tt.want, warned, tt.warned)
			}
		})
	}
}

// TestFwknopVariables holds down what becomes of each variable.
func TestFwknopVariables(t *testing.T) {
	const key = "h.key=abc"
	h := strings.Repeat("h", 128)
	for lines, want := range map[string]struct{ want, warned string }{
		"SPA_SERVER fe80::1%eth0":                         {"HostName fe80::1%%eth0 " + key, ""},
		"SPA_SERVER =":                                    {`rc:6: SPA_SERVER: HostName: "=" is not a host name`, `rc:6: SPA_SERVER: fwknop takes the "=" for the value, or for part of it; between the two belongs a blank only`},
		"SPA_SERVER_PORT 443":                             {"SPAPort 443 " + key, ""},
		"SPA_SERVER_PORT 443x":                            {"SPAPort 443 " + key, `rc:6: SPA_SERVER_PORT: fwknop reads "443x" as 443`},
		"SPA_SERVER_PORT x":                               {"rc: no stanza that can be imported", "rc:6: SPA_SERVER_PORT: fwknop reads \"x\" as 0\nrc:6: [h] is left out: its SPA_SERVER_PORT is 0"},
		"SPA_SERVER_PORT 65536":                           {`rc:6: SPA_SERVER_PORT: "65536" is not a number from 0 to 65535`, ""},
		"SPA_SERVER_PORT -1":                              {`rc:6: SPA_SERVER_PORT: "-1" is not a number from 0 to 65535`, ""},
		"RAND_PORT y\nRAND_PORT N":                        {"SPAPort random " + key, "rc:7: RAND_PORT: fwknop does not take an earlier Y back"},
		"RAND_PORT yes":                                   {key, "rc:6: RAND_PORT: to fwknop only Y means yes"},
		"RAND_PORT N":                                     {key, ""},
		"RAND_PORT Y\nSPA_SERVER_PORT 5":                  {"SPAPort random " + key, ""},
		"RAND_PORT Y\nSPA_SERVER_PROTO tcp":               {"rc: no stanza that can be imported", "rc:1: [h] is left out: SPAPort: random goes with the SPAProtocol udp only"},
		"SPA_SERVER_PORT 22\nSPA_SERVER_PROTO tcp":        {"rc: no stanza that can be imported", "rc:1: [h] is left out: SPAPort: 22/tcp is one of the OpenPorts, and a guarded port takes no packet"},
		"SPA_SERVER_PROTO TCP":                            {"SPAProtocol tcp " + key, ""},
		"SPA_SERVER_PROTO http":                           {"SPAProtocol http " + key, ""},
		"SPA_SERVER_PROTO udpraw":                         {"SPAProtocol udp " + key, "rc:6: SPA_SERVER_PROTO: udpraw becomes udp, which looks the same to the server"},
		"SPA_SERVER_PROTO icmp":                           {"rc: no stanza that can be imported", "rc:6: [h] is left out: icmp needs root, and is not supported"},
		"SPA_SERVER_PROTO tcpraw":                         {"rc: no stanza that can be imported", "rc:6: [h] is left out: tcpraw needs root, and is not supported"},
		"SPA_SERVER_PROTO https":                          {`rc:6: SPA_SERVER_PROTO: "https" is none of udp, tcp, http, icmp, udpraw, tcpraw`, ""},
		"SPA_SOURCE_PORT 53":                              {key, "rc:6: SPA_SOURCE_PORT does not carry over: the system chooses the port that packets come from"},
		"SERVER_RESOLVE_IPV4 Y":                           {"AddressFamily inet " + key, ""},
		"ACCESS tcp/22,udp/53,tcp/022":                    {"OpenPorts 22/tcp 53/udp " + key, ""},
		"ACCESS TCP/22":                                   {`rc:6: ACCESS: "TCP/22" is not ports such as tcp/22,udp/53`, ""},
		"ACCESS tcp/0":                                    {`rc:6: ACCESS: "tcp/0" is not ports such as tcp/22,udp/53`, ""},
		"ACCESS tcp/22,":                                  {`rc:6: ACCESS: "tcp/22," is not ports such as tcp/22,udp/53`, ""},
		"ACCESS icmp/8":                                   {`rc:6: ACCESS: "icmp/8" is not ports such as tcp/22,udp/53`, ""},
		"FW_TIMEOUT 65536":                                {"SPATimeout 65536 " + key, ""},
		"FW_TIMEOUT 65537":                                {`rc:6: FW_TIMEOUT: "65537" is not a number from 0 to 65536`, ""},
		"FW_TIMEOUT 99999999999999999999":                 {`rc:6: FW_TIMEOUT: "99999999999999999999" is not a number from 0 to 65536`, ""},
		"FW_TIMEOUT 30\nFW_TIMEOUT 0":                     {key, ""},
		"FW_TIMEOUT 0x10":                                 {key, `rc:6: FW_TIMEOUT: fwknop reads "0x10" as 0`},
		"FW_TIMEOUT +5":                                   {"SPATimeout 5 " + key, ""},
		"TIME_OFFSET 90":                                  {"TimeOffset 90 " + key, ""},
		"TIME_OFFSET -5minutes":                           {"TimeOffset -300 " + key, ""},
		"TIME_OFFSET +5xHm":                               {"TimeOffset 18000 " + key, ""},
		"TIME_OFFSET 5-3s":                                {"TimeOffset 53 " + key, ""},
		"TIME_OFFSET 2d":                                  {"TimeOffset 172800 " + key, ""},
		"TIME_OFFSET 65537":                               {`rc:6: TIME_OFFSET: "65537" is not a time such as 90s, -5m or 1h`, ""},
		"TIME_OFFSET 65536d":                              {`rc:6: TIME_OFFSET: "65536d" is not a time such as 90s, -5m or 1h`, ""},
		"TIME_OFFSET m":                                   {`rc:6: TIME_OFFSET: "m" is not a time such as 90s, -5m or 1h`, ""},
		"TIME_OFFSET -":                                   {`rc:6: TIME_OFFSET: "-" is not a time such as 90s, -5m or 1h`, ""},
		"DIGEST_TYPE SHA3_512":                            {"SPADigest sha3_512 " + key, ""},
		"DIGEST_TYPE sha":                                 {`rc:6: DIGEST_TYPE: "sha" is none of md5, sha1, sha256, sha384, sha512, sha3_256, sha3_512`, ""},
		"ENCRYPTION_MODE Cfb":                             {"SPAMode cfb " + key, ""},
		"ENCRYPTION_MODE PCBC":                            {`rc:6: ENCRYPTION_MODE: "PCBC" is none of cbc, ecb, cfb, ofb, ctr, asymmetric, legacy`, ""},
		"ENCRYPTION_MODE Asymmetric":                      {"rc: no stanza that can be imported", "rc:6: [h] is left out: GnuPG is not supported"},
		"ENCRYPTION_MODE legacy\nKEY 1234567890abcdefghi": {"SPAMode legacy h.key=1234567890abcdef", ""},
		"ENCRYPTION_MODE legacy\nHMAC_KEY x":              {"rc:6: ENCRYPTION_MODE: legacy has no HMAC, and fwknop refuses both together", ""},
		"ENCRYPTION_MODE legacy\nUSE_HMAC Y":              {"rc:6: ENCRYPTION_MODE: legacy has no HMAC, and fwknop refuses both together", ""},
		"SPOOF_USER bob":                                  {"SPAUser bob " + key, ""},
		"SPOOF_USER a/b":                                  {"rc:6: SPOOF_USER: SPAUser: \"a/b\" is no user name: it must be of printable ASCII without any of \"/\\[]:;|=,+*?<>", ""},
		"SPOOF_USER " + h:                                 {"SPAUser " + h[:29] + " " + key, ""},
		"SPOOF_SOURCE_IP 192.0.2.9":                       {key, "rc:6: SPOOF_SOURCE_IP does not carry over: packets come from this machine's address"},
		"KEY_BASE64 eHl6":                                 {key, ""},
		"KEY 123456789012345678901234567890123":           {"rc:6: a key of 33 bytes is longer than 32, and fwknop refuses it", ""},
		"KEY_FILE /k":                                     {key, "rc:6: KEY_FILE does not carry over: KEY or KEY_BASE64 outranks it"},
		"HMAC_KEY_FILE /k":                                {key, "rc:6: HMAC_KEY_FILE: fwknop takes it for the KEY_FILE\nrc:6: HMAC_KEY_FILE does not carry over: KEY or KEY_BASE64 outranks it"},
		"KEY_BASE64 !":                                    {"rc:6: KEY_BASE64: not base64", ""},
		"HMAC_KEY xyz":                                    {key + " h.hmac=xyz", ""},
		"HMAC_KEY xyz\nUSE_HMAC N":                        {key + " h.hmac=xyz", ""},
		"HMAC_KEY xyz\nHMAC_KEY_BASE64 YWJj":              {key + " h.hmac=xyz", ""},
		"HMAC_KEY xyz\nHMAC_DIGEST_TYPE SHA512":           {"HMACDigest sha512 " + key + " h.hmac=xyz", ""},
		"HMAC_DIGEST_TYPE SHA512":                         {key, ""},
		"HMAC_KEY abc":                                    {"rc:6: key and HMAC key are the same, and fwknop refuses that", ""},
		"HMAC_KEY_BASE64 YWJj":                            {"rc:6: key and HMAC key are the same, and fwknop refuses that", ""},
		"HMAC_KEY " + h + "i":                             {key + " h.hmac=" + h[:40], "rc:6: HMAC_KEY: of 129 bytes, fwknop uses the first 128 only"},
		"HMAC_KEY_BASE64 " + strings.Repeat("aaaa", 43):   {"rc:6: an HMAC key of 129 bytes is longer than 128, and fwknop refuses it", ""},
		"USE_HMAC Y":                                      {"rc: no stanza that can be imported", "rc:6: [h] is left out: it has neither HMAC_KEY nor HMAC_KEY_BASE64, and fwknop asks for the HMAC key"},
		"USE_GPG Y\nUSE_GPG N":                            {"rc: no stanza that can be imported", "rc:7: USE_GPG: fwknop does not take an earlier Y back\nrc:6: [h] is left out: GnuPG is not supported"},
		"GPG_RECIPIENT x\nGPG_SIGNER y":                   {key, "rc:6: GPG_RECIPIENT does not carry over\nrc:7: GPG_SIGNER does not carry over"},
		"GPG_SIGNING_PW xyz":                              {"h.key=xyz", "rc:6: GPG_SIGNING_PW: fwknop takes it for the KEY"},
		"GPG_SIGNING_PW_BASE64 eHl6":                      {key, "rc:6: GPG_SIGNING_PW_BASE64: fwknop takes it for the KEY_BASE64"},
		"ALLOW_IP SOURCE":                                 {"AllowIP source " + key, ""},
		"ALLOW_IP 0.0.0.0":                                {"AllowIP source " + key, ""},
		"ALLOW_IP resolve":                                {key, ""},
		"RESOLVE_IP_HTTPS Y\nRESOLVE_URL x.example":       {key, ""},
		"ALLOW_IP vps.example":                            {`rc:6: ALLOW_IP: "vps.example" is neither an IPv4 address nor source nor resolve`, ""},
		"ALLOW_IP 2001:db8::1":                            {`rc:6: ALLOW_IP: "2001:db8::1" is neither an IPv4 address nor source nor resolve`, ""},
		"NAT_ACCESS 10.0.0.5,80":                          {"NATAccess 10.0.0.5,80 " + key, ""},
		"NAT_ACCESS 10.0.0.5:80":                          {"NATAccess 10.0.0.5,80 " + key, ""},
		"NAT_ACCESS 10.0.0.5":                             {"NATAccess 10.0.0.5,22 " + key, ""},
		"NAT_ACCESS 10.0.0.5\nNAT_PORT 99":                {"OpenPorts 99/tcp NATAccess 10.0.0.5,22 " + key, ""},
		"NAT_PORT 99":                                     {"OpenPorts 99/tcp " + key, ""},
		"NAT_PORT 99\nACCESS tcp/22,tcp/23":               {"rc:6: NAT_PORT: fwknop refuses it with several ports in ACCESS", ""},
		"NAT_ACCESS a,b":                                  {`rc:6: NAT_ACCESS: "a,b" is not an address and a port such as 10.0.0.5,22`, ""},
		"NAT_ACCESS 10.0.0.5,0":                           {`rc:6: NAT_ACCESS: "10.0.0.5,0" is not an address and a port such as 10.0.0.5,22`, ""},
		"NAT_ACCESS lan,22":                               {"rc: no stanza that can be imported", `rc:6: [h] is left out: NAT to "lan", which is not an IPv4 address, is not supported`},
		"NAT_LOCAL Y":                                     {"NATAccess 192.0.2.1,22 NATLocal yes " + key, ""},
		"NAT_LOCAL Y\nNAT_ACCESS 10.0.0.5,80":             {"NATAccess 10.0.0.5,80 NATLocal yes " + key, ""},
		"NAT_RAND_PORT Y":                                 {key, "rc:6: NAT_RAND_PORT does not carry over: the server is asked for the port of ACCESS"},
		"HTTP_USER_AGENT x\nWGET_CMD /w\nVERBOSE 2\nNO_SAVE_ARGS Y": {key, "rc:6: HTTP_USER_AGENT does not carry over\nrc:7: WGET_CMD does not carry over"},
	} {
		if got, warned := rcImport(t, rcBase+lines+"\n"); got != want.want || warned != want.warned {
			t.Errorf("%s:\ngot     %s\nwant    %s\nwarned: %s\nwant    %s", lines, got, want.want, warned, want.warned)
		}
	}
}

// TestFwknopLacks: what a stanza does not say.
func TestFwknopLacks(t *testing.T) {
	without := func(variable string) string {
		return strings.Join(slices.DeleteFunc(strings.SplitAfter(rcBase, "\n"), func(l string) bool { return strings.HasPrefix(l, variable) }), "")
	}
	const none, key = "rc: no stanza that can be imported", "h.key=abc"
	const web = "rc:5: [h] asks a web page for the address, which becomes AllowIPCommand curl: it must answer with the address alone"
	for file, want := range map[string]struct{ want, warned string }{
		without("SPA_SERVER"):                        {none, "rc:1: [h] is left out: it has no SPA_SERVER"},
		without("ACCESS"):                            {key, "rc:1: [h] has no ACCESS, which fwknop wants on its command line then; OpenPorts is 22/tcp"},
		without("ALLOW_IP"):                          {"AllowIP source " + key, "rc:1: [h] has no ALLOW_IP, which fwknop wants on its command line then; AllowIP is source"},
		without("KEY"):                               {none, "rc:1: [h] is left out: it has neither KEY nor KEY_BASE64, and fwknop asks for the key"},
		without("KEY") + "KEY_FILE /k\n":             {none, "rc:5: [h] is left out: its key is in a KEY_FILE, which is not read; give it as KEY or KEY_BASE64"},
		without("KEY") + "KEY_BASE64 YWI\n":          {"h.key=ab", ""},
		without("KEY") + "KEY_BASE64 YW=j\n":         {"h.key=a", `rc:5: KEY_BASE64: to fwknop the value ends at the first "="`},
		without("KEY") + "KEY_BASE64 YWJjZ\n":        {"h.key=abc", "rc:5: KEY_BASE64: fwknop ignores the last character: is it all there?"},
		without("KEY") + "KEY_BASE64 ====\n":         {"rc:5: KEY_BASE64: no key in it", ""},
		without("ALLOW_IP") + "ALLOW_IP resolve\n":   {"AllowIPCommand curl -4 -fsS https://www.cipherdyne.org/cgi-bin/myip " + key, web},
		without("ALLOW_IP") + "RESOLVE_IP_HTTPS Y\n": {"AllowIPCommand curl -4 -fsS https://www.cipherdyne.org/cgi-bin/myip " + key, web},
		without("ALLOW_IP") + "RESOLVE_URL -o/etc/x\nRESOLVE_HTTP_ONLY Y\nRESOLVE_IP_HTTP Y\n": {"AllowIPCommand curl -4 -fsS http://-o/etc/x " + key, web},
		without("ALLOW_IP") + "RESOLVE_URL http://192.0.2.1/\nALLOW_IP resolve\n":              {"AllowIPCommand curl -4 -fsS http://192.0.2.1/ " + key, web},
	} {
		if got, warned := rcImport(t, file); got != want.want || warned != want.warned {
			t.Errorf("%s:\ngot     %s\nwant    %s\nwarned: %s\nwant    %s", file, got, want.want, warned, want.warned)
		}
	}
}

// TestFwknopStanzas: which stanzas are imported, under which names.
func TestFwknopStanzas(t *testing.T) {
	body := strings.TrimPrefix(rcBase, "[h]\n")
	for name, tt := range map[string]struct{ file, stanza, want, warned string }{
		"all":              {"[default]\n[a]\n" + body + "[b]\n" + body, "", "a b", "rc:7: [b] has the same SPA_SERVER as a, which is what ssh's %h finds: for this one say portknock --profile b"},
		"other servers":    {"[a]\n" + body + "[b]\n" + strings.Replace(body, "192.0.2.1", "vps.example", 1), "", "a b", ""},
		"one":              {"[a]\n" + body + "[b]\nfoo\n", "A", "a", ""},
		"default below":    {"[default]\n" + body + "[a]\n[b]\nKEY x\n", "", "a b", "rc:1: [default] only underlies the other stanzas; -n default imports it alone\nrc:7: [b] has the same SPA_SERVER as a, which is what ssh's %h finds: for this one say portknock --profile b"},
		"default alone":    {"[default]\n" + body, "", "192.0.2.1", ""},
		"default by name":  {"[a]\n[default]\n" + body, "Default", "192.0.2.1", ""},
		"too many ports":   {"[a]\n" + body + "HMAC_KEY abcd\nSPOOF_USER alice\nACCESS tcp/60001,tcp/60002,tcp/60003,tcp/60004,tcp/60005,tcp/60006,tcp/60007,tcp/60008,tcp/60009,tcp/60010,tcp/60011,tcp/60012,tcp/60013\n[b]\n" + body, "", "b", "rc:1: [a] is left out: a packet of 439 characters is not of 140 to 399: take fewer ports, a shorter user name or a shorter digest"},
		"names":            {"[*.a]\n" + body + "[!b]\n" + body + "[my host]\n" + body + "[\x1b]\n" + body + "[vps]\n" + body + "[\xffb]\n" + body, "", "vps", "rc:1: [*.a] is left out: a profile cannot be called so\nrc:6: [!b] is left out: a profile cannot be called so\nrc:11: [my host] is left out: a profile cannot be called so\nrc:16: [\\x1b] is left out: a profile cannot be called so\nrc:26: [\\xffb] is left out: a profile cannot be called so"},
		"GnuPG among them": {"[a]\nUSE_GPG Y\n" + body + "[b]\n" + body, "", "b", "rc:2: [a] is left out: GnuPG is not supported"},
		"fault among them": {"[a]\nUSE_GPG x\nfoo\n[b]\n" + body, "", "rc:3: a line is a variable, a blank and a value, such as SPA_SERVER vps.example", ""},
		"none":             {"# nothing\n", "", "rc: no stanza in it", ""},
	} {
		imports, warned, err := ImportFwknop("rc", []byte(tt.file), tt.stanza)
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
	file.WriteString("[default]\n" + strings.Repeat("KEY abc\n", n))
	for i := range n {
		fmt.Fprintf(&file, "[%d]\n", i)
	}
	_, warned, err := ImportFwknop("rc", []byte(file.String()), "")
	if err == nil || len(warned) != n {
		t.Errorf("%d warnings, %v", len(warned), err)
	}
}

// TestImportedKeyFiles: names that differ have files that do.
func TestImportedKeyFiles(t *testing.T) {
	body := strings.TrimPrefix(rcBase, "[h]\n")
	for name, want := range map[string]string{
		"VPS-1.example": "vps-1.example.key", "büro": "büro.key", "дом": "дом.key",
		"a@b": "a_40b.key", "a:b": "a_3ab.key", "2001:db8::1": "2001_3adb8_3a_3a1.key",
	} {
		imports, _, err := ImportFwknop("rc", []byte("["+name+"]\n"+body), "")
		if err != nil || imports[0].Keys[0].File != want {
			t.Errorf("%s: %v, %v, want %s", name, imports, err, want)
		}
	}
}

func TestImportedKeyText(t *testing.T) {
	for _, secret := range []string{"abc", "base64:x", "portknock-key-1:x", "a\n", "\x00\xff"} {
		k := ImportedKey{Key: knock.KeyFrom([]byte(secret))}
		if got, err := parseForeignKey(k.Text()); err != nil || !bytes.Equal(got.Bytes(), []byte(secret)) {
			t.Errorf("%q is read back as %q, %v", secret, got.Bytes(), err)
		}
	}
}
