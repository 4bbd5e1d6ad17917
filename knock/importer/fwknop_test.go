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

// plain is a complete stanza. Lines that a test adds begin at line 6.
const plain = "[h]\nSPA_SERVER 192.0.2.1\nACCESS tcp/22\nALLOW_IP 198.51.100.7\nKEY abc\n"

// plainBlock is the Host block that plain becomes.
const plainBlock = "Host h\n    HostName 192.0.2.1\n    Scheme fwknop\n    OpenPorts 22/tcp\n    KeyFile h.key\n    AllowIP 198.51.100.7\n"

// plainWithout returns plain without a variable.
func plainWithout(variable string) string {
	lines := strings.SplitAfter(plain, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, variable) }), "")
}

// outcome converts the stanza h of a file and describes how it differs from plain. The
// first line of the outcome has the different lines of the block and the different
// keys, or the error. Each warning follows on its own line.
func outcome(file string) string {
	imports, warnings, err := Convert("fwknop", "rc", []byte(file), Options{Section: "h"})
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

func TestFwknopReadsPlainForm(t *testing.T) {
	imports, warnings, err := Convert("fwknop", "rc", []byte(plain), Options{})
	if err != nil || len(imports) != 1 || warnings != nil || string(imports[0].Block) != plainBlock || imports[0].Name != "h" {
		t.Errorf("plain: imports %+v, warnings %q, error %v", imports, warnings, err)
	}
	for name, tt := range map[string]struct{ file, want string }{
		"comments": {
			file: "# x\n;x\n\n" + plain + "#KEY x\n;KEY x\r\n\r\n[x] # y\n# z\n",
		},
		"Windows line ends": {
			file: strings.ReplaceAll(plain, "\n", "\r\n"),
		},
		"no last newline": {
			file: strings.TrimSuffix(plain, "\n"),
		},
		"blanks around words": {
			file: plain + "\t FW_TIMEOUT  \t 3 \t\n",
			want: "SPATimeout 3",
		},
		"colon after variable": {
			file: plain + "FW_TIMEOUT: 3\n",
			want: "SPATimeout 3",
		},
		"comment after value": {
			file: plain + "FW_TIMEOUT 3 # x\nSPA_SERVER_PORT 5\t;x\n",
			want: "SPAPort 5, SPATimeout 3",
		},
		"stanza name in other case": {
			file: strings.Replace(plain, "[h]", "[H]", 1),
			want: "Host H",
		},
		"default before stanza": {
			file: "[default]\nKEY x\nFW_TIMEOUT 7\n" + plain,
			want: "SPATimeout 7",
		},
		"default after stanza": {
			file: plain + "[Default]\nKEY x\nFW_TIMEOUT 7\n",
			want: "SPATimeout 7",
		},
		"fault in other stanza": {
			file: plain + "[x]\nnonsense\nKEY = =\n",
		},
	} {
		if got := outcome(tt.file); got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
}

// fwknop reads these lines differently from how they look.
func TestFwknopRefusesMisleadingLines(t *testing.T) {
	const lineError = "rc:6: expected VARIABLE VALUE, without spaces in the value, such as SPA_SERVER vps.example"
	const titleError = "rc:6: write the first line of a stanza as [NAME]"
	for name, tt := range map[string]struct{ file, want string }{
		"long line": {
			file: plain + "#" + strings.Repeat("c", 1022) + "\n",
			want: "rc:6: longer than 1022 bytes, and fwknop reads the rest as another line; shorten it",
		},
		"NUL": {
			file: plain + "KEY x\x00y\n",
			want: "rc:6: remove the control character U+0000",
		},
		"NUL in a comment": {
			file: plain + "# x\x00y\n",
			want: "rc:6: remove the control character U+0000",
		},
		"form feed": {
			file: plain + "FW_TIMEOUT 3\f\n",
			want: "rc:6: remove the control character U+000C",
		},
		"line before first stanza": {
			file: "FW_TIMEOUT 3\n" + plain,
			want: "rc:1: fwknop ignores a line before the first stanza; move it below [default]",
		},
		"byte order mark before first stanza": {
			file: "\ufeff[x]\n" + plain,
			want: "rc:1: remove the control character U+FEFF",
		},
		"stanza twice": {
			file: plain + "[x]\n[H]\n",
			want: "rc:7: stanza [H] appears twice; move its lines into the stanza at line 1",
		},
		"stanza not closed": {
			file: plain + "[x\n",
			want: titleError,
		},
		"stanza indented": {
			file: plain + " [x]\n",
			want: titleError,
		},
		"text after stanza name": {
			file: plain + "[x] y\n",
			want: titleError,
		},
		"stanza name in double brackets": {
			file: plain + "[[x]]\n",
			want: titleError,
		},
		"blanks in stanza name": {
			file: plain + "[ x ]\n",
			want: titleError,
		},
		"control character in stanza name": {
			file: plain + "[\u009bx]\n",
			want: titleError,
		},
		"empty stanza name": {
			file: plain + "[]\n",
			want: titleError,
		},
		"only blanks": {
			file: plain + " \n",
			want: lineError,
		},
		"indented comment": {
			file: plain + " # x\n",
			want: lineError,
		},
		"no value": {
			file: plain + "USE_HMAC\n",
			want: lineError,
		},
		"comment instead of value": {
			file: plain + "USE_HMAC # Y\n",
			want: lineError,
		},
		"equals sign between blanks": {
			file: plain + "FW_TIMEOUT = 3\n",
			want: lineError,
		},
		"equals sign without blanks": {
			file: plain + "FW_TIMEOUT=3\n",
			want: lineError,
		},
		"two words in value": {
			file: plain + "SPOOF_USER a b\n",
			want: lineError,
		},
		"equals sign before value": {
			file: plain + "SPOOF_USER =a\n",
			want: `rc:6: SPOOF_USER: remove the "="; fwknop reads it as a part of the value`,
		},
		"colon before value": {
			file: plain + "SPOOF_USER :a\n",
			want: `rc:6: SPOOF_USER: remove the ":"; fwknop reads it as a part of the value`,
		},
		"hash in value": {
			file: plain + "HMAC_KEY a#c\n",
			want: "rc:6: HMAC_KEY: fwknop ends a value at # or ; (put a space before a comment, or use base64)",
		},
		"semicolon in value": {
			file: plain + "HMAC_KEY a;c\n",
			want: "rc:6: HMAC_KEY: fwknop ends a value at # or ; (put a space before a comment, or use base64)",
		},
		"variable in lower case": {
			file: plain + "spoof_user x\n",
			want: lineError,
		},
		"key instead of variable": {
			file: plain + "c2VjcmV0 x\n",
			want: lineError,
		},
		"unknown variable": {
			file: plain + "CLIENT_TIMEOUT 3\n",
			want: "rc:6: CLIENT_TIMEOUT: fwknop does not know this variable",
		},
		"variable twice": {
			file: plain + "KEY x\n",
			want: "rc:6: KEY: line 5 sets it already; keep one of them",
		},
		"fault in default": {
			file: plain + "[default]\nnonsense\n",
			want: strings.Replace(lineError, "6", "7", 1),
		},
		"no such stanza": {
			file: "[x]\n",
			want: `rc: the file has no stanza "h"`,
		},
		"N does not undo Y of default": {
			file: "[default]\nRAND_PORT Y\n" + plain + "RAND_PORT N\n",
			want: "rc:8: RAND_PORT: fwknop keeps the value of line 2; remove one of them",
		},
		"resolve does not undo address of default": {
			file: "[default]\nALLOW_IP source\n" + plainWithout("ALLOW_IP") + "ALLOW_IP resolve\n",
			want: "rc:7: ALLOW_IP: fwknop keeps the value of line 2; remove one of them",
		},
		"minus of default stays": {
			file: "[default]\nTIME_OFFSET -90\n" + plain + "TIME_OFFSET 5m\n",
			want: "rc:8: TIME_OFFSET: fwknop keeps the value of line 2; remove one of them",
		},
	} {
		if got := outcome(tt.file); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, tt.want)
		}
	}
}

