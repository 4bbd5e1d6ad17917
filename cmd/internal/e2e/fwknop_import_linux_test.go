package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/spa"
)

// fwknopClient runs fwknop's client with its own home folder.
func fwknopClient(h *lab.Host, home string, args ...string) (string, error) {
	return h.Try("env", append([]string{"HOME=" + home, "fwknop"}, args...)...)
}

// profileOf returns the profile of a host in a profile file.
func profileOf(t testing.TB, config, host string) *profile.Profile {
	t.Helper()
	file, err := profile.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	p, err := file.Lookup(host)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// requestOf returns the request that a profile sends to fwknopd.
func requestOf(t testing.TB, config, host string) *spa.Request {
	t.Helper()
	s, err := profileOf(t, config, host).Picker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.(*spa.Request)
}

// TestImportReadsFwknoprcLikeFwknopClient: the importer and fwknop's client read a
// stanza alike. The client's packet asks for the same as the imported profile, and a
// real fwknopd with the imported keys decodes this packet.
func TestImportReadsFwknoprcLikeFwknopClient(t *testing.T) {
	t.Parallel()
	lab.Require(t, "fwknop", "fwknopd")
	const base = "[h]\nSPA_SERVER 192.0.2.1\nACCESS tcp/22\nALLOW_IP 198.51.100.7\nSPOOF_USER alice\n"
	for name, lines := range map[string]string{
		"plain":             "KEY abc\n",
		"colon":             "KEY: abc\n",
		"comments":          "# x\n;KEY x\n\r\nKEY abc # x\nFW_TIMEOUT 3 ;x\n",
		"blanks":            " \tKEY  \t abc \t\r\n",
		"longest line":      "KEY abc\n#" + strings.Repeat("c", 1021) + "\n",
		"default":           "KEY abc\n[Default]\nKEY xyz\nFW_TIMEOUT 9\n",
		"port":              "KEY abc\nSPA_SERVER_PORT 5\nSPA_SERVER_PROTO TCP\n",
		"udpraw":            "KEY abc\nSPA_SERVER_PROTO udpraw\n",
		"timeout":           "KEY abc\nFW_TIMEOUT 65535\n",
		"offset":            "KEY abc\nTIME_OFFSET -5M\n",
		"offset in seconds": "KEY abc\nTIME_OFFSET 5400\n",
		"digest":            "KEY abc\nDIGEST_TYPE sha3_256\nENCRYPTION_MODE Ctr\n",
		"legacy":            "KEY " + strings.Repeat("k", 16) + "\nENCRYPTION_MODE legacy\n",
		"longest key":       "KEY " + strings.Repeat("k", 32) + "\nHMAC_KEY " + strings.Repeat("h", 128) + "\n",
		"base64":            "KEY_BASE64 AAEC\nHMAC_KEY_BASE64 YWJjZA==\nHMAC_DIGEST_TYPE SHA512\nUSE_HMAC Y\n",
		"NAT":               "KEY abc\nNAT_ACCESS 10.0.0.5:80\nFW_TIMEOUT 3\n",
		"NAT without port":  "KEY abc\nNAT_ACCESS 10.0.0.5\nNAT_PORT 99\n",
		"NAT local":         "KEY abc\nNAT_LOCAL y\n",
		"bytes in key":      "KEY \xff\u00fc:=\"'\n",
		"ignored":           "KEY abc\nVERBOSE Y\nUSE_GPG N\nHTTP_USER_AGENT x\nSERVER_RESOLVE_IPV4 N\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t, "client")
			dir := t.TempDir()
			rc, config, packet := filepath.Join(dir, "rc"), filepath.Join(dir, "config"), filepath.Join(dir, "packet")
			if err := os.WriteFile(rc, []byte(base+lines), 0o600); err != nil {
				t.Fatal(err)
			}
			output, fwknopErr := fwknopClient(h, dir, "-T", "-v", "--rc-file", rc, "-n", "h", "-B", packet)
			ours, err := h.Try("portknock", "profile", "import", "-c", config, "-n", "h", rc)
			if fwknopErr != nil || err != nil {
				t.Fatalf("fwknop: %v, portknock: %v\n%s\n%s", fwknopErr, err, output, ours)
			}
			a := requestOf(t, config, "h")
			fields, now := parseFwknopOutput(output), time.Now()
			for field, value := range wantFields(a) {
				if fields[field] != value {
					t.Errorf("%s: fwknop sends %q, the imported profile %q", field, fields[field], value)
				}
			}
			for field, value := range map[string]string{"protocol": a.Via.String(), "destination port": strconv.Itoa(int(a.Port))} {
				if got := strings.Replace(fields[field], "udpraw", "udp", 1); got != value {
					t.Errorf("%s: fwknop sends %q, the imported profile %q", field, got, value)
				}
			}
			stamp, err := strconv.ParseInt(fields["Timestamp"], 10, 64)
			if d := time.Unix(stamp, 0).Sub(now.Add(a.Offset)); err != nil || d.Abs() > 10*time.Second {
				t.Errorf("the time stamp of fwknop's packet differs by %v from the imported profile's, %v", d, err)
			}
			sent := strings.TrimSpace(lab.ReadFile(t, packet))
			if got := decodeWithFwknopd(t, []string{accessStanza(a)}, []string{sent})[sent]; got["Message String"] == "" {
				t.Errorf("fwknopd cannot read the client's packet with the imported keys")
			}
		})
	}
}

