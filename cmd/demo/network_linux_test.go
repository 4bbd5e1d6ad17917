package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/portknock/portknock/knock"
	"golang.org/x/sys/unix"
)

// withFirewall skips the test as soon as the demo finds that this machine cannot run the real
// firewall.
func withFirewall(t *testing.T) {
	playGuard = func(d *demo, ctx context.Context) error {
		err := d.playGuard(ctx)
		if reason, ok := errors.AsType[unavailable](err); ok && ctx.Err() == nil {
			missing(t, "the real firewall: "+string(reason))
		}
		return err
	}
	t.Cleanup(func() { playGuard = (*demo).playGuard })
}

// counts matches numbers that may differ from run to run. A scan may miss answers of closed
// ports on a busy machine.
var counts = regexp.MustCompile(`\d+ (closed|times)`)

// rulesShown matches the rules that the demo prints.
var rulesShown = regexp.MustCompile(`(?s)with (nft|iptables):\n\n(    .*)\n    \.\.\.\n\n`)

func testGuardDemo(t *testing.T, ssh, client string) {
	withFirewall(t)
	tempFolder(t)
	var out bytes.Buffer
	if err := run(t.Context(), &out, ssh); err != nil {
		t.Fatalf("%v, after:\n%s", err, &out)
	}
	story := storyOf(out.String())
	shown := rulesShown.FindString(out.String())
	for _, text := range []string{"\n    # portknock: guards 22/tcp for demo\n", "an address may connect for 2s", "\n    ...\n"} {
		if !strings.Contains(shown, text) {
			t.Errorf("the rules that the demo prints do not contain %q", text)
		}
	}
	story = rulesShown.ReplaceAllString(story, "RULES\n")
	want := `A server without a guard
N  attacker  scans all 65535 TCP ports: N closed, open: 22

2. The server loads portknock's rules into the kernel's firewall
N  server    loads the rules that ` + "`portknock emit-rules --policy drop demo`" + ` prints, RULES
N  attacker  scans all 65535 TCP ports: no port answers

3. The right knocks in a wrong order open nothing
N  attacker  knocks at N N N
N  attacker  connects to port 22: no answer

4. ssh demo hello
N  CLIENT       starts; portknock knocks at N N N and connects
N  CLIENT       Hello from behind a closed port.
N  attacker  tries to connect again and again; the port is open for 192.0.2.10 only

5. After 2s the port is closed again; the session stays open
N  you       connect without knocks: no answer
N  attacker  has tried N times: no answer
N  CLIENT       This session is still open, although the port is closed again.
N  CLIENT       exit status 0
`
	story = counts.ReplaceAllString(story, "N $1")
	want = strings.ReplaceAll(want, "CLIENT ", client+strings.Repeat(" ", 4-len(client))) + quickStart
	if story != want {
		t.Errorf("got:\n%s\nwant, with N for each number:\n%s", &out, want)
	}
}

func TestGuardDemoWithSSH(t *testing.T)      { testGuardDemo(t, workingSSH(t), "ssh") }
func TestGuardDemoWithGoClient(t *testing.T) { testGuardDemo(t, "", "go") }

func TestInterruptedGuardDemoCleansUp(t *testing.T) {
	testInterrupts(t, withFirewall, "Three hosts", "knocks at", "Hello")
}

// output is what a process prints.
type output struct {
	*bufio.Reader
	io.Closer
}

// mainProcess starts the demo as a process of its own, with temporary files in dir. It returns
// when the demo has printed text.
func mainProcess(t *testing.T, dir, text string) (cmd *exec.Cmd, out output, stderr *bytes.Buffer) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), mainVariable+"=1", "TMPDIR="+dir)
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	out = output{bufio.NewReader(pipe), pipe}
	for {
		line, err := out.ReadString('\n')
		if _, reason, found := strings.Cut(line, "cannot show "); found {
			out.Close() // the demo then ends and cleans up
			_ = cmd.Wait()
			missing(t, reason)
		}
		if strings.Contains(line, text) {
			return cmd, out, stderr
		}
		if err != nil {
			t.Fatalf("the demo has ended before %q: %v %s", text, err, stderr)
		}
	}
}

// TestKilledDemoEndsItsPrograms: a demo that is killed cannot clean up, so its programs must
// notice the end.
func TestKilledDemoEndsItsPrograms(t *testing.T) {
	cmd, out, _ := mainProcess(t, t.TempDir(), "Hello")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(out) // returns when all programs have ended
	if err != nil || bytes.Contains(rest, []byte("exit status")) {
		t.Errorf("the demo goes on after its end: error %v, output:\n%s", err, rest)
	}
}

