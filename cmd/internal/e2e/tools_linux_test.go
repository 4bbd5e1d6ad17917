package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

// TestKnockWaitOpensPortForTools: after portknock knock --wait, programs work that do not read ssh's
// configuration.
func TestKnockWaitOpensPortForTools(t *testing.T) {
	t.Parallel()
	lab.Require(t, "ssh-keyscan", "puttygen", "plink", "pscp", "curl")
	for _, tt := range []struct{ name, port, command, want string }{
		{"ssh-keyscan", "", "ssh-keyscan -t ed25519 $ADDR 2>/dev/null | cut -d ' ' -f 2", "ssh-ed25519\n"},
		{"plink", "", "plink -batch -hostkey $HOSTKEY -i $KEY root@$ADDR echo in", "in\n"},
		{"pscp", "", "pscp -batch -q -hostkey $HOSTKEY -i $KEY root@$ADDR:$KEY copy && cmp $KEY copy && echo same", "same\n"},
		{"curl", " 443", "curl -s http://$ADDR:443/", "hello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newGuardedRig(t, nftables, lab.IPv4, threeKnocks, "OpenPorts 22 443")
			r.server.Serve(t, 443, func(c net.Conn) {
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nhello")
			})
			dir := t.TempDir()
			key := filepath.Join(dir, "key.ppk")
			r.client.Run(t, "puttygen", r.sshd.Key(), "-O", "private", "-o", key)
			fingerprint := strings.Fields(r.server.Shell(t, "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | ssh-keygen -l -f -"))
			r.expect(t, r.client, lab.Dropped)
			r.expectPort(t, r.client, 443, lab.Dropped)

			c := r.client.Command("sh", "-c", "portknock knock --wait -c $PROFILE vps"+tt.port+" && "+tt.command)
			c.Dir = dir
			c.Env = append(c.Env, "HOME="+dir, "PROFILE="+r.profile, "ADDR="+r.addr().String(), "KEY="+key, "HOSTKEY="+fingerprint[1])
			out, err := c.CombinedOutput()
			// plink prints with a carriage return.
			if got := strings.ReplaceAll(string(out), "\r", ""); err != nil || got != tt.want {
				t.Errorf("%v; the output is %q, want %q", err, got, tt.want)
			}
		})
	}
}

// TestKnockSaysWhatItHasSentOnTerminal: on a terminal, knock says how many knocks have left, and to
// where, but not to which ports.
func TestKnockSaysWhatItHasSentOnTerminal(t *testing.T) {
	t.Parallel()
	lab.Require(t, "script")
	r := newDefaultRig(t)
	addr := r.addr().String()
	for _, tt := range []struct{ args, want string }{
		{"", "portknock: sent 3 knocks to " + addr + "\r\n"},
		{"-q", ""},
		{"-o Repeat=2", "portknock: sent 12 knocks to " + addr + "\r\n"}, // each twice, and all once more
	} {
		out := r.client.Run(t, "script", "-qec", "portknock knock -c "+r.profile+" "+tt.args+" vps", "/dev/null")
		if out != tt.want {
			t.Errorf("knock %s prints %q, want %q", tt.args, out, tt.want)
		}
	}
	out := r.client.Run(t, "script", "-qec", "portknock knock --wait -c "+r.profile+" vps", "/dev/null")
	if !strings.HasPrefix(out, "portknock: sent ") || !strings.HasSuffix(out, " knocks to "+addr+"; the port answers\r\n") {
		t.Errorf("knock --wait prints %q", out)
	}
}

// scriptTools are the programs with which a script of sequence --as sh can send knocks. Each has the
// name under which the script finds it, and the names of the program itself.
var scriptTools = []struct {
	name, program string
	udp, ipv6     bool
}{
	{"bash", "bash", true, true},
	{"nc", "nc.openbsd", true, true},
	{"nc", "nc.traditional", true, false},
	{"nc", "ncat", true, true},
	{"ncat", "ncat", true, true},
	{"busybox", "busybox", false, true}, // that of Debian does not know UDP
}

