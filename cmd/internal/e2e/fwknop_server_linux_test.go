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

// fwknopd stands for the format fwknop in tests that run for a firewall.
var fwknopd = lab.Firewall{Name: "fwknop", Programs: []string{"fwknopd", "nft"}, Async: true}

// fwknopSettings returns the settings of a profile for fwknop with keys in new files, and
// more settings.
func fwknopSettings(t testing.TB, more ...string) []string {
	t.Helper()
	return append([]string{
		"Scheme fwknop", "KeyFile " + lab.File(t, "key", "portknock's passphrase"),
		"HMACKeyFile " + lab.File(t, "hmac", "base64:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
	}, more...)
}

// newFwknopRig makes a rig with a guard and an fwknopd that opens the guard. Both use the
// emitted file. The fwknopd runs in the foreground, so that a test can read its log.
func newFwknopRig(t testing.TB, more ...string) (*rig, *lab.Daemon) {
	t.Helper()
	r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t, more...)...)
	r.runHeaderLine(t, "test")
	load := lab.RulesLine(t, r.rules, "load")
	r.server.Shell(t, load[strings.LastIndex(load, " && ")+len(" && "):]) // the last command loads the guard
	return r, startFwknopd(t, r.server, lab.ReadFile(t, r.rules))
}

// startFwknopd runs an fwknopd. The emitted text is its access.conf, and contains its
// fwknopd.conf in the lines that start with "#; ".
func startFwknopd(t testing.TB, h *lab.Host, text string) *lab.Daemon {
	t.Helper()
	var conf strings.Builder
	for _, line := range regexp.MustCompile(`(?m)^#; (.*)$`).FindAllStringSubmatch(text, -1) {
		conf.WriteString(line[1] + "\n")
	}
	return h.Fwknopd(t, text, conf.String())
}