// parseFwknopOutput returns the fields of the packet that fwknop -v has printed.
func parseFwknopOutput(output string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(output) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && fields[name] == "" {
			fields[name] = value
		}
	}
	return fields
}

// TestImportedStanzaOpensServer: fwknop's client saves a stanza, and portknock imports
// the stanza. The imported profile opens a server whose fwknopd has the same keys.
func TestImportedStanzaOpensServer(t *testing.T) {
	t.Parallel()
	lab.Require(t, "ssh", "sshd", "nft", "fwknop", "fwknopd")
	r := newEmptyRig(t, nftables, lab.IPv4)
	home := t.TempDir()
	if output, err := fwknopClient(r.client, home, "--save-rc-stanza", "-n", "vps", "-D", r.addr().String(), "-A", "tcp/22", "-s",
		"-k", "--use-hmac", "--hmac-digest-type", "sha512", "-m", "sha384", "-f", "30", "-T"); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	r.profile = filepath.Join(t.TempDir(), "config")
	r.client.Run(t, "portknock", "profile", "import", "-c", r.profile, filepath.Join(home, ".fwknoprc"))

	r.sshd = r.server.SSHD(t, []uint16{22})
	r.server.Shell(t, `nft 'table inet gate { set open { type ipv4_addr; }
		chain input { type filter hook input priority 0; tcp dport 22 ct state new ip saddr != @open drop; }; }'`)
	r.server.Fwknopd(t, accessStanza(requestOf(t, r.profile, "vps"))+
		"CMD_CYCLE_OPEN nft add element inet gate open { $SRC }\nCMD_CYCLE_CLOSE NONE\nREQUIRE_SOURCE_ADDRESS N\n", "")
	r.expect(t, r.client, lab.Dropped)
	r.config = r.proxyConfig(t, "portknock -c "+r.profile+" --profile vps %h %p")
	r.login(t)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestImportKeepsGroupAndMode: after an import, the profile file has the same group and
// mode. The key files and a lock are the only new files in its folder.
func TestImportKeepsGroupAndMode(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	dir := t.TempDir()
	config, rc := filepath.Join(dir, "config"), filepath.Join(dir, "rc")
	for _, file := range []struct{ path, text string }{
		{config, "Host *\n    ConnectTimeout 20\n"},
		{rc, "[h]\nSPA_SERVER 192.0.2.1\nKEY abc\nHMAC_KEY xyz\n"},
	} {
		if err := os.WriteFile(file.path, []byte(file.text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(config, 0, 65534); err != nil {
		t.Fatal(err)
	}
	lab.NewHost(t, "client").Run(t, "portknock", "profile", "import", "-c", config, rc)
	info, err := os.Stat(config)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Gid != 65534 || info.Mode().Perm() != 0o644 {
		t.Errorf("the profile file has group %d, mode %o, want 65534 and 644", st.Gid, info.Mode().Perm())
	}
	entries, err := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); err != nil || got != ".lock config h.hmac h.key rc" {
		t.Errorf("the folder contains %s, %v; want the profile file, its lock, the imported file and two key files", got, err)
	}
}
