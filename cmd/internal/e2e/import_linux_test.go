package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// mixedKnockd is a knockd.conf with knocks of both protocols, and with nft. It opens two ports.
const mixedKnockd = `
[options]
	Interface = eth0

[web]
	Sequence = 4444:udp, 5555, 6666:UDP
	Timeout = 3
	TCPFlags = SYN,!ACK
	Start_Command = nft 'add element inet gate web { %IP% timeout 1m }'
[ssh]
	Sequence = 3333:udp, 2222:tcp, 1111:udp
	Seq_Timeout = 3
	TCPFlags = SYN,!ACK
	Start_Command = nft insert rule inet gate input ip saddr %IP% tcp dport { 22, 8022 } accept
	Cmd_Timeout = 3600
	Stop_Command = nft flush chain inet gate input
`

// dropAllButSessions makes a server accept only packets of sessions, by iptables.
const dropAllButSessions = "iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables -P INPUT DROP"

// debianConf is the knockd.conf of Debian's package.
const debianConf = "/etc/knockd.conf"

// importFile makes portknock import a file of another program. It returns the new profile
// file.
func (r *rig) importFile(t *testing.T, file string, flags ...string) string {
	t.Helper()
	r.profile = filepath.Join(t.TempDir(), "config")
	r.client.Run(t, "portknock", append([]string{"profile", "import", "-c", r.profile, file}, flags...)...)
	return r.profile
}

// TestImportedFileOpensServer: the profile from the knockd.conf of a server reaches its sshd
// through the real knockd with this very file, and so does the profile from a portknocker.ini for this server.
func TestImportedFileOpensServer(t *testing.T) {
	t.Parallel()
	const debianConf = "/etc/knockd.conf"
	debian, _ := os.ReadFile(debianConf)
	for name, tt := range map[string]struct {
		server string // shell line that closes the server's port
		knockd string // knockd.conf of the server
		ini    string // portknocker.ini of the client, without the address; "" to import knockd
	}{
		"Debian": {dropAllButSessions, string(debian), ""},
		"UDP":    {dropAllButSessions, knockdServer, ""},
		"mixed": {`nft 'table inet gate { set web { type ipv4_addr; flags timeout; }
			chain input { type filter hook input priority 0; policy drop; ct state established accept; }; }'`, mixedKnockd, ""},
		"portknocker": {dropAllButSessions, knockdServer, "[vps]\ninterval = 20\nports = 1111:UDP 2222:udp\nipaddr = "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.knockd == "" {
				lab.Missing(t, debianConf)
			}
			r := newEmptyRig(t, firewallNamed("knockd"), lab.IPv4)
			r.firewall.Install(t, r.server)
			r.sshd = r.server.SSHD(t, []uint16{22})
			r.server.Shell(t, tt.server)
			conf := lab.File(t, "knockd.conf", tt.knockd)
			r.server.Knockd(t, conf)
			if tt.ini == "" {
				r.importFile(t, conf, "--host", r.addr().String(), "--as", "vps")
			} else {
				r.importFile(t, lab.File(t, "portknocker.ini", tt.ini+r.addr().String()))
			}
			r.expect(t, r.client, lab.Dropped)
			begin := time.Now()
			stdout, stderr, code := portknock(r.client, "-c", r.profile, r.addr().String(), "22")
			t.Logf("from the start to the end of sshd's greeting: %v", time.Since(begin))
			if code != 0 || !strings.HasPrefix(stdout, "SSH-2.0-") {
				t.Errorf("portknock prints %q and %q and exits with %d", stdout, stderr, code)
			}
			r.expect(t, r.attacker, lab.Dropped)
		})
	}
}

// TestImportedSectionsOfDebian: with Debian's knockd.conf and the script that it names,
// [openHTTPS] opens its port, and [closeSSH] closes the port again that [openSSH] has opened.
func TestImportedSectionsOfDebian(t *testing.T) {
	t.Parallel()
	const script = "/usr/sbin/knock_helper_ipt.sh"
	lab.Require(t, script)
	r := newListeningRig(t, firewallNamed("knockd"), lab.IPv4)
	r.server.Listen(t, 443)
	r.server.Shell(t, "mount -t tmpfs none /usr/local/sbin; cp "+script+" /usr/local/sbin/knock_add; "+dropAllButSessions)
	r.server.Knockd(t, debianConf)
	r.importFile(t, debianConf, "--host", r.addr().String(), "--as", "vps")
	r.client.Run(t, "portknock", "profile", "import", "-c", r.profile, "--host", r.addr().String(), "-n", "closeSSH", debianConf)
	r.expectPort(t, r.client, 443, lab.Dropped)
	r.client.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "vps-openHTTPS")
	r.expectPort(t, r.client, 443, lab.Open)
	r.expect(t, r.client, lab.Dropped)

	r.knockAndWait(t, r.client)
	r.client.Run(t, "portknock", "knock", "-c", r.profile, r.addr().String()+"-closeSSH")
	r.awaitPort(t, time.Minute, r.client, 22, lab.Dropped)
}

