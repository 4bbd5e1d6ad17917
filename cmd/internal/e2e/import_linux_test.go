package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/spa"
)

// fwknopClient runs fwknop's client in a folder of its own.
func fwknopClient(h *lab.Host, home string, args ...string) (string, error) {
	return h.Try("env", append([]string{"HOME=" + home, "fwknop"}, args...)...)
}

// requestOf returns what a profile asks fwknopd for.
func requestOf(t testing.TB, config, host string) *spa.Request {
	t.Helper()
	file, err := profile.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	p, err := file.Lookup(host)
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Picker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.(*spa.Request)
}

// TestImportAsFwknopReads: the importer takes and refuses the files that fwknop's
// client takes and refuses; a real fwknopd with the imported keys decodes the
// client's packet, which asks what the imported profile asks.
func TestImportAsFwknopReads(t *testing.T) {
	t.Parallel()
	lab.Require(t, "fwknop", "fwknopd")
	const base = "[h]\nSPA_SERVER 192.0.2.1\nACCESS tcp/22\nALLOW_IP 198.51.100.7\nSPOOF_USER alice\nKEY abc\n"
	long := strings.Repeat("c", 1022)
	for name, lines := range map[string]string{
		"plain":             "",
		"last wins":         "KEY one\nKEY two\n",
		"equals":            "KEY = xyz\n",
		"tight equals":      "KEY=xyz\n",
		"colon":             "KEY: xyz\n",
		"two colons":        "KEY:: xyz\n",
		"colon apart":       "KEY : xyz\n",
		"colon after blank": "KEY :xyz\n",
		"hash":              "KEY ab#c\n",
		"semicolon":         "KEY ab;c\n",
		"words":             "KEY ab cd\n",
		"no value":          "KEY\n",
		"comment for value": "KEY ;xyz\n",
		"odd blanks":        "\f KEY\v\t xyz\r\n",
		"form feed":         "KEY xyz\f\n",
		"NUL":               "KEY x\x00yz\n\x00KEY one\n",
		"NUL for value":     "KEY \x00xyz\n",
		"blanks":            "  \n",
		"indented comment":  " # x\n",
		"comments":          "#KEY xyz\n;KEY xyz\n\r\n\n",
		"small letters":     "key xyz\n",
		"unknown":           "SPA_SERVR x\n",
		"CLIENT_TIMEOUT":    "CLIENT_TIMEOUT 3\n",
		"long comment":      "#" + long + "KEY xyz\n",
		"long comment word": "#" + long + "c\n",
		"newline beyond":    "#" + long + "\nKEY xyz\n",
		"other stanza":      "[x]\nfoo\n  \nKEY xyz\n",
		"again":             "[x]\n[H]\nKEY xyz\n",
		"blanks in name":    "[ h ]\nKEY xyz\n",
		"indented stanza":   " \t[h]\nKEY xyz\n",
		"open stanza":       "[h\nKEY xyz\n",
		"brackets":          "[[h]\nKEY xyz\n",
		"bracket behind":    "[x]\n[h]] x\nKEY xyz\n",
		"no name":           "[]\nKEY xyz\n",
		"default":           "[Default]\nKEY xyz\nFW_TIMEOUT 9\n",
		"fault in default":  "[default]\nfoo bar\n",

		"port":             "SPA_SERVER_PORT 5x\n",
		"port too high":    "SPA_SERVER_PORT 65536\n",
		"port below 0":     "SPA_SERVER_PORT -1\n",
		"protocol":         "SPA_SERVER_PROTO TCP\n",
		"udpraw":           "SPA_SERVER_PROTO udpraw\n",
		"no protocol":      "SPA_SERVER_PROTO https\n",
		"ports":            "ACCESS tcp/22,udp/53\n",
		"capital ports":    "ACCESS TCP/22\n",
		"port 0":           "ACCESS tcp/0\n",
		"no port":          "ACCESS tcp/22,\n",
		"timeout":          "FW_TIMEOUT 65536\n",
		"timeout too long": "FW_TIMEOUT 65537\n",
		"timeout in hex":   "FW_TIMEOUT 0x10\n",
		"timeout signed":   "FW_TIMEOUT +5\n",
		"timeout undone":   "FW_TIMEOUT 5\nFW_TIMEOUT 0\n",
		"offset":           "TIME_OFFSET -5xHm\n",
		"offset minus":     "TIME_OFFSET 5-3s\n",
		"offset too long":  "TIME_OFFSET 65537\n",
		"offset unit":      "TIME_OFFSET m\n",
		"digest":           "DIGEST_TYPE sha3_256\n",
		"no digest":        "DIGEST_TYPE sha3-256\n",
		"mode":             "ENCRYPTION_MODE Ctr\n",
		"no mode":          "ENCRYPTION_MODE PCBC\n",
		"legacy":           "ENCRYPTION_MODE legacy\nKEY " + strings.Repeat("k", 40) + "\n",
		"legacy HMAC":      "ENCRYPTION_MODE legacy\nHMAC_KEY x\n",
		"user":             "SPOOF_USER bob" + strings.Repeat("x", 70) + "\n",
		"no user":          "SPOOF_USER a/b\n",
		"base64 outranked": "KEY_BASE64 eHl6\n",
		"no base64":        "KEY_BASE64 e-l6\n",
		"long key":         "KEY " + strings.Repeat("k", 33) + "\n",
		"HMAC":             "HMAC_KEY xyz\nUSE_HMAC N\nHMAC_KEY_BASE64 YWJj\nHMAC_DIGEST_TYPE SHA512\n",
		"HMAC no key":      "HMAC_DIGEST_TYPE SHA512\n",
		"HMAC is key":      "HMAC_KEY_BASE64 YWJj\n",
		"HMAC cut":         "HMAC_KEY " + strings.Repeat("h", 130) + "\n",
		"HMAC not cut":     "HMAC_KEY_BASE64 " + strings.Repeat("aaaa", 43) + "\n",
		"HMAC asked for":   "USE_HMAC Y\nUSE_HMAC N\n",
		"HMAC_KEY_FILE":    "HMAC_KEY_FILE /nowhere\n",
		"GnuPG's password": "GPG_SIGNING_PW xyz\n",
		"GnuPG":            "USE_GPG Y\n",
		"address":          "ALLOW_IP source\n",
		"resolve address":  "ALLOW_IP resolve\n",
		"name":             "ALLOW_IP vps.example\n",
		"no address":       "ALLOW_IP 198.51.100\n",
		"NAT":              "NAT_ACCESS 10.0.0.5:80\nFW_TIMEOUT 3\n",
		"NAT no port":      "NAT_ACCESS 10.0.0.5\nNAT_PORT 99\n",
		"NAT port 0":       "NAT_ACCESS 10.0.0.5,0\n",
		"NAT local":        "NAT_LOCAL y\nNAT_LOCAL N\n",
		"NAT ports":        "NAT_PORT 99\nACCESS tcp/22,tcp/23\n",
		"no NAT":           "NAT_PORT 99\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t, "client")
			dir := t.TempDir()
			rc, config, packet := filepath.Join(dir, "rc"), filepath.Join(dir, "config"), filepath.Join(dir, "packet")
			if err := os.WriteFile(rc, []byte(base+lines), 0o600); err != nil {
				t.Fatal(err)
			}
			said, refused := fwknopClient(h, dir, "-T", "-v", "--rc-file", rc, "-n", "h", "-B", packet)
			ours, err := h.Try("portknock", "profile", "import", "-c", config, "-n", "h", rc)
			if (refused == nil) != (err == nil) {
				t.Fatalf("fwknop: %v, portknock: %v\n%s\n%s", refused, err, said, ours)
			}
			if err != nil {
				return
			}
			a := requestOf(t, config, "h")
			fields, now := clientFields(said), time.Now()
			for field, value := range want(a) {
				if fields[field] != value {
					t.Errorf("%s: fwknop says %q, the profile %q", field, fields[field], value)
				}
			}
			for field, value := range map[string]string{"protocol": a.Via.String(), "destination port": strconv.Itoa(int(a.Port))} {
				if got := strings.Replace(fields[field], "udpraw", "udp", 1); got != value {
					t.Errorf("%s: fwknop says %q, the profile %q", field, got, value)
				}
			}
			stamp, err := strconv.ParseInt(fields["Timestamp"], 10, 64)
			if d := time.Unix(stamp, 0).Sub(now.Add(a.Offset)); err != nil || d.Abs() > 10*time.Second {
				t.Errorf("fwknop's clock is off by %v, %v", d, err)
			}
			text, err := os.ReadFile(packet)
			if err != nil {
				t.Fatal(err)
			}
			sent := strings.TrimSpace(string(text))
			if got := judge(t, []string{stanza(a)}, []string{sent})[sent]; got["Message String"] == "" {
				t.Errorf("fwknopd cannot read the client's packet with the imported keys")
			}
		})
	}
}

