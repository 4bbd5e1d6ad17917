package importer

import (
	"strings"
	"testing"
)

// debianKnockd is Debian's /etc/knockd.conf.
const debianKnockd = `[options]
	UseSyslog

[openSSH]
	sequence    = 7000,8000,9000
	seq_timeout = 5
	command     = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	tcpflags    = syn

[closeSSH]
	sequence    = 9000,8000,7000
	seq_timeout = 5
	command     = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT
	tcpflags    = syn

[openHTTPS]
	sequence    = 12345,54321,24680,13579
	seq_timeout = 5
	command     = /usr/local/sbin/knock_add -i -c INPUT -p tcp -d 443 -f %IP%
	tcpflags    = syn

`

// udpKnockd is the knockd.conf of "Port-knocking: open ports on demand".
const udpKnockd = `[options]
UseSyslog
Interface = eth0

[SSH]
sequence = 1111:udp,2222:udp
seq_timeout = 5
start_command = /sbin/iptables -I INPUT -s %IP% -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT
cmd_timeout = 600
stop_command = /sbin/iptables -D INPUT -s %IP% -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT
`

// manualKnockd has the second, third and fourth example of knockd's manual.
const manualKnockd = `[options]
     logfile = /var/log/knockd.log

[opencloseSSH]
     sequence      = 2222:udp,3333:tcp,4444:udp
     seq_timeout   = 15
     tcpflags      = syn,ack
     start_command = /usr/sbin/iptables -A INPUT -s %IP% -p tcp --syn -j ACCEPT
     cmd_timeout   = 5
     stop_command  = /usr/sbin/iptables -D INPUT -s %IP% -p tcp --syn -j ACCEPT

[opencloseSMTP]
     one_time_sequences = /etc/knockd/smtp_sequences
     seq_timeout        = 15
     tcpflags           = fin,!ack
     start_command      = /usr/sbin/iptables -A INPUT -s %IP% -p tcp --dport 25 -j ACCEPT
     start_command_6    = /usr/sbin/ip6tables -A INPUT -s %IP% -p tcp --dport 25 -j ACCEPT
     cmd_timeout        = 5
     stop_command       = /usr/sbin/iptables -D INPUT -s %IP% -p tcp --dport 25 -j ACCEPT
`

// ownKnockd is a knockd.conf as emit-rules writes it.
const ownKnockd = `# a comment
[options]
	UseSyslog
[vps]
	sequence = 7001:udp,8003:tcp
	seq_timeout = 5
	tcpflags = syn
	start_command = nft "add element inet portknock vps_open4 { %IP% }; delete element inet portknock vps_open4 { %IP% }; add element inet portknock vps_open4 { %IP% timeout 30s }"
	start_command_6 = nft "add element inet portknock vps_open6 { %IP% timeout 30s }"
[vps_trap]
	sequence = 7002:udp,8004:tcp
	seq_timeout = 5
	tcpflags = syn
`

const (
	stayWarning = "each login adds a rule that stays; add stop_command and cmd_timeout\n"
	timeWarning = "seq_timeout becomes KnockTimeout "
	noPort      = "no port found in the command; without a Port, the guarded port is 22/tcp\n"
	noSection   = "f: the file has no section that can be imported\n"
)

