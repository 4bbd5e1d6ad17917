package e2e

import (
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
		"Scheme fwknop", "KeyFile " + lab.File(t, "key", "portknock's passphrase"),
		"HMACKeyFile " + lab.File(t, "hmac", "base64:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
	}, more...)
}

// newFwknop is a rig with a guard that an fwknopd opens, both from the emitted
// file. It runs in the foreground, where its log is to be had.
func newFwknop(t testing.TB, more ...string) (*rig, *lab.Daemon) {
	t.Helper()
	r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t, more...)...)
	r.header(t, "check")
	load := lab.RulesLine(t, r.rules, "load")
	r.server.Shell(t, load[strings.LastIndex(load, " && ")+len(" && "):]) // the guard
	return r, startFwknopd(t, r.server, lab.ReadFile(t, r.rules))
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
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings []string
		web      bool // a web server answers where the packet goes
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
				r.server.Listen(t, 80)
			}
			r.expect(t, r.client, lab.Dropped)
			r.login(t)
			r.expect(t, r.client, lab.Open)
			r.expect(t, r.attacker, lab.Dropped)
		})
	}
}

// TestFwknopLoads: the lines of the header, also a second time, with other keys.
func TestFwknopLoads(t *testing.T) {
	t.Parallel()
	for name, more := range map[string][]string{"udp": nil, "tcp": {"SPAProtocol tcp"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newGuarded(t, fwknopd, lab.IPv4, fwknopSettings(t, more...)...)
			r.login(t)
			if out := r.header(t, "watch"); !strings.Contains(out, r.client.Addr(lab.IPv4).String()) {
				t.Errorf("watching shows\n%s", out)
			}
			old := r.profile
			r.profile = r.vps(t, append([]string{"Scheme fwknop",
				"KeyFile " + lab.File(t, "key", "another passphrase"), "HMACKeyFile " + lab.File(t, "hmac", "and another")}, more...)...)
			r.config = r.sshConfig(t, r.profile)
			// New rules in the same file are loaded by the same line.
			emit(t, r.server, r.firewall, r.profile, "--output", r.rules)
			r.header(t, "load")
			r.knockAndWait(t, r.attacker)
			r.header(t, "undo")
			r.header(t, "load")
			r.expect(t, r.client, lab.Dropped)
			if out, err := r.client.Try("portknock", "-c", old, "-o", "ConnectTimeout=1", "vps", "22"); err == nil {
				t.Errorf("the old keys still open: %s", out)
			}
			r.login(t)
			r.header(t, "undo")
			r.expect(t, r.attacker, lab.Open)
		})
	}
}

// TestFwknopReplay: a packet that an attacker has overheard opens nothing, whatever
// address it is sent from.
func TestFwknopReplay(t *testing.T) {
	t.Parallel()
	r, daemon := newFwknop(t)
	capture := r.client.Capture(t)
	r.client.Run(t, "portknock", "knock", "-c", r.profile, "vps")
	var packet []byte
	for _, p := range capture.Packets(t) {
		if p.Out && p.Proto == unix.IPPROTO_UDP && p.Dst.Port() == 62201 {
			packet = p.Payload
		}
	}
	daemon.Log.Await(t, "CMD_CYCLE_OPEN", 1)
	send := func(payload []byte) {
		if _, err := r.attacker.Dial(t, "udp4", r.port(62201).String()).Write(payload); err != nil {
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
	r.expect(t, r.attacker, lab.Dropped)
}

// TestFwknopClient: fwknop's own client opens a server of ours.
func TestFwknopClient(t *testing.T) {
	t.Parallel()
	lab.Require(t, "fwknop")
	r, _ := newFwknop(t, "HMACDigest sha512")
	value := func(name string) string {
		return regexp.MustCompile(`(?m)^` + name + ` +(\S+)$`).FindStringSubmatch(lab.ReadFile(t, r.rules))[1]
	}
	if said, err := fwknopClient(r.client, t.TempDir(), "--no-rc-file", "-D", r.addr().String(), "-A", "tcp/22",
		"-a", r.client.Addr(lab.IPv4).String(), "-U", "alice", "--key-base64-rijndael", value("KEY_BASE64"),
		"--key-base64-hmac", value("HMAC_KEY_BASE64"), "--hmac-digest-type", "sha512"); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	r.expectSoon(t, r.client, 22, lab.Open)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestFwknopOwnRules: an fwknopd as people run it, which makes rules by itself, with
// what the header says to leave out.
func TestFwknopOwnRules(t *testing.T) {
	t.Parallel()
	lab.Require(t, "iptables")
	r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t)...)
	r.server.Shell(t, "iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT && iptables -A INPUT -p tcp --dport 22 -j DROP")
	r.server.Fwknopd(t, r.server.Shell(t, "grep -v ^CMD_CYCLE '"+r.rules+"'"), "PCAP_INTF eth0;\n")
	r.expect(t, r.client, lab.Dropped)
	r.login(t)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestFwknopHeldUp: where connections to its port get no answer, one after the
// other is tried, none for long enough to have its SYN sent twice. A busy machine
// may be late to end one, but not each, and not after the next has begun.
func TestFwknopHeldUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t, "SPAProtocol tcp", "ConnectTimeout 5")...)
	r.server.Run(t, "nft", `add table inet shut; add chain inet shut in { type filter hook input priority 0; };
		add rule inet shut in tcp dport { 22, 62201 } drop`)
	capture := r.client.Capture(t)
	began := time.Now()
	out, err := r.client.Try("portknock", "-c", r.profile, "vps", "22")
	if took := time.Since(began); err == nil || took < 5*time.Second || took > 30*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	if !strings.Contains(out, "cannot send the knocks to "+r.addr().String()+": knock 1 of 1: i/o timeout") {
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
