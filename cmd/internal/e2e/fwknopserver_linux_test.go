package e2e

import (
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

var fwknopd = lab.Firewall{Name: "fwknop", Programs: []string{"fwknopd", "nft"}, Async: true}

// fwknopSettings are those of a profile with new keys, and more.
func fwknopSettings(t testing.TB, more ...string) []string {
	t.Helper()
	return append([]string{
		"Scheme fwknop", "KeyFile " + secret(t, "key", "portknock's passphrase"),
		"HMACKeyFile " + secret(t, "hmac", "base64:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
	}, more...)
}

// newFwknop is a rig with a guard that an fwknopd opens, both from the emitted
// file. It runs in the foreground, where its log is to be had.
func newFwknop(t testing.TB, more ...string) (*rig, *lab.Daemon) {
	t.Helper()
	r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t, more...)...)
	text, err := os.ReadFile(r.rules)
	if err != nil {
		t.Fatal(err)
	}
	header(t, r.Server, r.rules, "check")
	load := headerLine(t, r.rules, "load")
	r.Server.Shell(t, load[strings.LastIndex(load, " && ")+len(" && "):]) // the guard
	return r, startFwknopd(t, r.Server, string(text))
}

// startFwknopd runs an fwknopd with what was emitted as its access.conf, and the
// fwknopd.conf that is in there.
func startFwknopd(t testing.TB, h *lab.Host, text string) *lab.Daemon {
	t.Helper()
	var conf strings.Builder
	for _, line := range regexp.MustCompile(`(?m)^#; (.*)$`).FindAllStringSubmatch(text, -1) {
		conf.WriteString(line[1] + "\n")
	}
	return h.Fwknopd(t, text, conf.String())
}

// TestFwknopJourney is the whole road: real rules, a real fwknopd, a real ssh, by
// each way that a packet can travel.
func TestFwknopJourney(t *testing.T) {
	for _, tt := range []struct {
		name     string
		settings []string
		web      bool
	}{
		{"udp", nil, false},
		{"random", []string{"SPAPort random"}, false},
		{"tcp", []string{"SPAProtocol tcp", "SPATimeout 20"}, false},
		{"http", []string{"SPAProtocol http", "SPAPort 80", "HMACDigest sha3-512", "SPAMode ctr"}, true},
		{"command", []string{"AllowIPCommand echo 192.0.2.2"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, _ := newFwknop(t, tt.settings...)
			if tt.web {
				r.Server.Listen(t, 80)
			}
			r.expect(t, r.Client, lab.Dropped)
			if got := r.ssh(t, "echo in"); got != "in\n" {
				t.Fatalf("ssh says %q", got)
			}
			r.expect(t, r.Client, lab.Open)
			r.expect(t, r.Attacker, lab.Dropped)
		})
	}
}

// TestFwknopLoads: the lines of the header, also a second time, with other keys.
func TestFwknopLoads(t *testing.T) {
	for name, more := range map[string][]string{"udp": nil, "tcp": {"SPAProtocol tcp"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t, more...)...)
			header(t, r.Server, r.rules, "load")
			if got := r.ssh(t, "echo in"); got != "in\n" {
				t.Fatalf("ssh says %q", got)
			}
			if out := header(t, r.Server, r.rules, "watch"); !strings.Contains(out, r.Client.Addr(lab.IPv4).String()) {
				t.Errorf("watching shows\n%s", out)
			}
			old := r.profile
			r.profile = secret(t, "config", append([]string{"Host vps", "HostName " + r.Server.Addr(lab.IPv4).String(), "Scheme fwknop",
				"KeyFile " + secret(t, "key", "another passphrase"), "HMACKeyFile " + secret(t, "hmac", "and another")}, more...)...)
			again := emit(t, r.Server, r.Firewall, r.profile)
			// Who has the file under one name loads the new one by the same line.
			text, err := os.ReadFile(again)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(r.rules, text, 0o600); err != nil {
				t.Fatal(err)
			}
			r.Server.Shell(t, strings.ReplaceAll(headerLine(t, again, "load"), again, r.rules))
			r.Attacker.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "vps", "22")
			header(t, r.Server, r.rules, "undo")
			header(t, r.Server, r.rules, "load")
			r.expect(t, r.Client, lab.Dropped)
			if out, err := r.Client.Try("portknock", "-c", old, "-o", "ConnectTimeout=1", "vps", "22"); err == nil {
				t.Errorf("the old keys still open: %s", out)
			}
			if got := sshOutput(t, r.Client, "-F", r.sshConfig(t, r.profile), "vps", "echo in"); got != "in\n" {
				t.Errorf("ssh says %q", got)
			}
			header(t, r.Server, r.rules, "undo")
			r.expect(t, r.Attacker, lab.Open)
		})
	}
}

// TestDaemonFails: where the daemon that is to open the port cannot run, to load the
// rules closes nothing and says so.
func TestDaemonFails(t *testing.T) {
	for _, tt := range []struct {
		firewall lab.Firewall
		settings []string
		text, by string
	}{
		{fwknopd, fwknopSettings(t), "PCAP_INTF eth0;", "PCAP_INTF nowhere;"},
		{lab.Firewall{Name: "knockd", Programs: []string{"knockd", "nft"}, Async: true}, []string{"Sequence 7001/udp 8003"}, "[options]\n", "[options]\n\tInterface = nowhere\n"},
	} {
		t.Run(tt.firewall.Name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, tt.firewall, lab.IPv4, tt.settings...)
			text, err := os.ReadFile(r.rules)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(text), tt.text, tt.by, 1)
			if changed == string(text) {
				t.Fatalf("no %q in\n%s", tt.text, text)
			}
			if err := os.WriteFile(r.rules, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := r.Server.Try("sh", "-c", headerLine(t, r.rules, "load")); err == nil || out == "" {
				t.Errorf("%v, %q", err, out)
			}
			r.expect(t, r.Client, lab.Open)
		})
	}
}