func TestKnockdReadsRealFiles(t *testing.T) {
	openSSH := "    HostName 192.0.2.1\n    Port 22\n    Sequence 7000/tcp 8000/tcp 9000/tcp\n    KnockTimeout 2s\n    Repeat 1\n"
	openSSHWarnings := "f:6: [openSSH] " + timeWarning + "2s, because knockd counts from the first knock\nf:7: [openSSH] " + stayWarning
	openHTTPS := "    HostName 192.0.2.1\n    Port 443\n    Sequence 12345/tcp 54321/tcp 24680/tcp 13579/tcp\n    KnockTimeout 1s\n    Repeat 1\n"
	openHTTPSWarnings := "f:18: [openHTTPS] " + timeWarning + "1s, because knockd counts from the first knock\nf:19: [openHTTPS] " + stayWarning
	sharesKnocks := "f:11: [closeSSH] shares knocks with [openSSH], so a lost knock delays a login; give it other ports\n"
	onlyCloses := "f:10: [closeSSH] only closes ports, so it is not imported; to import it, give its name\n"
	sameHost := "f:16: [openHTTPS] has the same host as profile vps, which ssh's %h finds; to use it, name profile vps-openHTTPS\n"
	for name, tt := range map[string]struct {
		file    string
		options Options
		want    string
	}{
		"Debian": {debianKnockd, Options{Host: "192.0.2.1", Name: "vps"},
			"Host vps\n" + openSSH + "Host vps-openHTTPS\n" + openHTTPS + openSSHWarnings + openHTTPSWarnings + sameHost + onlyCloses + sharesKnocks},
		"one section": {debianKnockd, Options{Host: "192.0.2.1", Section: "openSSH"},
			"Host 192.0.2.1\n" + openSSH + openSSHWarnings + sharesKnocks},
		"another section": {debianKnockd, Options{Host: "192.0.2.1", Section: "openHTTPS", Name: "web"},
			"Host web\n" + openHTTPS + openHTTPSWarnings},
		"section that closes": {debianKnockd, Options{Host: "192.0.2.1", Section: "closeSSH"},
			"Host 192.0.2.1-closeSSH\n    HostName 192.0.2.1\n    Sequence 9000/tcp 8000/tcp 7000/tcp\n    KnockTimeout 2s\n    Repeat 1\n" +
				"f:12: [closeSSH] " + timeWarning + "2s, because knockd counts from the first knock\n"},
		"no such section": {debianKnockd, Options{Host: "192.0.2.1", Section: "openssh"}, "f: the file has no section \"openssh\"\n"},
		"options":         {debianKnockd, Options{Host: "192.0.2.1", Section: "options"}, "f: the file has no section \"options\"\n"},
		"UDP": {udpKnockd, Options{Host: "vps.example"},
			"Host vps.example\n    HostName vps.example\n    Port 22\n    Sequence 1111/udp 2222/udp\n    OpenFor 600s\n    KnockTimeout 4s\n    Repeat 1\n" +
				"f:7: [SSH] " + timeWarning + "4s, because knockd counts from the first knock\n"},
		"manual": {manualKnockd, Options{Host: "vps"}, noSection +
			"f:7: [opencloseSSH] is left out: a TCP knock is a SYN, which does not match tcpflags syn,ack\n" +
			"f:13: [opencloseSMTP] is left out: sequences that serve only once are not supported\n"},
		"our own": {ownKnockd, Options{Host: "vps"},
			"Host vps\n    HostName vps\n    Sequence 7001/udp 8003/tcp\n    KnockTimeout 4s\n    Repeat 1\n" +
				"f:6: [vps] " + timeWarning + "4s, because knockd counts from the first knock\nf:8: [vps] " + noPort +
				"f:10: [vps_trap] is left out: it has no start_command\n"},
		"Windows line ends": {strings.ReplaceAll(udpKnockd, "\n", "\r\n"), Options{Host: "vps", Section: "SSH"},
			strings.ReplaceAll(converted("knockd", udpKnockd, Options{Host: "vps"}), "\r", "")},
	} {
		t.Run(name, func(t *testing.T) { expectConverted(t, "knockd", tt.file, tt.options, tt.want) })
	}
}

// shortConf is the shortest section that can be imported. Lines that a test adds begin at line 4.
const (
	shortConf  = "[short]\nsequence = 7000,8001:udp\nstart_command = ufw allow from %IP% to any port 22 proto tcp\n"
	shortBlock = "Host h\n    HostName h\n    Port 22\n    Sequence 7000/tcp 8001/udp\n"
	shortRest  = "    KnockTimeout 24s\n    Repeat 1\n"
	shortWarn  = "f:3: [short] " + stayWarning
)