func TestFwknopConvertsVariables(t *testing.T) {
	const noImport = "rc: the file has no stanza that can be imported\n"
	tooLongText := strings.Repeat("h", 129)
	for _, tt := range []struct{ lines, want string }{
		{
			lines: "SPA_SERVER_PORT 443",
			want:  "SPAPort 443",
		},
		{
			lines: "SPA_SERVER_PORT 443x",
			want:  `rc:6: SPA_SERVER_PORT: "443x" is not a plain number such as 30`,
		},
		{
			lines: "SPA_SERVER_PORT 0",
			want:  `rc:6: SPA_SERVER_PORT: SPAPort: "0" is not a port from 1 to 65535 or random`,
		},
		{
			lines: "SPA_SERVER_PORT random",
			want:  `rc:6: SPA_SERVER_PORT: "random" is not a plain number such as 30`,
		},
		{
			lines: "RAND_PORT y\nSPA_SERVER_PORT 5",
			want:  "SPAPort random",
		},
		{
			lines: "RAND_PORT yes",
			want:  `rc:6: RAND_PORT: "yes" is not Y or N`,
		},
		{
			lines: "RAND_PORT N",
		},
		{
			lines: "RAND_PORT Y\nSPA_SERVER_PROTO tcp",
			want:  noImport + "rc:1: [h] is left out: SPAPort: random is only possible with SPAProtocol udp",
		},
		{
			lines: "SPA_SERVER_PORT 22\nSPA_SERVER_PROTO tcp",
			want:  noImport + "rc:1: [h] is left out: SPAPort: 22/tcp is one of the OpenPorts; a guarded port cannot receive the packet",
		},
		{
			lines: "SPA_SERVER_PROTO HTTP",
			want:  "SPAProtocol http",
		},
		{
			lines: "SPA_SERVER_PROTO udpraw",
			want:  "\nrc:1: [h] has variables that are not imported: SPA_SERVER_PROTO (line 6)",
		},
		{
			lines: "SPA_SERVER_PROTO icmp",
			want:  noImport + "rc:6: [h] is left out: icmp needs root and is not supported",
		},
		{
			lines: "SPA_SERVER_PROTO tcpraw",
			want:  noImport + "rc:6: [h] is left out: tcpraw needs root and is not supported",
		},
		{
			lines: "SPA_SERVER_PROTO https",
			want:  `rc:6: SPA_SERVER_PROTO: SPAProtocol: "https" is not udp, tcp or http`,
		},
		{
			lines: "SERVER_RESOLVE_IPV4 Y",
		},
		{
			lines: "FW_TIMEOUT 65535",
			want:  "SPATimeout 65535",
		},
		{
			lines: "FW_TIMEOUT 030",
			want:  `rc:6: FW_TIMEOUT: "030" is not a plain number such as 30`,
		},
		{
			lines: "FW_TIMEOUT 1h",
			want:  `rc:6: FW_TIMEOUT: "1h" is not a plain number such as 30`,
		},
		{
			lines: "FW_TIMEOUT 99999999999999999999",
			want:  `rc:6: FW_TIMEOUT: SPATimeout: time "99999999999999999999" is too long`,
		},
		{
			lines: "TIME_OFFSET 5400",
			want:  "TimeOffset 5400",
		},
		{
			lines: "TIME_OFFSET -5M",
			want:  "TimeOffset -5m",
		},
		{
			lines: "TIME_OFFSET 5xHm",
			want:  `rc:6: TIME_OFFSET: "5xHm" is not a plain time such as 90, -5m or 1h`,
		},
		{
			lines: "TIME_OFFSET 1h30m",
			want:  `rc:6: TIME_OFFSET: "1h30m" is not a plain time such as 90, -5m or 1h`,
		},
		{
			lines: "TIME_OFFSET -",
			want:  `rc:6: TIME_OFFSET: "-" is not a plain time such as 90, -5m or 1h`,
		},
		{
			lines: "DIGEST_TYPE SHA3_512",
			want:  "SPADigest sha3_512",
		},
		{
			lines: "ENCRYPTION_MODE Cfb",
			want:  "SPAMode cfb",
		},
		{
			lines: "ENCRYPTION_MODE Asymmetric",
			want:  noImport + "rc:6: [h] is left out: GnuPG is not supported",
		},
		{
			lines: "SPOOF_USER Bob",
			want:  "SPAUser Bob",
		},
		{
			lines: "SPOOF_USER udpraw",
			want:  "SPAUser udpraw",
		},
		{
			lines: "SPOOF_USER " + tooLongText,
			want:  "rc:6: SPOOF_USER: fwknop cuts the name after 29 bytes; shorten it",
		},
		{
			lines: `SPOOF_USER a"b`,
			want:  `rc:6: SPOOF_USER: "a\"b" cannot be written into a profile`,
		},

		{
			lines: "ENCRYPTION_MODE legacy",
			want:  "SPAMode legacy",
		},
		{
			lines: "ENCRYPTION_MODE legacy\nHMAC_KEY x",
			want:  "rc:7: HMAC_KEY: fwknop does not allow an HMAC key with ENCRYPTION_MODE legacy",
		},
		{
			lines: "HMAC_KEY xyz\nUSE_HMAC Y",
			want:  "HMACKeyFile h.hmac, h.hmac base64:eHl6",
		},
		{
			lines: "HMAC_KEY xyz\nUSE_HMAC N",
			want:  "rc:7: USE_HMAC: fwknop uses the HMAC key in spite of this; remove the HMAC key or this line",
		},
		{
			lines: "HMAC_KEY_BASE64 eHl6\nHMAC_DIGEST_TYPE MD5",
			want:  "HMACKeyFile h.hmac, HMACDigest md5, h.hmac base64:eHl6",
		},
		{
			lines: "HMAC_KEY abc",
			want:  "rc:6: HMAC_KEY: fwknop does not allow an HMAC key that is the same as the key",
		},
		{
			lines: "HMAC_KEY " + tooLongText,
			want:  "rc:6: HMAC_KEY: fwknop allows at most 128 bytes in a key; this one has 129",
		},
		{
			lines: "USE_HMAC Y",
			want:  noImport + "rc:6: [h] is left out: it has no HMAC_KEY or HMAC_KEY_BASE64; other HMAC keys are not read",
		},
		{
			lines: "KEY_BASE64 eHl6",
			want:  "rc:6: KEY_BASE64: fwknop uses the KEY of line 5; keep one of them",
		},
		{
			lines: "USE_GPG Y\nGPG_SIGNING_PW x",
			want:  noImport + "rc:6: [h] is left out: GnuPG is not supported",
		},
		{
			lines: "GPG_SIGNING_PW xyz",
			want:  "rc:6: GPG_SIGNING_PW: fwknop reads it as KEY, KEY_BASE64 or KEY_FILE; remove it or use that name",
		},
		{
			lines: "HMAC_KEY_FILE /k",
			want:  "rc:6: HMAC_KEY_FILE: fwknop reads it as KEY, KEY_BASE64 or KEY_FILE; remove it or use that name",
		},
		{
			lines: "VERBOSE Y\nUSE_GPG N\nGPG_SIGNER y",
			want:  "\nrc:1: [h] has variables that are not imported: VERBOSE (line 6), GPG_SIGNER (line 8)",
		},

		{
			lines: "NAT_ACCESS 10.0.0.5,80",
			want:  "NATAccess 10.0.0.5,80",
		},
		{
			lines: "NAT_ACCESS 10.0.0.5:80",
			want:  "NATAccess 10.0.0.5,80",
		},
		{
			lines: "NAT_ACCESS 10.0.0.5\nNAT_PORT 99",
			want:  "OpenPorts 99/tcp, NATAccess 10.0.0.5,22",
		},
		{
			lines: "NAT_ACCESS 10.0.0.5,x",
			want:  `rc:6: NAT_ACCESS: NATAccess: "10.0.0.5,x" is not an IPv4 address and a port such as 10.0.0.5,22`,
		},
		{
			lines: "NAT_ACCESS lan,22",
			want:  noImport + `rc:6: [h] is left out: NAT to "lan" is not supported: it is not an IPv4 address`,
		},
		{
			lines: "NAT_LOCAL Y",
			want:  "NATAccess 192.0.2.1,22, NATLocal yes",
		},
		{
			lines: "NAT_LOCAL Y\nNAT_ACCESS 10.0.0.5,80",
			want:  "NATAccess 10.0.0.5,80, NATLocal yes",
		},
		{
			lines: "RESOLVE_IP_HTTPS Y",
			want:  "rc:4: ALLOW_IP: prevents resolving; remove it, or RESOLVE_IP_HTTP and RESOLVE_IP_HTTPS",
		},
	} {
		if got := outcome(plain + tt.lines + "\n"); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.lines, got, tt.want)
		}
	}
	const pageWarning = "\nrc:5: [h] asks a web page (AllowIPCommand curl), which must print only the address"
	for _, tt := range []struct{ file, want string }{
		{
			file: plainWithout("SPA_SERVER"),
			want: noImport + "rc:1: [h] is left out: it has no SPA_SERVER",
		},
		{
			file: plainWithout("SPA_SERVER") + "SPA_SERVER fe80::1%eth0\n",
			want: "HostName fe80::1%%eth0",
		},
		{
			file: plainWithout("SPA_SERVER") + "SPA_SERVER a_?\n",
			want: `rc:5: SPA_SERVER: HostName: "a_?" is not a host name`,
		},
		{
			file: plainWithout("ACCESS"),
			want: "\nrc:1: [h] has no ACCESS (fwknop reads it from its command line); OpenPorts becomes 22/tcp",
		},
		{
			file: plainWithout("ACCESS") + "ACCESS tcp/22,udp/53\n",
			want: "OpenPorts 22/tcp 53/udp",
		},
		{
			file: plainWithout("ACCESS") + "ACCESS tcp/22,tcp/23\nNAT_PORT 99\n",
			want: "rc:6: NAT_PORT: fwknop does not allow it with several ports in ACCESS",
		},
		{
			file: plainWithout("ACCESS") + "ACCESS TCP/22\n",
			want: `rc:5: ACCESS: "TCP/22" is not a list of ports such as tcp/22,udp/53`,
		},
		{
			file: plainWithout("ACCESS") + "ACCESS tcp/022\n",
			want: `rc:5: ACCESS: "tcp/022" is not a list of ports such as tcp/22,udp/53`,
		},
		{
			file: plainWithout("ACCESS") + "ACCESS tcp/22,\n",
			want: `rc:5: ACCESS: "tcp/22," is not a list of ports such as tcp/22,udp/53`,
		},
		{
			file: plainWithout("ACCESS") + "ACCESS tcp/0\n",
			want: `rc:5: ACCESS: OpenPorts: "0/tcp": not a port from 1 to 65535`,
		},
		{
			file: plainWithout("ALLOW_IP"),
			want: "AllowIP source\nrc:1: [h] has no ALLOW_IP (fwknop reads it from its command line); AllowIP becomes source",
		},
		{
			file: plainWithout("ALLOW_IP") + "ALLOW_IP SOURCE\n",
			want: "AllowIP source",
		},
		{
			file: plainWithout("ALLOW_IP") + "ALLOW_IP 0.0.0.0\n",
			want: "AllowIP source",
		},
		{
			file: plainWithout("ALLOW_IP") + "ALLOW_IP vps.example\n",
			want: `rc:5: ALLOW_IP: AllowIP: "vps.example" is not an IPv4 address or source`,
		},
		{
			file: plainWithout("ALLOW_IP") + "ALLOW_IP resolve\n",
			want: "AllowIPCommand curl -4 -fsS https://www.cipherdyne.org/cgi-bin/myip\nrc:1:" + pageWarning[6:],
		},
		{
			file: plainWithout("ALLOW_IP") + "RESOLVE_URL -o/x\nRESOLVE_IP_HTTP Y\nRESOLVE_HTTP_ONLY Y\n",
			want: "AllowIPCommand curl -4 -fsS http://-o/x" + pageWarning,
		},
		{
			file: plainWithout("ALLOW_IP") + "RESOLVE_URL http://192.0.2.1/\nRESOLVE_IP_HTTPS Y\n",
			want: "AllowIPCommand curl -4 -fsS http://192.0.2.1/" + pageWarning,
		},
		{
			file: plainWithout("KEY"),
			want: noImport + "rc:1: [h] is left out: it has no KEY or KEY_BASE64; other keys are not read",
		},
		{
			file: plainWithout("KEY") + "KEY_FILE /k\n",
			want: noImport + "rc:1: [h] is left out: it has no KEY or KEY_BASE64; other keys are not read",
		},
		{
			file: plainWithout("KEY") + "KEY_BASE64 YWI\n",
			want: "h.key base64:YWI=",
		},
		{
			file: plainWithout("KEY") + "KEY_BASE64 YWI=\n",
			want: "h.key base64:YWI=",
		},
		{
			file: plainWithout("KEY") + "KEY_BASE64 YW=j\n",
			want: "rc:5: KEY_BASE64: not valid base64; it may be incomplete",
		},
		{
			file: plainWithout("KEY") + "KEY_BASE64 YWJjZ\n",
			want: "rc:5: KEY_BASE64: not valid base64; it may be incomplete",
		},
		{
			file: plainWithout("KEY") + "KEY_BASE64 ==\n",
			want: `rc:5: KEY_BASE64: remove the "="; fwknop reads it as a part of the value`,
		},
		{
			file: plainWithout("KEY") + "KEY " + tooLongText[:33] + "\n",
			want: "rc:5: KEY: fwknop allows at most 32 bytes in a key; this one has 33",
		},
		{
			file: plainWithout("KEY") + "KEY " + tooLongText[:17] + "\nENCRYPTION_MODE legacy\n",
			want: "rc:5: KEY: fwknop allows at most 16 bytes in a key; this one has 17",
		},
	} {
		if got := outcome(tt.file); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.file, got, tt.want)
		}
	}
}

