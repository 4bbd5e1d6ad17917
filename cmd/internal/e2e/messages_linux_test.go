package e2e

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestUnreachableServerErrorAndExitCode: without a route, or if the knocks cannot be sent,
// portknock prints one error line and returns its exit code. No output contains a knock.
func TestUnreachableServerErrorAndExitCode(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	check := func(code int, want string, args ...string) {
		t.Helper()
		stdout, stderr, got := portknock(r.client, args...)
		if got != code {
			t.Errorf("%q: exit code %d, want %d", args, got, code)
		}
		lines := strings.Count(stderr, "\n") - strings.Count(stderr, "portknock: hint: ")
		if !strings.HasPrefix(stderr, "portknock: "+want) || lines != 1 || stdout != "" {
			t.Errorf("%q prints the errors %q and the output %q, want the error %q", args, stderr, stdout, want)
		}
		if hasNumber(stderr, "7001", "8003") {
			t.Errorf("%q prints a knock: %s", args, stderr)
		}
	}
	nowhere := vpsProfile(t, "HostName 198.51.100.1", "Sequence 7001/udp 8003")
	check(exitFailed, "vps: ", "-c", nowhere, "vps", "22")
	r.client.Run(t, "nft", `add table inet out; add chain inet out output { type filter hook output priority 0; };
		add rule inet out output udp dport 7001 drop`)
	check(exitKnocks, "vps: cannot send the knocks to 192.0.2.1: ", "-c", r.profile, "vps", "22")
	check(exitKnocks, "vps: ", "knock", "-c", r.profile, "vps")
}

// TestLastAnswerDecidesHint: the server's last answer decides which hint portknock shows,
// with a profile and without one.
func TestLastAnswerDecidesHint(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nft")
	client, server := twoHosts(t)
	// Without a limit, the answers to the knocks leave room for the answer to the connection.
	server.Shell(t, `echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; nft -f - <<'END'
table inet filter {
	chain input {
		type filter hook input priority 0
		tcp dport 1 drop
		tcp dport 2 reject with tcp reset
		tcp dport 3 reject with icmpx admin-prohibited
	}
}
END`)
	here, nowhere := server.Addr(lab.IPv4).String(), "198.51.100.1"
	const (
		refused  = "the server answered: check that sshd listens on port 2\nif sshd listens there, a firewall rejects connections"
		rejected = "the host may be off or in another network, or a firewall rejects connections"
		knocking = " until the knocks are right"
		noRoute  = "this machine has no route to the server: check the network or the VPN"
	)
	for _, tt := range []struct {
		name, addr, port string
		code             int
		withProfile      string // the hint if portknock has a profile for the host
		without          string // the hint if portknock has no profile for the host
	}{{
		name: "connection refused", addr: here, port: "2", code: exitClosed,
		withProfile: refused + knocking,
		without:     refused,
	}, {
		name: "rejected as prohibited", addr: here, port: "3", code: exitClosed,
		withProfile: rejected + knocking,
		without:     rejected,
	}, {
		name: "no route", addr: nowhere, port: "22", code: exitFailed,
		withProfile: noRoute,
		without:     noRoute,
	}, {
		name: "no answer", addr: here, port: "1", code: exitClosed,
		withProfile: "check that the server's rules were made from this profile\ncompare portknock sequence vps with the rules\nrun: portknock check vps",
		without:     "portknock has no profile for this host, so it did not knock",
	}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			profile := vpsProfile(t, "HostName "+tt.addr, "Port "+tt.port, "ConnectTimeout 2", "Sequence 7001/udp 8003")
			check := func(hint string, args ...string) {
				t.Helper()
				_, stderr, code := portknock(client, args...)
				if code != tt.code {
					t.Errorf("%q: exit code %d, want %d", args, code, tt.code)
				}
				if !strings.HasSuffix(stderr, "\nportknock: hint: "+strings.ReplaceAll(hint, "\n", "\nportknock: hint: ")+"\n") {
					t.Errorf("%q prints %q, want the hint %q", args, stderr, hint)
				}
			}
			check(tt.withProfile, "-c", profile, "vps", tt.port)
			check(tt.without, "--optional", "-c", "/dev/null", "-o", "ConnectTimeout=2", tt.addr, tt.port)
		})
	}
}