// TestSSHThroughFwknopd: ssh connects to a server with a real fwknopd and emitted rules,
// for each protocol and port that can carry the packet.
func TestSSHThroughFwknopd(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings []string
		web      bool // a server listens on port 80, to which the packet goes
	}{
		{"udp", nil, false},
		{"random port", []string{"SPAPort random"}, false},
		{"tcp", []string{"SPAProtocol tcp", "SPATimeout 20"}, false},
		{"http", []string{"SPAProtocol http", "SPAPort 80", "HMACDigest sha3-512", "SPAMode ctr"}, true},
		{"AllowIPCommand", []string{"AllowIPCommand echo 192.0.2.2"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, _ := newFwknopRig(t, tt.settings...)
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

// TestFwknopHeaderLoadsAndReplacesRules: the commands in the header load the rules. A
// second load replaces these rules by rules with other keys.
func TestFwknopHeaderLoadsAndReplacesRules(t *testing.T) {
	t.Parallel()
	for name, more := range map[string][]string{"udp": nil, "tcp": {"SPAProtocol tcp"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newGuardedRig(t, fwknopd, lab.IPv4, fwknopSettings(t, more...)...)
			// fwknopd starts its TCP server as another process, which may listen later.
			awaitServer := func(want lab.State) {
				if name == "tcp" {
					r.awaitPort(t, time.Minute, r.client, 62201, want)
				}
			}
			awaitServer(lab.Open)
			r.login(t)
			if out := r.server.Run(t, "nft", "list", "set", "inet", "portknock", "open4_vps"); !strings.Contains(out, r.client.Addr(lab.IPv4).String()) {
				t.Errorf("the set of admitted addresses is\n%s", out)
			}
			old := r.profile
			r.profile = r.vpsProfile(t, append([]string{"Scheme fwknop",
				"KeyFile " + lab.File(t, "key", "another passphrase"), "HMACKeyFile " + lab.File(t, "hmac", "and another")}, more...)...)
			r.config = r.sshConfig(t, r.profile)
			// The new rules are in the same file, so the same command loads them.
			emitRules(t, r.server, r.firewall, r.profile, "--output", r.rules)
			r.runHeaderLine(t, "load")
			awaitServer(lab.Open)
			r.knockAndWait(t, r.attacker)
			r.runHeaderLine(t, "unload")
			awaitServer(lab.Refused)
			r.runHeaderLine(t, "load")
			awaitServer(lab.Open)
			r.expect(t, r.client, lab.Dropped)
			if out, err := r.client.Try("portknock", "-c", old, "-o", "ConnectTimeout=1", "vps", "22"); err == nil {
				t.Errorf("the old keys still open port 22: %s", out)
			}
			r.login(t)
			r.runHeaderLine(t, "unload")
			r.expect(t, r.attacker, lab.Open)
		})
	}
}

// TestFwknopReplayedPacketOpensNothing: an attacker sends a captured packet again from
// another address, first unchanged and then with one letter changed. Neither packet opens
// the port.
func TestFwknopReplayedPacketOpensNothing(t *testing.T) {
	t.Parallel()
	r, daemon := newFwknopRig(t)
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
	// Then one letter of the packet's base64 is changed.
	if packet[50]++; packet[50] > 'z' || packet[50] < 'b' {
		packet[50] = 'a'
	}
	send(packet)
	daemon.Log.Await(t, "HMAC_COMPAREFAIL", 1)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestFwknopClientOpensOurServer: fwknop's own client opens a server that has our rules.
func TestFwknopClientOpensOurServer(t *testing.T) {
	t.Parallel()
	lab.Require(t, "fwknop")
	r, _ := newFwknopRig(t, "HMACDigest sha512")
	value := func(name string) string {
		return regexp.MustCompile(`(?m)^` + name + ` +(\S+)$`).FindStringSubmatch(lab.ReadFile(t, r.rules))[1]
	}
	if output, err := fwknopClient(r.client, t.TempDir(), "--no-rc-file", "-D", r.addr().String(), "-A", "tcp/22",
		"-a", r.client.Addr(lab.IPv4).String(), "-U", "alice", "--key-base64-rijndael", value("KEY_BASE64"),
		"--key-base64-hmac", value("HMAC_KEY_BASE64"), "--hmac-digest-type", "sha512"); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	r.expectSoon(t, r.client, 22, lab.Open)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestSSHThroughFwknopdThatMakesItsOwnRules: many servers run an fwknopd that makes its
// own rules. It works with the emitted file without the lines that the header names.
func TestSSHThroughFwknopdThatMakesItsOwnRules(t *testing.T) {
	t.Parallel()
	lab.Require(t, "iptables")
	r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t)...)
	r.server.Shell(t, "iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT && iptables -A INPUT -p tcp --dport 22 -j DROP")
	r.server.Fwknopd(t, r.server.Shell(t, "grep -v ^CMD_CYCLE '"+r.rules+"'"), "PCAP_INTF eth0;\n")
	r.expect(t, r.client, lab.Dropped)
	r.login(t)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestFwknopUnansweredTCPIsRetriedBeforeSYNRepeats: if a TCP connection to fwknopd's port
// gets no answer, portknock tries another connection before the kernel repeats the SYN.
// On a busy machine portknock may end a connection too late, but not every connection,
// and not after the next connection has begun.
func TestFwknopUnansweredTCPIsRetriedBeforeSYNRepeats(t *testing.T) {
	t.Parallel()
	r := newRig(t, fwknopd, lab.IPv4, fwknopSettings(t, "SPAProtocol tcp", "ConnectTimeout 5")...)
	r.server.Run(t, "nft", `add table inet shut; add chain inet shut in { type filter hook input priority 0; };
		add rule inet shut in tcp dport { 22, 62201 } drop`)
	capture := r.client.Capture(t)
	began := time.Now()
	out, err := r.client.Try("portknock", "-c", r.profile, "vps", "22")
	if took := time.Since(began); err == nil || took < 5*time.Second || took > 30*time.Second {
		t.Errorf("portknock ended after %v: %v; want an error after 5 s to 30 s", took, err)
	}
	if !strings.Contains(out, "cannot send the knocks to "+r.addr().String()+": knock 1 of 1: i/o timeout") {
		t.Errorf("portknock prints %q, want the error of the knock", out)
	}
	var from []uint16 // the source ports of the SYNs
	for _, p := range capture.Packets(t) {
		if p.Out && p.Dst.Port() == 62201 {
			from = append(from, p.Src.Port())
		}
	}
	connections := slices.Compact(slices.Clone(from))
	once := 0
	for _, port := range connections[:max(0, len(connections)-1)] { // ConnectTimeout may have ended the last connection
		if i := slices.Index(from, port); from[i+1] != port {
			once++
		}
	}
	if len(connections) < 3 || once == 0 {
		t.Errorf("portknock made %d connections, and %d sent one SYN; want at least 3 and 1", len(connections), once)
	}
	slices.Sort(connections)
	if n := len(connections); len(slices.Compact(connections)) != n {
		t.Errorf("a SYN was repeated after the SYN of the next connection: source ports %v", from)
	}
}