// onlyTool returns a folder for PATH that has one of the scriptTools and what every system has.
func onlyTool(t testing.TB, name, program string) string {
	t.Helper()
	dir := t.TempDir()
	for link, target := range map[string]string{"sh": "dash", "cat": "cat", "date": "date", "sleep": "sleep", name: program} {
		path, err := exec.LookPath(target)
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, link))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tryKnockScript runs a script until done returns true, at most for two minutes: on a busy machine, a
// program may not start in the time that the script gives it. If patient is true, the script gives its
// programs much more time from the third run on.
func (r *rig) tryKnockScript(t testing.TB, path string, patient bool, done func() bool) {
	t.Helper()
	script := lab.File(t, "knock.sh", r.client.Run(t, "portknock", "sequence", "--as", "sh", "-c", r.profile, "vps"))
	for n, began := 0, time.Now(); time.Since(began) < 2*time.Minute; n++ {
		if patient && n == 2 {
			lab.EditFile(t, script, "sleep 0.7 ", "sleep 10 ")
		}
		if out, err := r.client.Try("env", "-i", "PATH="+path, "sh", script); err != nil || out != "" {
			t.Fatalf("the script: %v\n%s", err, out)
		}
		if done() {
			return
		}
	}
}

// TestKnockScript: a script of sequence --as sh opens the port with each program that can send knocks.
// It sends each knock exactly once, also if nothing answers.
func TestKnockScript(t *testing.T) {
	t.Parallel()
	lab.Require(t, "dash", "bash", "nc.openbsd", "nc.traditional", "ncat", "busybox")
	for _, tool := range scriptTools {
		for _, family := range lab.Families {
			if family == lab.IPv6 && !tool.ipv6 {
				continue
			}
			t.Run(fmt.Sprintf("%s=%s/%v", tool.name, tool.program, family), func(t *testing.T) {
				t.Parallel()
				knocks := "7001/tcp 8003/udp 9005/tcp"
				if !tool.udp {
					knocks = "7001/tcp 8003/tcp 9005/tcp"
				}
				r := newRig(t, nftables, family, "Sequence "+knocks, "KnockTimeout 1m")
				r.emitRules(t, "--policy", "drop")
				r.runHeaderLine(t, "load")
				r.expect(t, r.client, lab.Dropped)
				capture, packets := r.client.Capture(t), 0
				var sent []string
				// ncat needs ten times as long to start as the other programs. After more than a
				// second, the kernel sends a SYN again.
				slow := tool.program == "ncat"
				r.tryKnockScript(t, onlyTool(t, tool.name, tool.program), slow, func() bool {
					sent = nil
					all := capture.Packets(t)
					for _, p := range all[packets:] {
						name := map[uint8]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp"}[p.Proto]
						if p.Out && name != "" {
							sent = append(sent, fmt.Sprintf("%d/%s", p.Dst.Port(), name))
						}
					}
					packets = len(all)
					if slow {
						sent = slices.Compact(sent)
					}
					return strings.Join(sent, " ") == knocks
				})
				if got := strings.Join(sent, " "); got != knocks {
					t.Fatalf("the script sends %s, want %s", got, knocks)
				}
				r.expect(t, r.client, lab.Open)
			})
		}
	}
}

// TestKnockScriptSendsToken: a script of sequence --as sh can send a token, whose bytes have any value.
func TestKnockScriptSendsToken(t *testing.T) {
	t.Parallel()
	lab.Require(t, "dash", "bash", "nc.openbsd", "nc.traditional", "ncat")
	for _, tool := range scriptTools {
		if !tool.udp {
			continue
		}
		t.Run(tool.name+"="+tool.program, func(t *testing.T) {
			t.Parallel()
			r := newGuardedRig(t, nftables, lab.IPv4, "Scheme token", "Period 1d", keyFileSetting(t))
			r.expect(t, r.client, lab.Dropped)
			r.tryKnockScript(t, onlyTool(t, tool.name, tool.program), true, func() bool {
				return r.client.Probe(t, r.port(lab.GuardedPort)) == lab.Open
			})
			r.expect(t, r.client, lab.Open)
		})
	}
}

// TestKnockScriptErrors: a script of sequence --as sh says what is missing, and that its knocks have
// expired. It has no faults that shellcheck knows.
func TestKnockScriptErrors(t *testing.T) {
	t.Parallel()
	lab.Require(t, "dash", "shellcheck")
	client := lab.NewHost(t, "client")
	profile := vpsProfile(t, "HostName 192.0.2.1", "Scheme token", "Period 1d", keyFileSetting(t))
	old := client.Run(t, "portknock", "sequence", "--as", "sh", "--at", "2026-01-01T12:00:00Z", "-c", profile, "vps")
	script := lab.File(t, "knock.sh", old)
	client.Run(t, "shellcheck", script)
	out, err := client.Try("env", "-i", "PATH="+onlyTool(t, "true", "true"), "sh", script)
	lab.ExpectEnd(t, err, out, 1, "these knocks were valid until 2026-01-02T00:00:00Z", "install bash, netcat-openbsd or ncat to send udp knocks")
}
