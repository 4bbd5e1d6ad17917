package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// The exit codes of the command.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitProfile = 3
	exitClosed  = 5
)

// format is the argument of --format for a firewall of the lab.
func format(f lab.Firewall) string {
	name, _, _ := strings.Cut(f.Name, "-")
	return name
}

// secret writes a file that only its owner can read, in a folder of the test.
func secret(t testing.TB, name string, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// emit has portknock write the rules for the profile vps, and returns the file.
// Those that need an end have one in 20 minutes.
func emit(t testing.TB, h *lab.Host, f lab.Firewall, profile string, flags ...string) string {
	t.Helper()
	rules := filepath.Join(t.TempDir(), "rules")
	args := append([]string{"emit-rules", "-c", profile, "--format", format(f), "--output", rules, "--horizon", "20m"}, flags...)
	h.Run(t, "portknock", append(args, "vps")...)
	return rules
}

// header runs a command that stands in the header of a rules file.
func header(t testing.TB, h *lab.Host, rules, name string) string {
	t.Helper()
	return h.Shell(t, headerLine(t, rules, name))
}

func headerLine(t testing.TB, rules, name string) string {
	t.Helper()
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^# ` + name + `: (.*)$`).FindSubmatch(text)
	if line == nil {
		t.Fatalf("no line %q in the header:\n%s", name, text)
	}
	return string(line[1])
}

// loadTrace puts the rules for a trace in force.
func loadTrace(t testing.TB, f lab.Firewall, tr *lab.Trace) func(*lab.Host) {
	return func(server *lab.Host) {
		lines := []string{"Host vps", "Sequence " + tr.Sequence.String()}
		for _, s := range tr.Settings {
			lines = append(lines, s.Keyword+" "+s.Value)
		}
		header(t, server, emit(t, server, f, secret(t, "config", lines...)), "load")
	}
}

// rig is a server that nobody reaches without knocking, and its visitors.
type rig struct {
	*lab.Net
	lab.Firewall
	family  lab.Family
	sshd    *lab.SSHD
	profile string // the file with the profile vps
	rules   string // emitted from it; not yet loaded
	fdpass  bool   // portknock hands ssh the socket
	config  string // for ssh -F: the host vps by way of portknock, direct without

	visitors uint16 // how many addresses have knocked
}

// newRig makes a rig for the profile vps with these settings. If the variable
// PORTKNOCK_LAB_FDPASS is set, portknock hands ssh the socket in every test.
func newRig(t testing.TB, f lab.Firewall, family lab.Family, settings ...string) *rig {
	t.Helper()
	lab.Require(t, append([]string{"ssh", "sshd"}, f.Programs...)...)
	r := &rig{Net: lab.New(t), Firewall: f, family: family, fdpass: os.Getenv("PORTKNOCK_LAB_FDPASS") != ""}
	f.Install(t, r.Server)
	r.sshd = r.Server.SSHD(t, []uint16{22})
	addr := r.Server.Addr(family).String()
	r.profile = secret(t, "config", append([]string{"Host vps", "HostName " + addr}, settings...)...)
	r.rules = emit(t, r.Server, f, r.profile)
	r.config = r.sshConfig(t, r.profile)
	return r
}

// load puts the rules for a profile of other settings in force.
func (r *rig) load(t testing.TB, settings []string, flags ...string) {
	t.Helper()
	profile := secret(t, "config", append([]string{"Host vps"}, settings...)...)
	header(t, r.Server, emit(t, r.Server, r.Firewall, profile, flags...), "load")
}

// sshConfig returns a configuration for ssh that uses a profile file.
func (r *rig) sshConfig(t testing.TB, profile string) string {
	t.Helper()
	addr := r.Server.Addr(r.family).String()
	proxy := []string{"ProxyCommand portknock -c " + profile + " %h %p"}
	if r.fdpass {
		proxy = []string{"ProxyCommand portknock -F -c " + profile + " %h %p", "ProxyUseFdpass yes"}
	}
	lines := append([]string{"Host vps", "HostName " + addr}, proxy...)
	return r.sshd.ClientConfig(t, append(lines, "Host direct", "HostName "+addr)...)
}

// ssh runs a command on the server through portknock and returns its output.
func (r *rig) ssh(t testing.TB, command string) string {
	t.Helper()
	return sshOutput(t, r.Client, "-F", r.config, "vps", command)
}

// sshOutput returns the output of ssh alone: on stderr the login shell of the
// machine that tests may have something to say.
func sshOutput(t testing.TB, h *lab.Host, args ...string) string {
	t.Helper()
	var said lab.Log
	c := h.Command("ssh", args...)
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		t.Errorf("ssh %q: %v\n%s", args, err, said.String())
	}
	return string(out)
}