func TestKnockdDirectives(t *testing.T) {
	sequence := func(knocks string) string { return strings.Replace(shortConf, "7000,8001:udp", knocks, 1) }
	const stop = "stop_command = ufw delete allow from %IP% to any port 22 proto tcp\n"
	timeout := func(between string) string {
		return shortBlock + "    KnockTimeout " + between + "\n    Repeat 1\n" +
			"f:4: [short] " + timeWarning + between + ", because knockd counts from the first knock\n" + shortWarn
	}
	for file, want := range map[string]string{
		shortConf:                  shortBlock + shortRest + shortWarn,
		sequence("7000, 8001:udp"): shortBlock + shortRest + shortWarn,
		sequence("7000 : TCP , 8001 : UDP") + "# tcpflags = x\n#\n": shortBlock + shortRest + shortWarn,
		shortConf + "SEQ_TIMEOUT=10":                                timeout("9s"),
		shortConf + "Timeout = 2":                                   timeout("1s"),
		shortConf + "timeout = 1":                                   timeout("1s"),
		shortConf + "timeout = 86400":                               strings.ReplaceAll(timeout("300s"), timeWarning+"300s", timeWarning+"5m0s"),
		shortConf + "timeout = 0":                                   noSection + "f:4: [short] is left out: no sequence can be complete within seq_timeout 0\n",
		shortConf + "timeout = 5s":                                  "f:4: seq_timeout: \"5s\" is not a plain number of seconds such as 5\n",
		shortConf + stop:                                            shortBlock + "    OpenFor 10s\n" + shortRest,
		shortConf + stop + "cmd_timeout = 3600":                     shortBlock + "    OpenFor 3600s\n" + shortRest,
		shortConf + stop + "cmd_timeout = 0":                        shortBlock + "    OpenFor 1s\n" + shortRest + "f:5: [short] cmd_timeout 0 becomes OpenFor 1s\n",
		shortConf + stop + "cmd_timeout = 100000":                   shortBlock + "    OpenFor 86400s\n" + shortRest + "f:5: [short] cmd_timeout 100000 becomes OpenFor 86400s\n",
		shortConf + stop + "cmd_timeout = ten":                      "f:5: cmd_timeout: \"ten\" is not a plain number of seconds such as 5\n",
		shortConf + "cmd_timeout = 10\n":                            shortBlock + shortRest + shortWarn,
		shortConf + "tcpflags = SYN,!ACK\n":                         shortBlock + shortRest + shortWarn,
		shortConf + "tcpflags = fin\n":                              noSection + "f:4: [short] is left out: a TCP knock is a SYN, which does not match tcpflags fin\n",
		shortConf + "tcpflags = !syn\n":                             noSection + "f:4: [short] is left out: a TCP knock is a SYN, which does not match tcpflags !syn\n",
		shortConf + "tcpflags = syn, ack\n":                         "f:4: tcpflags: knockd does not know the flag \" ack\"; expected flags such as syn,!ack without spaces\n",
		sequence("1:udp") + "tcpflags = fin\n": "Host h\n    HostName h\n    Port 22\n    Sequence 1/udp\n    KnockTimeout 24s\n    Repeat 1\n" +
			shortWarn,
		shortConf + "target = 10.0.0.5\n": shortBlock + shortRest +
			"f:4: [short] knockd counts only knocks that arrive at 10.0.0.5; check the HostName\n" + shortWarn,
		shortConf + "target = vps\n":                           "f:4: target: \"vps\" is not an IP address\n",
		shortConf + "start_command_6 =\nusesyslog\n":           shortBlock + shortRest + shortWarn,
		sequence("22,80"):                                      noSection + shortWarn + "f:1: [short] is left out: Sequence: knock 1 of 2 goes to a guarded port (one of the OpenPorts)\n",
		sequence("0"):                                          "f:2: sequence: knock 1 of 1 is not a port from 1 to 65535\n",
		sequence("7000,65536"):                                 "f:2: sequence: knock 2 of 2 is not a port from 1 to 65535\n",
		sequence("7000,,8000"):                                 "f:2: sequence: knock 2 of 3 is not a port and a protocol, such as 7000:tcp\n",
		sequence("7000 8000"):                                  "f:2: sequence: knock 1 of 1 is not a port and a protocol, such as 7000:tcp\n",
		sequence("7000:icmp"):                                  "f:2: sequence: knock 1 of 1 is not a port and a protocol, such as 7000:tcp\n",
		sequence(strings.Repeat("1,", 32) + "1"):               "f:2: sequence: 33 knocks are too many; at most 32 are allowed\n",
		shortConf + "sequence = 1\n":                           "f:4: sequence: line 2 sets it already; keep one of them\n",
		shortConf + "command = x\n":                            "f:4: start_command: line 3 sets it already; keep one of them\n",
		shortConf + "; x\n":                                    "f:4: knockd does not start with this line; expected a directive such as sequence = VALUE\n",
		shortConf + "sequense = 1\n":                           "f:4: knockd does not start with this line; expected a directive such as sequence = VALUE\n",
		shortConf + "logfile = /x\n":                           "f:4: knockd does not start with this line; expected a directive such as sequence = VALUE\n",
		shortConf + "[options]\nsequence = 1\n":                "f:5: knockd does not start with this line; expected a directive such as logfile = VALUE\n",
		shortConf + "UseSyslog = yes\n":                        "f:4: knockd does not start with this line; expected a directive such as sequence = VALUE\n",
		shortConf + "[x]\nstart_command = y\n":                 "f:4: [x]: knockd does not start without a sequence in this section\n" + shortWarn,
		shortConf + "[]\n":                                     "f:4: write the first line of a section as [NAME]\n",
		shortConf + "[x] y\n":                                  "f:4: write the first line of a section as [NAME]\n",
		shortConf + "[short]\n":                                "f:4: section [short] appears twice; move its lines into the section at line 1\n",
		"sequence = 1\n" + shortConf:                           "f:1: expected [NAME] before the first line\n",
		shortConf + "#" + strings.Repeat("x", 4095) + "\n":     "f:4: longer than 4095 bytes, and knockd reads the rest as another line; shorten it\n",
		shortConf + "#" + strings.Repeat("x", 4094) + "\n":     shortBlock + shortRest + shortWarn,
		"[options]\nusesyslog\n":                               noSection,
		shortConf + "[a b]\nsequence = 1\nstart_command = x\n": shortBlock + shortRest + shortWarn + "f:4: [a b] is left out: \"h-a b\" is not a host name\n",
	} {
		expectConverted(t, "knockd", file, Options{Host: "h"}, want)
	}
}