// The wanted names are those of the imported profiles.
func TestFwknopChoosesStanzas(t *testing.T) {
	body := strings.TrimPrefix(plain, "[h]\n")
	const sameServer = "rc:7: [b] has the same SPA_SERVER as profile a, which ssh's %h finds; to use it, name profile b"
	for name, tt := range map[string]struct{ file, stanza, want, warned string }{
		"all stanzas": {
			file:   "[default]\n[a]\n" + body + "[b]\n" + body,
			want:   "a b",
			warned: sameServer,
		},
		"different servers": {
			file: "[a]\n" + body + "[b]\n" + strings.Replace(body, "192.0.2.1", "vps.example", 1),
			want: "a b",
		},
		"one stanza by name": {
			file:   "[a]\n" + body + "[b]\nfoo\n",
			stanza: "A",
			want:   "a",
		},
		"default with server before other stanza": {
			file:   "[default]\n" + body + "[a]\nKEY y\n",
			want:   "a",
			warned: "rc:2: [default] applies to the other stanzas and is not imported; to import it, give its name",
		},
		"default alone": {
			file: "[default]\n" + body,
			want: "192.0.2.1",
		},
		"default by name": {
			file:   "[a]\n[default]\n" + body,
			stanza: "Default",
			want:   "192.0.2.1",
		},
		"names that are not host names": {
			file: "[*.a]\n" + body + "[my host]\n" + body + "[vps]\n" + body + "[\xffb]\n" + body,
			want: "vps",
			warned: "rc:1: [*.a] is left out: \"*.a\" is not a host name\n" +
				"rc:6: [my host] is left out: \"my host\" is not a host name\n" +
				"rc:16: [\xffb] is left out: \"\\xffb\" is not a host name",
		},
		"GnuPG stanza among others": {
			file:   "[a]\nUSE_GPG Y\n" + body + "[b]\n" + body,
			want:   "b",
			warned: "rc:2: [a] is left out: GnuPG is not supported",
		},
		"faulty stanza among others": {
			file: "[b]\n" + body + "[a]\nUSE_GPG x\n",
			want: `rc:7: USE_GPG: "x" is not Y or N`,
		},
		"no stanza": {
			file: "# nothing\n",
			want: "rc: the file has no stanza that can be imported",
		},
		"IPv6 address as name": {
			file: "[2001:db8::1]\n" + body,
			want: "2001:db8::1",
		},
	} {
		imports, warned, err := Convert("fwknop", "rc", []byte(tt.file), Options{Section: tt.stanza})
		var names []string
		for _, i := range imports {
			names = append(names, i.Name)
		}
		got := strings.Join(names, " ")
		if err != nil {
			got = err.Error()
		}
		if got != tt.want || strings.Join(warned, "\n") != tt.warned {
			t.Errorf("%s:\ngot  %s\nwant %s\ngot  warnings: %s\nwant warnings: %s", name, got, tt.want, strings.Join(warned, "\n"), tt.warned)
		}
	}
}