// TestImportReadsKnockdConfLikeKnockd: the importer and knockd read a knockd.conf alike. The
// importer accepts no file that knockd refuses, and finds the sequence that knockd finds.
func TestImportReadsKnockdConfLikeKnockd(t *testing.T) {
	t.Parallel()
	lab.Require(t, "knockd", "stdbuf")
	const section = "[a]\nstart_command = ufw allow 22/tcp\n"
	for name, tt := range map[string]struct {
		file    string
		refused bool // whether knockd does not start with the file
	}{
		"plain":               {file: section + "sequence = 7000,8000:udp,9000:tcp\n"},
		"blanks and case":     {file: " \t[a] \nCommand = x\r\n\tSEQUENCE=7000 , 8000 : UDP,07001\r\n"},
		"comments":            {file: "#[x]\n" + section + "  # sequence = 1\nsequence = 7000\n"},
		"options":             {file: "[options]\nUseSyslog\nlogfile = /dev/null\n" + section + "sequence = 7000\nusesyslog\n"},
		"OPTIONS":             {file: "[OPTIONS]\ncommand = x\nsequence = 7000\n"},
		"blanks in the name":  {file: "[ a ]\ncommand = x = y\nsequence = 7000\n"},
		"aliases":             {file: "[a]\ncommand = x\ncommand_6 =\ntimeout = 5\nsequence = 7000\ncmd_timeout = 5\n"},
		"flags":               {file: section + "sequence = 7000\ntcpflags = SYN,!ack\n"},
		"longest line":        {file: section + "#" + strings.Repeat("x", 4094) + "\nsequence = 7000\n"},
		"too long line":       {file: section + "#" + strings.Repeat("x", 4095) + "\nsequence = 7000\n", refused: true},
		"no section":          {file: "sequence = 7000\n" + section, refused: true},
		"byte order mark":     {file: "\ufeff" + section + "sequence = 7000\n", refused: true},
		"text after the name": {file: "[a] x\ncommand = x\nsequence = 7000\n", refused: true},
		"no name":             {file: "[]\ncommand = x\nsequence = 7000\n", refused: true},
		"no sequence":         {file: section, refused: true},
		"protocol":            {file: section + "sequence = 7000:icmp\n", refused: true},
		"large port":          {file: section + "sequence = 65536\n", refused: true},
		"many knocks":         {file: section + "sequence = 1" + strings.Repeat(",1", 32) + "\n", refused: true},
		"unknown directive":   {file: section + "sequence = 7000\nsequense = 1\n", refused: true},
		"blank in directive":  {file: section + "seq uence = 7000\n", refused: true},
		"comment by ;":        {file: section + "sequence = 7000\n; x\n", refused: true},
		"UseSyslog = yes":     {file: section + "sequence = 7000\nusesyslog = yes\n", refused: true},
		"option in a section": {file: section + "sequence = 7000\nlogfile = /dev/null\n", refused: true},
		"sequence in options": {file: "[options]\nsequence = 7000\n" + section, refused: true},
		"flags with blanks":   {file: section + "sequence = 7000\ntcpflags = syn, ack\n", refused: true},
		"empty flags":         {file: section + "sequence = 7000\ntcpflags =\n", refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, dir := lab.NewHost(t, "server"), t.TempDir()
			conf, config := lab.File(t, "knockd.conf", tt.file), filepath.Join(dir, "config")
			d := h.Daemon(t, "stdbuf", "-oL", "knockd", "-i", "lo", "-v", "-D", "-c", conf, "-p", filepath.Join(dir, "pid"), "-g", filepath.Join(dir, "log"))
			end := "listening on lo"
			if tt.refused {
				end = "usage:"
			}
			d.Log.Await(t, end, 1)
			output, err := h.Try("portknock", "profile", "import", "-c", config, "--from", "knockd", "--host", "vps", conf)
			if tt.refused {
				if err == nil {
					t.Errorf("knockd refuses the file, but the importer accepts it:\n%s", lab.ReadFile(t, config))
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, output)
			}
			_, rest, _ := strings.Cut(d.Log.String(), ": sequence: ")
			want, _, _ := strings.Cut(rest, "\n")
			got := strings.NewReplacer("/", ":", " ", ",").Replace(profileOf(t, config, "vps").Sequence.String())
			if got != want {
				t.Errorf("knockd has the sequence %s, the imported profile %s", want, got)
			}
		})
	}
}