// TestKnockdPorts: the ports of a profile are those that the command opens.
func TestKnockdPorts(t *testing.T) {
	const several = "the command opens several ports: "
	for command, want := range map[string]string{
		"iptables -I INPUT 1 -s %IP% -p tcp --dport 2222 -j ACCEPT":                                 "Port 2222",
		"iptables -I INPUT -p tcp --dport=2222 -s %IP% --jump ACCEPT":                               "Port 2222",
		"/usr/sbin/ip6tables-nft --insert INPUT -s %IP% --protocol tcp --destination-port 443":      "Port 443",
		"sudo -n iptables -A INPUT -s %IP% -p tcp --dport ssh -j ACCEPT":                            "Port 22",
		"iptables -A INPUT -s %IP% -p udp --dport 1194 -j ACCEPT":                                   "OpenPorts 1194/udp",
		"iptables -A INPUT -s %IP% -p tcp -m multiport --dports 22,6000:6007 -j ACCEPT":             "Port 22, OpenPorts 22/tcp 6000-6007/tcp, " + several + "22/tcp 6000-6007/tcp",
		"iptables -A INPUT -s %IP% -p tcp --dport 80 -j ACCEPT; iptables -A INPUT -p udp --dport 5": "Port 80, OpenPorts 80/tcp 5/udp, " + several + "80/tcp 5/udp",
		"iptables -C I -p tcp --dport 22 || iptables -A I -p tcp --dport 22 -j ACCEPT":              "Port 22",
		"iptables -D I -p tcp --dport 22 -j ACCEPT; iptables -A I -p tcp --dport 22 -j ACCEPT":      "Port 22",
		"iptables -D INPUT -p tcp --dport 22 -j DROP":                                               "Port 22",
		`sh -c "iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"`:                             "Port 22",
		`iptables -A INPUT -m comment --comment "a; --dport 99 'x'" -p tcp --dport 22`:              "Port 22",
		"iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT # --dport 99":                        "Port 22",
		"X=1 iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT && logger opened":                "Port 22",
		"iptables -A INPUT -s %IP% -p tcp -j ACCEPT":                                                "none",
		"iptables -A INPUT -s %IP% -p tcp ! --dport 25 -j ACCEPT":                                   "none",
		"iptables -A INPUT -s %IP% ! -p tcp --dport 25 -j ACCEPT":                                   "none",
		"iptables -A INPUT -s %IP% -p tcp --dport $PORT -j ACCEPT":                                  "none",
		"iptables -A INPUT -s %IP% -p tcp --dport imap -j ACCEPT":                                   "none",
		"iptables -A INPUT -s %IP% -p all --dport 22 -j ACCEPT":                                     "none",
		"iptables -A INPUT -s %IP% -p tcp --dport 22 -j LOG":                                        "none",
		"iptables -A INPUT -s %IP% -p tcp --dport '22":                                              "none",
		"echo iptables -A INPUT -p tcp --dport 22":                                                  "none",
		"systemctl start sshd": "none",
		"nft add rule inet filter input ip saddr %IP% tcp dport 2222 accept":                                         "Port 2222",
		"nft insert rule inet filter input ip saddr %IP% tcp dport { 22, 80-81 } accept":                             "Port 22, OpenPorts 22/tcp 80-81/tcp, " + several + "22/tcp 80-81/tcp",
		"nft 'add rule inet f i ip saddr %IP% tcp dport {ssh} counter accept; add rule inet f i udp dport 5 accept'": "Port 22, OpenPorts 22/tcp 5/udp, " + several + "22/tcp 5/udp",
		"nft add element inet filter clients '{ %IP% timeout 60s }'":                                                 "none",
		"nft add rule inet filter input tcp dport != 22 accept":                                                      "none",
		"ufw allow from %IP% to any port 22 proto tcp":                                                               "Port 22",
		"ufw insert 1 allow proto tcp from %IP% port 1024 to any port 22 comment 'port 99'":                          "Port 22",
		"ufw allow 22/tcp":                                  "Port 22",
		"ufw limit ssh/tcp":                                 "Port 22",
		"ufw allow from %IP% to any port 22":                "Port 22, OpenPorts 22/tcp 22/udp, " + several + "22/tcp 22/udp",
		"ufw allow OpenSSH":                                 "none",
		"knock_helper_ipt.sh --append -f %IP% --dstport 25": "Port 25",
	} {
		file := "[short]\nsequence = 7000,8001:udp\nstart_command = " + command + "\nstop_command = x\n"
		imports, warnings, err := Convert("knockd", "f", []byte(file), Options{Host: "h"})
		if err != nil {
			t.Errorf("%s: %v", command, err)
			continue
		}
		var got []string
		for line := range strings.Lines(string(imports[0].Block)) {
			if line = strings.TrimSpace(line); strings.Contains(line, "Port") {
				got = append(got, line)
			}
		}
		for _, w := range warnings {
			w = strings.TrimPrefix(w, "f:3: [short] ")
			if w+"\n" == noPort {
				w = "none"
			}
			got = append(got, w)
		}
		if g := strings.Join(got, ", "); g != want {
			t.Errorf("%s: got %s, want %s", command, g, want)
		}
	}
}