// probe asks the server's port 22 from one of its visitors.
func (r *rig) probe(t testing.TB, from *lab.Host) lab.State {
	t.Helper()
	return from.Probe(t, addrPort(r, 22))
}

// expect checks how port 22 answers one of the visitors.
func (r *rig) expect(t testing.TB, from *lab.Host, want lab.State) {
	t.Helper()
	if got := r.probe(t, from); got != want {
		t.Fatalf("%s, %v: port 22 is %v for the %s, want %v", r.Firewall.Name, r.family, got, from.Name, want)
	}
}

// eachFirewall runs a test against every firewall and family, in parallel.
func eachFirewall(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	eachOf(t, func(lab.Firewall) bool { return true }, lab.Families, test)
}

// eachKernelFirewall leaves out knockd, which knows no time and verifies no tokens.
func eachKernelFirewall(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	eachOf(t, func(f lab.Firewall) bool { return !f.Async }, lab.Families, test)
}

// eachIptables is for what the other firewalls have not, and both families have
// alike.
func eachIptables(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	eachOf(t, func(f lab.Firewall) bool { return format(f) == "iptables" }, []lab.Family{lab.IPv4}, test)
}

func eachOf(t *testing.T, wanted func(lab.Firewall) bool, families []lab.Family, test func(*testing.T, lab.Firewall, lab.Family)) {
	t.Parallel() // beside other tests too: they mostly wait
	for _, f := range lab.Firewalls {
		if !wanted(f) {
			continue
		}
		for _, family := range families {
			t.Run(fmt.Sprintf("%s/%v", f.Name, family), func(t *testing.T) {
				t.Parallel()
				test(t, f, family)
			})
		}
	}
}

func addrPort(r *rig, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(r.Server.Addr(r.family), port)
}

// transfer moves 20 MB to the server and back through a new knock.
func transfer(t *testing.T, r *rig) {
	t.Helper()
	data := make([]byte, 20<<20)
	rand.Read(data)
	var back bytes.Buffer
	c := r.Client.Command("ssh", "-F", r.config, "vps", "cat")
	c.Stdin, c.Stdout = bytes.NewReader(data), &back
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(back.Bytes()) != sha256.Sum256(data) {
		t.Errorf("of %d bytes %d came back, and not the same", len(data), back.Len())
	}
}

// quiet waits until every segment of the sessions has been acknowledged: from
// then on neither side has anything to say by itself.
func (r *rig) quiet(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		unacknowledged := ""
		for _, h := range []*lab.Host{r.Client, r.Server} {
			unacknowledged += h.Shell(t, "ss -Htn state established | awk '$2 > 0'") // Send-Q
		}
		if unacknowledged == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("never quiet: %s", unacknowledged)
		}
	}
}

// ruleset returns the rules in force, without counters and without what the
// sets hold.
func ruleset(t testing.TB, r *rig) string {
	t.Helper()
	script := "nft -s -t list ruleset"
	if strings.HasPrefix(r.Firewall.Name, "iptables") {
		// An empty table that was looked at once is listed from then on.
		script = "for t in iptables ip6tables; do $t-save | grep -e ^-; done; true"
	}
	return r.Server.Shell(t, script)
}

// echo is an ssh session with a program that repeats what it is told.
type echo struct {
	in  io.Writer
	out *lab.Log
	n   int
}

func (r *rig) echo(t testing.TB, host string) *echo {
	t.Helper()
	return startEcho(t, r.Client.Command("ssh", "-F", r.config, host, "cat"))
}

// startEcho starts a command that repeats its input, and has it do so once.
func startEcho(t testing.TB, c *lab.Cmd) *echo {
	t.Helper()
	// A real pipe: with any other reader the end of c would wait for its end.
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{in: w, out: &lab.Log{}}
	c.Stdin, c.Stdout, c.Stderr = in, e.out, e.out
	err = c.Start()
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); c.End() })
	e.say(t, "hello")
	return e
}

// say has the session repeat a line.
func (e *echo) say(t testing.TB, what string) {
	t.Helper()
	e.n++
	line := fmt.Sprintf("%d %s\n", e.n, what)
	if _, err := io.WriteString(e.in, line); err != nil {
		t.Fatal(err)
	}
	e.out.Await(t, line, 1)
}