// The test takes hours if the time grows with the square of the size.
func TestFwknopReadsLargeFileInLinearTime(t *testing.T) {
	const n = 100_000
	var file strings.Builder
	for i := range n {
		fmt.Fprintf(&file, "[%d]\n", i)
	}
	_, warned, err := Convert("fwknop", "rc", []byte(file.String()), Options{})
	if err == nil || len(warned) != n {
		t.Errorf("%d warnings and error %v, want 100000 warnings and an error", len(warned), err)
	}
}

// Profiles with different names get different key files.
func TestDifferentNamesGetDifferentKeyFiles(t *testing.T) {
	body := strings.TrimPrefix(plain, "[h]\n")
	for name, want := range map[string]string{
		"VPS-1.example": "vps-1.example.key", "büro": "büro.key", "дом": "дом.key",
		"a@b": "a_40b.key", "a:b": "a_3ab.key", "2001:db8::1": "2001_3adb8_3a_3a1.key",
	} {
		imports, _, err := Convert("fwknop", "rc", []byte("["+name+"]\n"+body), Options{})
		if err != nil || imports[0].Keys[0].File != want {
			t.Errorf("%s: imports %v, error %v, want key file %s", name, imports, err, want)
		}
	}
}

// The profile reads the same key that the stanza has, for keys of any bytes.
func TestProfileReadsImportedKey(t *testing.T) {
	for line, want := range map[string]string{
		"KEY abc": "abc", "KEY base64:x": "base64:x", "KEY portknock-key-1:x": "portknock-key-1:x", "KEY_BASE64 AP8K": "\x00\xff\n",
	} {
		imports, _, err := Convert("fwknop", "rc", []byte(plainWithout("KEY")+line+"\n"), Options{})
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
			t.Errorf("%s: the profile has the wrong key %q", line, got)
		}
	}
}