// TestKnockdSectionsThatClose: a section that only closes ports does not become a profile.
func TestKnockdSectionsThatClose(t *testing.T) {
	for command, closes := range map[string]bool{
		"iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT":                              true,
		"iptables --delete INPUT -p tcp --dport 22 -j ACCEPT":                                true,
		"iptables -A INPUT -s %IP% -p tcp --dport 22 -j DROP":                                true,
		"knock_add -x -c INPUT -p tcp -d 22 -f %IP%":                                         true,
		"nft delete element inet filter clients { %IP% }":                                    true,
		"nft add rule inet filter input ip saddr %IP% tcp dport 22 drop":                     true,
		"ufw delete allow from %IP% to any port 22 proto tcp":                                true,
		"ufw --force delete allow 22/tcp":                                                    true,
		"ufw deny from %IP%":                                                                 true,
		"ufw status":                                                                         false,
		"iptables -L":                                                                        false,
		"nft list ruleset":                                                                   false,
		"systemctl stop sshd":                                                                false,
		"iptables -D I -p tcp --dport 22 -j DROP; ufw delete allow 22/tcp":                   false,
		"nft delete element inet f c { %IP% }; nft add element inet f c { %IP% timeout 1m }": false,
	} {
		e := commandEffect(command)
		if e.onlyCloses() != closes || !closes && e.opens != strings.Contains(command, ";") {
			t.Errorf("%s: %+v, want only closes %t", command, e, closes)
		}
	}
	const onlyCloses = "f:1: [close] only closes ports, so it is not imported; to import it, give its name\n"
	both := strings.Replace(shortConf, "short", "close", 1)
	both = strings.Replace(both, "allow", "delete allow", 1)
	both = strings.Replace(both, "7000,8001:udp", "9000,8000", 1) + shortConf
	expectConverted(t, "knockd", both, Options{Host: "h"}, shortBlock+shortRest+
		"f:6: [short] "+stayWarning+onlyCloses)
	shared := strings.Replace(both, "9000,8000", "9000 , 7000:TCP", 1)
	expectConverted(t, "knockd", shared, Options{Host: "h"}, shortBlock+shortRest+
		"f:6: [short] "+stayWarning+onlyCloses+"f:2: [close] shares knocks with [short], so a lost knock delays a login; give it other ports\n")
}