// TestWarningIfServerDoesNotGuardPort: portknock warns once if the profile does not open
// the port to which it connects. portknock still connects.
func TestWarningIfServerDoesNotGuardPort(t *testing.T) {
	t.Parallel()
	client := lab.NewHost(t, "client")
	client.Serve(t, 2222, func(c net.Conn) { io.WriteString(c, "hello") })
	profile := lab.File(t, "config", "Host *", "Sequence 7001/udp 8003")
	out, stderr, code := portknock(client, "-c", profile, "127.0.0.1", "2222")
	if out != "hello" || code != 0 {
		t.Errorf("output %q, exit code %d, want hello and 0", out, code)
	}
	const want = "portknock: 127.0.0.1: the server does not guard or open 2222/tcp (OpenPorts: 22/tcp); " +
		"set Port or OpenPorts and load new rules\n"
	if stderr != want {
		t.Errorf("portknock prints the errors %q, want %q", stderr, want)
	}
}

// TestReasonIsShownWhenSSHTimesOut: if ssh gives up before portknock does, portknock still
// prints the reason on stderr and in the log. Then no process is left.
func TestReasonIsShownWhenSSHTimesOut(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	log := filepath.Join(t.TempDir(), "log")
	config := r.proxyConfig(t, "portknock -c "+wrongKnocksProfile(t, "60s")+" --log-file "+log+" %h %p")
	began := time.Now()
	out, err := r.client.Try("ssh", "-o", "ConnectTimeout=2", "-F", config, "vps", "true")
	if err == nil || !strings.Contains(out, "timed out") {
		t.Errorf("ssh prints %q, %v, want a timeout", out, err)
	}
	text, _ := os.ReadFile(log)
	for _, line := range []string{
		r.addr().String() + `: port 22 did not open within [0-9.]+m?s: no answer`,
		`hint: check that the server's rules were made from this profile`,
	} {
		if !regexp.MustCompile(`(?m)^portknock: ` + line + `\r?$`).MatchString(out) {
			t.Errorf("%s is not in the output of ssh: %q", line, out)
		}
		if !regexp.MustCompile(`(?m)^.*\] ` + line + `$`).Match(text) {
			t.Errorf("%s is not in the log: %q", line, text)
		}
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("ssh ended after %v, want at most 30 s", took)
	}
	r.awaitNoPortknock(t)
}

// TestInterruptPrintsOneLine: after ^C while portknock knocks, portknock prints only that
// it was interrupted. It does not report that ssh ended too.
func TestInterruptPrintsOneLine(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	var stderr lab.Log
	config := r.proxyConfig(t, "portknock -vv -c "+wrongKnocksProfile(t, "60s")+" %h %p")
	c := r.client.Command("ssh", "-F", config, "vps", "true")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a shell also starts a process group
	c.Stderr = &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stderr.Await(t, "round 0: dialing", 1)
	if err := syscall.Kill(-c.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	r.awaitNoPortknock(t)
	// portknock may end before ssh gets the signal. Then ssh prints that the connection is closed.
	_, after, interrupted := strings.Cut(stderr.String(), "portknock: interrupted\n")
	if !interrupted || strings.Contains(after, "portknock") || strings.Contains(stderr.String(), "did not open") {
		t.Errorf("portknock prints %q, want one line: interrupted", stderr.String())
	}
}

// TestTerminalShowsThatPortknockStillTries: after 2 s, a user at a terminal sees one line that
// says until when portknock goes on. It does not appear with -q, or if stderr is not a terminal.
func TestTerminalShowsThatPortknockStillTries(t *testing.T) {
	t.Parallel()
	lab.Require(t, "script")
	client := lab.NewHost(t, "client")
	profile := vpsProfile(t, "HostName 127.0.0.1", "Sequence 7001/udp 8003", "ConnectTimeout 4")
	const line = `portknock: vps: not connected yet; still knocking until \d\d:\d\d:\d\d\r?\n`
	for command, want := range map[string]int{
		"script -qec 'portknock CONFIG vps 22' /dev/null":                   1,
		"script -qec 'portknock knock --wait CONFIG vps 22' /dev/null":      1,
		"script -qec 'portknock -q CONFIG vps 22' /dev/null":                0,
		"script -qec 'portknock -o ConnectTimeout=1 CONFIG vps' /dev/null":  0,
		"script -qec 'portknock CONFIG vps 22 2>&1 | cat' /dev/null":        0,
		"portknock CONFIG vps 22":                                           0,
		"script -qec 'exec 2>/dev/null; portknock CONFIG vps 22' /dev/null": 0,
	} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			out, _ := client.Try("sh", "-c", strings.ReplaceAll(command, "CONFIG", "-c "+profile))
			if got := len(regexp.MustCompile("(?m)^"+line).FindAllString(out, -1)); got != want {
				t.Errorf("the line appears %d times, want %d: %q", got, want, out)
			}
		})
	}
}