// FuzzFwknop checks that every imported block is a valid profile.
func FuzzFwknop(f *testing.F) {
	f.Add([]byte(plain))
	f.Add([]byte("[default]\nALLOW_IP resolve\nRESOLVE_URL x{1,2}\"%\nRAND_PORT Y\n" + plainWithout("ALLOW_IP") +
		"[h2]\nSPA_SERVER fe80::1%eth0\nNAT_ACCESS 10.0.0.1\nHMAC_KEY x\nTIME_OFFSET -3m\nSPOOF_USER a'b\n"))
	f.Add([]byte(plain + "SPA_SERVER_PROTO tcp\nRAND_PORT Y\n"))
	f.Add([]byte("[::1%a]\nSPA_SERVER %h\nKEY_BASE64 AAAA=\n[%h]\nSPA_SERVER a\xff\nKEY x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		imports, _, err := Convert("fwknop", "rc", data, Options{})
		if err != nil {
			if !strings.HasPrefix(err.Error(), "rc:") {
				t.Fatalf("the error does not begin with the file: %v", err)
			}
			return
		}
		var blocks [][]byte
		for _, i := range imports {
			blocks = append(blocks, i.Block)
		}
		// Insert parses the new profile file and looks up the profiles.
		if _, err := profile.Insert("config", []byte("Host *\n    ConnectTimeout 20\n"), bytes.Join(blocks, []byte("\n"))); err != nil {
			t.Fatalf("%v\n%s", err, bytes.Join(blocks, []byte("\n")))
		}
	})
}