// clientFields parts what fwknop -v says into the fields of its packet.
func clientFields(said string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(said) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && fields[name] == "" {
			fields[name] = value
		}
	}
	return fields
}

// TestImportOpens: a stanza that fwknop has saved itself, imported, opens the
// server that fwknop's client opens.
func TestImportOpens(t *testing.T) {
	t.Parallel()
	lab.Require(t, "ssh", "sshd", "nft", "fwknop", "fwknopd")
	n := lab.New(t)
	server := n.Server.Addr(lab.IPv4).String()
	home := t.TempDir()
	if said, err := fwknopClient(n.Client, home, "--save-rc-stanza", "-n", "vps", "-D", server, "-A", "tcp/22", "-s",
		"-k", "--use-hmac", "--hmac-digest-type", "sha512", "-m", "sha384", "-f", "30", "-T"); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config")
	n.Client.Run(t, "portknock", "profile", "import", "-c", config, filepath.Join(home, ".fwknoprc"))

	sshd := n.Server.SSHD(t, []uint16{22})
	n.Server.Shell(t, `nft 'table inet gate { set open { type ipv4_addr; }
		chain input { type filter hook input priority 0; tcp dport 22 ct state new ip saddr != @open drop; }; }'`)
	fwknopd := n.Server.Fwknopd(t, stanza(requestOf(t, config, "vps"))+
		"CMD_CYCLE_OPEN nft add element inet gate open { $SRC }\nCMD_CYCLE_CLOSE NONE\nREQUIRE_SOURCE_ADDRESS N\n", "")
	door := netip.AddrPortFrom(n.Server.Addr(lab.IPv4), 22)
	if got := n.Client.Probe(t, door); got != lab.Dropped {
		t.Fatalf("before a packet the port is %v", got)
	}
	ssh := sshd.ClientConfig(t, "Host vps", "HostName "+server, "ProxyCommand portknock -c "+config+" --profile vps %h %p")
	if got := sshOutput(t, n.Client, "-F", ssh, "vps", "echo in"); got != "in\n" {
		t.Errorf("ssh says %q\n%s", got, fwknopd.Log.String())
	}
	if got := n.Attacker.Probe(t, door); got != lab.Dropped {
		t.Errorf("for another address the port is %v", got)
	}
}