// TestKnockdNames: the profile that opens 22/tcp gets the plain name.
func TestKnockdNames(t *testing.T) {
	other := strings.NewReplacer("short", "web", "port 22", "port 80", "7000", "1").Replace(shortConf)
	for file, want := range map[string]string{
		shortConf + other: "h h-web",
		other + shortConf: "h h-web",
		"[once]\none_time_sequences = /x\ncommand = x\n" + other + shortConf: "h h-web",
		"[once]\none_time_sequences = /x\ncommand = x\n" + other:             "h",
		shortConf + "tcpflags = fin\n" + other:                               "h",
		other:                                                                "h",
	} {
		imports, _, err := Convert("knockd", "f", []byte(file), Options{Host: "h"})
		var names []string
		for _, i := range imports {
			names = append(names, i.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}

// TestImportErrorsDoNotQuoteSequences: an error or a warning about a sequence does not contain
// it, because errors end up in logs.
func TestImportErrorsDoNotQuoteSequences(t *testing.T) {
	for program, file := range map[string]string{
		"knockd":      strings.Replace(shortConf, "7000", "43210x", 1),
		"portknocker": strings.Replace(homeINI, "111:TCP", "43210:TPC", 1),
	} {
		o := Options{}
		if program == "knockd" {
			o.Host = "h"
		}
		if got := converted(program, file, o); strings.Contains(got, "43210") || !strings.Contains(got, "knock 1 of") {
			t.Errorf("%s: %s", program, got)
		}
	}
}

func FuzzKnockd(f *testing.F) {
	for _, file := range []string{debianKnockd, udpKnockd, manualKnockd, ownKnockd, shortConf} {
		f.Add([]byte(file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		imports, warnings, err := Convert("knockd", "f", data, Options{Host: "vps.example"})
		checkImports(t, data, imports, warnings, err)
	})
}

func FuzzCommandEffect(f *testing.F) {
	f.Add(`sudo sh -c "iptables -I INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"; ufw allow 22/tcp`)
	f.Add(`nft 'add rule inet f i tcp dport { 22, 80-81 } accept; delete element inet f s { %IP% }' && knock_add -x -d 443`)
	f.Fuzz(func(t *testing.T, line string) {
		e := commandEffect(line)
		if len(e.opened) > 0 && !e.opens || len(e.closed) > 0 && !e.closes || e.stays && !e.opens {
			t.Errorf("%q: %+v", line, e)
		}
	})
}
