package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// labMain is the first thing a process of this test does: it may be a host.
func labMain() { lab.Main() }

// manyAtOnce lets more tests run in parallel than there are processors: they
// mostly wait for the kernel's clock.
func manyAtOnce() {
	flag.Parse()
	// Else every process of a binary built with -race ends a second late.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set("test.parallel", "8")
	}
}

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