// TestDemoEndsWithoutReader: the demo ends and cleans up when nobody reads its output, as in
// `demo | head`.
func TestDemoEndsWithoutReader(t *testing.T) {
	for _, text := range []string{"The demo builds", "Three hosts"} {
		t.Run(text, func(t *testing.T) {
			cmd, out, stderr := mainProcess(t, tempFolder(t), text)
			out.Close()
			err := cmd.Wait()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("the demo ends with %v, want exit code 1 and one line: %s", err, stderr)
			}
		})
	}
}

// mainAfter runs the demo as root of a user namespace, after commands of the shell have changed
// what the system can do. It returns what the demo has printed.
func mainAfter(t *testing.T, commands string) string {
	tempFolder(t)
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", commands+` || { echo cannot prepare; exit; }; exec "$0"`, binary)
	cmd.Env = append(os.Environ(), mainVariable+"=1", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = newUser()
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS
	out, err := cmd.CombinedOutput()
	if cmd.Process == nil || bytes.HasSuffix(out, []byte("cannot prepare\n")) {
		missing(t, fmt.Sprintf("user namespaces: %v %s", err, out))
	}
	if text := string(out); err != nil || !strings.HasSuffix(text, quickStart) {
		t.Fatalf("error %v, output:\n%s", err, out)
	}
	return string(out)
}

// TestDemoFallsBackToGate runs the demo where the kernel refuses new network namespaces.
func TestDemoFallsBackToGate(t *testing.T) {
	out := mainAfter(t, "echo 0 >/proc/sys/user/max_net_namespaces")
	const reason = "\nThis computer cannot show the real firewall: it cannot make a private network (no space left on device).\n"
	if !strings.Contains(out, reason+gateIntroduction) {
		t.Errorf("the demo does not give the reason %q:\n%s", reason, out)
	}
}

func TestGuardDemoWithoutNftUsesIptables(t *testing.T) {
	// /dev/null is not executable.
	out := mainAfter(t, "if nft=$(command -v nft); then mount --bind /dev/null $nft; fi")
	if _, reason, found := strings.Cut(out, "cannot show the real firewall: "); found {
		missing(t, "iptables in a network namespace: "+reason)
	}
	if !strings.Contains(out, " prints, with iptables:\n") || !strings.Contains(out, "\n    -A PORTKNOCK") {
		t.Errorf("the demo does not load rules with iptables:\n%s", out)
	}
}

func TestDemoNamesMissingFirewall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := new(demo).emitRules(t.Context())
	if reason, ok := errors.AsType[unavailable](err); !ok || reason != "neither nft nor iptables is installed" {
		t.Errorf("unexpected error: %v", err)
	}
}

// TestScanCannotFindSequence: a scan does not find the sequence, even if the rules ignored all
// other ports.
func TestScanCannotFindSequence(t *testing.T) {
	for range 1000 {
		if s := randomSequence(); s.SweepFinds(func(knock.Step) bool { return true }) {
			t.Errorf("a scan finds %v", s)
		}
	}
}

// TestColorsOnTerminalOnly: only a terminal gets colors, and only if the user has not switched
// them off.
func TestColorsOnTerminalOnly(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		missing(t, "pseudo-terminals: "+err.Error())
	}
	defer terminal.Close()
	for _, test := range []struct {
		out           io.Writer
		kind, noColor string
		want          bool
	}{
		{terminal, "xterm", "", true},
		{terminal, "xterm", "1", false},
		{terminal, "dumb", "", false},
		{terminal, "", "", false},
		{os.NewFile(^uintptr(0), "closed"), "xterm", "", false},
		{&bytes.Buffer{}, "xterm", "", false},
	} {
		t.Setenv("TERM", test.kind)
		t.Setenv("NO_COLOR", test.noColor)
		if got := isColorTerminal(test.out); got != test.want {
			t.Errorf("out %T, TERM=%s, NO_COLOR=%s: color %v, want %v", test.out, test.kind, test.noColor, got, test.want)
		}
	}
	s := &story{}
	if got := s.paint("you", "text"); got != "text" {
		t.Errorf("without color, paint returns %q", got)
	}
	s.color = true
	for actor := range colors {
		if got := s.paint(actor, "text"); !strings.HasPrefix(got, "\x1b[") || !strings.HasSuffix(got, "mtext\x1b[0m") {
			t.Errorf("with color, paint returns %q for %s", got, actor)
		}
	}
}
