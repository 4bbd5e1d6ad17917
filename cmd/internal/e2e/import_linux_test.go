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

// TestImportAsFwknopReads: what the importer takes, fwknop's client reads alike. A
// real fwknopd with the imported keys decodes the client's packet, which asks what
// the imported profile asks.
func TestImportAsFwknopReads(t *testing.T) {
	t.Parallel()
	lab.Require(t, "fwknop", "fwknopd")
	const base = "[h]\nSPA_SERVER 192.0.2.1\nACCESS tcp/22\nALLOW_IP 198.51.100.7\nSPOOF_USER alice\n"
	for name, lines := range map[string]string{
		"plain":         "KEY abc\n",
		"colon":         "KEY: abc\n",
		"comments":      "# x\n;KEY x\n\r\nKEY abc # x\nFW_TIMEOUT 3 ;x\n",
		"blanks":        " \tKEY  \t abc \t\r\n",
		"longest line":  "KEY abc\n#" + strings.Repeat("c", 1021) + "\n",
		"default":       "KEY abc\n[Default]\nKEY xyz\nFW_TIMEOUT 9\n",
		"port":          "KEY abc\nSPA_SERVER_PORT 5\nSPA_SERVER_PROTO TCP\n",
		"udpraw":        "KEY abc\nSPA_SERVER_PROTO udpraw\n",
		"timeout":       "KEY abc\nFW_TIMEOUT 65535\n",
		"offset":        "KEY abc\nTIME_OFFSET -5M\n",
		"offset in s":   "KEY abc\nTIME_OFFSET 5400\n",
		"digest":        "KEY abc\nDIGEST_TYPE sha3_256\nENCRYPTION_MODE Ctr\n",
		"legacy":        "KEY " + strings.Repeat("k", 16) + "\nENCRYPTION_MODE legacy\n",
		"longest key":   "KEY " + strings.Repeat("k", 32) + "\nHMAC_KEY " + strings.Repeat("h", 128) + "\n",
		"base64":        "KEY_BASE64 AAEC\nHMAC_KEY_BASE64 YWJjZA==\nHMAC_DIGEST_TYPE SHA512\nUSE_HMAC Y\n",
		"NAT":           "KEY abc\nNAT_ACCESS 10.0.0.5:80\nFW_TIMEOUT 3\n",
		"NAT no port":   "KEY abc\nNAT_ACCESS 10.0.0.5\nNAT_PORT 99\n",
		"NAT local":     "KEY abc\nNAT_LOCAL y\n",
		"bytes in key":  "KEY \xff\u00fc:=\"'\n",
		"nothing to do": "KEY abc\nVERBOSE Y\nUSE_GPG N\nHTTP_USER_AGENT x\nSERVER_RESOLVE_IPV4 N\n",
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
			if refused != nil || err != nil {
				t.Fatalf("fwknop: %v, portknock: %v\n%s\n%s", refused, err, said, ours)
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