// TestFwknopReplay: a packet that somebody has overheard opens nothing, wherever
// it is sent from.
func TestFwknopReplay(t *testing.T) {
	t.Parallel()
	r, daemon := newFwknop(t)
	capture := r.Client.Capture(t)
	r.Client.Run(t, "portknock", "knock", "-c", r.profile, "vps")
	var packet []byte
	for _, p := range capture.Packets(t) {
		if p.Out && p.Proto == unix.IPPROTO_UDP && p.Dst.Port() == 62201 {
			packet = p.Payload
		}
	}
	daemon.Log.Await(t, "CMD_CYCLE_OPEN", 1)
	send := func(payload []byte) {
		var conn net.Conn
		var err error
		r.Attacker.Do(func() {
			if conn, err = net.Dial("udp4", addrPort(r, 62201).String()); err == nil {
				_, err = conn.Write(payload)
				_ = conn.Close()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	send(packet)
	daemon.Log.Await(t, "Replay detected", 1)
	// And one letter of base64 turned into another.
	if packet[50]++; packet[50] > 'z' || packet[50] < 'b' {
		packet[50] = 'a'
	}
	send(packet)
	daemon.Log.Await(t, "HMAC_COMPAREFAIL", 1)
	r.expect(t, r.Attacker, lab.Dropped)
}

// TestFwknopClient: fwknop's own client opens a server of ours.
func TestFwknopClient(t *testing.T) {
	t.Parallel()
	lab.Require(t, "fwknop")
	r, _ := newFwknop(t, "HMACDigest sha512")
	value := func(name string) string {
		text, err := os.ReadFile(r.rules)
		if err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile(`(?m)^` + name + ` +(\S+)$`).FindStringSubmatch(string(text))[1]
	}
	addr := r.Server.Addr(lab.IPv4).String()
	r.Client.Run(t, "env", "HOME="+t.TempDir(), "fwknop", "--no-rc-file", "-D", addr, "-A", "tcp/22", "-a", r.Client.Addr(lab.IPv4).String(),
		"-U", "alice", "--key-base64-rijndael", value("KEY_BASE64"), "--key-base64-hmac", value("HMAC_KEY_BASE64"), "--hmac-digest-type", "sha512")
	for end := time.Now().Add(10 * time.Second); r.probe(t, r.Client) != lab.Open; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not open")
		}
	}
	r.expect(t, r.Attacker, lab.Dropped)
}

// TestFwknopOwnRules: an fwknopd as people run it, which makes rules by itself, with
// what the header says to leave out.
func TestFwknopOwnRules(t *testing.T) {
	t.Parallel()
	lab.Require(t, "iptables")
	r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t)...)
	r.Server.Shell(t, "iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT && iptables -A INPUT -p tcp --dport 22 -j DROP")
	r.Server.Fwknopd(t, r.Server.Shell(t, "grep -v ^CMD_CYCLE '"+r.rules+"'"), "PCAP_INTF eth0;\n")
	r.expect(t, r.Client, lab.Dropped)
	if got := r.ssh(t, "echo in"); got != "in\n" {
		t.Fatalf("ssh says %q", got)
	}
	r.expect(t, r.Attacker, lab.Dropped)
}

// TestFwknopHeldUp: where connections to its port get no answer, one after the
// other is tried, none for long enough to have its SYN sent twice. A busy machine
// may be late to end one, but not each, and not after the next has begun.
func TestFwknopHeldUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t, "SPAProtocol tcp", "ConnectTimeout 5")...)
	r.Server.Run(t, "nft", "add table inet shut; add chain inet shut in { type filter hook input priority 0; }; add rule inet shut in tcp dport { 22, 62201 } drop")
	capture := r.Client.Capture(t)
	began := time.Now()
	out, err := r.Client.Try("portknock", "-c", r.profile, "vps", "22")
	if took := time.Since(began); err == nil || took < 5*time.Second || took > 30*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	if !strings.Contains(out, "cannot knock at "+r.Server.Addr(lab.IPv4).String()+": knock 1 of 1: i/o timeout") {
		t.Errorf("it says %q", out)
	}
	var from []uint16 // the ports of the SYNs
	for _, p := range capture.Packets(t) {
		if p.Out && p.Dst.Port() == 62201 {
			from = append(from, p.Src.Port())
		}
	}
	connections := slices.Compact(slices.Clone(from))
	once := 0
	for _, port := range connections[:max(0, len(connections)-1)] { // ConnectTimeout may have ended the last
		if i := slices.Index(from, port); from[i+1] != port {
			once++
		}
	}
	if len(connections) < 3 || once == 0 {
		t.Errorf("of %d connections %d have sent one SYN", len(connections), once)
	}
	slices.Sort(connections)
	if n := len(connections); len(slices.Compact(connections)) != n {
		t.Errorf("a SYN came again after the next connection's: %v", from)
	}
}
