package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// The exit codes of the command.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitProfile = 3
	exitKnocks  = 4
	exitClosed  = 5
)

// The sequences of most tests, as settings of a profile.
const (
	twoKnocks   = "Sequence 7001/udp 8003/tcp"
	threeKnocks = "Sequence 7001/udp 8003/tcp 9005/udp"
)

// nftables is the firewall for tests that need only one.
var nftables = lab.Firewalls[0]

// silence is a shell line by which a host drops whatever it receives.
const silence = "nft 'add table inet silent; add chain inet silent in { type filter hook input priority 0; policy drop; }'"

// firewallNamed returns a firewall of the lab.
func firewallNamed(name string) lab.Firewall {
	return lab.Firewalls[slices.IndexFunc(lab.Firewalls, func(f lab.Firewall) bool { return f.Name == name })]
}

// format is the argument of --format for a firewall of the lab.
func format(f lab.Firewall) string {
	name, _, _ := strings.Cut(f.Name, "-")
	return name
}

// vps writes a profile file for the host vps with these settings.
func vps(t testing.TB, settings ...string) string {
	t.Helper()
	return lab.File(t, "config", append([]string{"Host vps"}, settings...)...)
}

// wrongKnocks writes a profile file for any host, with knocks that open nothing.
func wrongKnocks(t testing.TB, timeout string) string {
	t.Helper()
	return lab.File(t, "config", "Host *", "Sequence 1111/udp 2222/udp", "ConnectTimeout "+timeout)
}

// sequence parses knocks.
func sequence(text string) knock.Sequence {
	s, err := knock.ParseSequence(text)
	if err != nil {
		panic(err)
	}
	return s
}

// keyFile writes a key that all tests share, and returns the setting for it.
func keyFile(t testing.TB) string {
	t.Helper()
	return "KeyFile " + lab.File(t, "key", windowKey)
}

// emit has portknock write the rules for the profile vps, and returns the file.
func emit(t testing.TB, h *lab.Host, f lab.Firewall, profile string, flags ...string) string {
	t.Helper()
	return emitOnly(t, h, f, profile, append(flags, "vps")...)
}

// emitOnly is emit for the profiles that are named in the arguments. Rules that need
// an end have one in 20 minutes.
func emitOnly(t testing.TB, h *lab.Host, f lab.Firewall, profile string, args ...string) string {
	t.Helper()
	rules := filepath.Join(t.TempDir(), "rules")
	common := []string{"emit-rules", "-c", profile, "--format", format(f), "--output", rules, "--horizon", "20m"}
	h.Run(t, "portknock", append(common, args...)...)
	return rules
}

// header runs a command from the header of a rules file on a host.
func header(t testing.TB, h *lab.Host, rules, name string) string {
	t.Helper()
	return h.Shell(t, lab.RulesLine(t, rules, name))
}

// tryHeader is header for a command that may fail.
func tryHeader(t testing.TB, h *lab.Host, rules, name string) (string, error) {
	t.Helper()
	return h.Try("sh", "-c", lab.RulesLine(t, rules, name))
}

// rig is a server with a firewall, a client and an attacker.
type rig struct {
	server, client, attacker *lab.Host

	firewall lab.Firewall
	family   lab.Family // of the addresses that the tests use
	sshd     *lab.SSHD  // nil for a rig of newHosts
	profile  string     // the file with the profile vps
	rules    string     // emitted from it; not yet loaded
	fdpass   bool       // portknock hands ssh the socket
	config   string     // for ssh -F: the host vps by way of portknock, direct without

	visitors uint16 // how many of the client's addresses visitor has returned
}

// newHosts makes a rig without a profile, on which port 22 answers.
func newHosts(t testing.TB, f lab.Firewall, family lab.Family) *rig {
	t.Helper()
	r := newNet(t, f, family)
	f.Install(t, r.server)
	r.server.Listen(t, lab.GuardedPort)
	return r
}

// newNet makes a rig of hosts only.
func newNet(t testing.TB, f lab.Firewall, family lab.Family) *rig {
	t.Helper()
	n := lab.New(t)
	return &rig{server: n.Server, client: n.Client, attacker: n.Attacker, firewall: f, family: family}
}

// newRig makes a rig with an sshd and the rules for the profile vps with these
// settings. If the variable PORTKNOCK_LAB_FDPASS is set, portknock hands ssh the
// socket in every test.
func newRig(t testing.TB, f lab.Firewall, family lab.Family, settings ...string) *rig {
	t.Helper()
	lab.Require(t, append([]string{"ssh", "sshd"}, f.Programs...)...)
	r := newNet(t, f, family)
	r.fdpass = os.Getenv("PORTKNOCK_LAB_FDPASS") != ""
	f.Install(t, r.server)
	r.sshd = r.server.SSHD(t, []uint16{lab.GuardedPort})
	r.profile = r.vps(t, settings...)
	r.emit(t)
	r.config = r.sshConfig(t, r.profile)
	return r
}

// newGuarded is newRig with the rules in force.
func newGuarded(t testing.TB, f lab.Firewall, family lab.Family, settings ...string) *rig {
	t.Helper()
	r := newRig(t, f, family, settings...)
	r.header(t, "load")
	return r
}

// newJourney is newGuarded with three knocks, nftables and IPv4.
func newJourney(t testing.TB) *rig {
	t.Helper()
	return newGuarded(t, nftables, lab.IPv4, threeKnocks)
}

// twoHosts returns a client and a server on one link.
func twoHosts(t testing.TB) (client, server *lab.Host) {
	t.Helper()
	client, server = lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server)
	return client, server
}

// nameServer gives a server a name with an address of each family, on one host.
func nameServer(t testing.TB, on *lab.Host, name string, server *lab.Host) {
	t.Helper()
	hosts := lab.File(t, "hosts", server.Addr(lab.IPv6).String()+" "+name, server.Addr(lab.IPv4).String()+" "+name)
	on.Run(t, "mount", "--bind", hosts, "/etc/hosts")
}

// addr is the server's address.
func (r *rig) addr() netip.Addr { return r.server.Addr(r.family) }

// port is a port of the server.
func (r *rig) port(port uint16) netip.AddrPort { return netip.AddrPortFrom(r.addr(), port) }

// vps writes a profile file for the server.
func (r *rig) vps(t testing.TB, settings ...string) string {
	t.Helper()
	return vps(t, append([]string{"HostName " + r.addr().String()}, settings...)...)
}

// header runs a command from the header of the rules on the server.
func (r *rig) header(t testing.TB, name string) string {
	t.Helper()
	return header(t, r.server, r.rules, name)
}

// emit replaces the rules by those that portknock writes with these flags.
func (r *rig) emit(t testing.TB, flags ...string) {
	t.Helper()
	r.rules = emit(t, r.server, r.firewall, r.profile, flags...)
}

// load puts the rules for a profile of other settings in force.
func (r *rig) load(t testing.TB, settings []string, flags ...string) {
	t.Helper()
	header(t, r.server, emit(t, r.server, r.firewall, vps(t, settings...), flags...), "load")
}

// ruleset returns the rules in force, without counters and without what the sets
// hold.
func (r *rig) ruleset(t testing.TB) string {
	t.Helper()
	script := "nft -s -t list ruleset"
	if format(r.firewall) == "iptables" {
		// An empty table that was looked at once is listed from then on.
		script = "for t in iptables ip6tables; do $t-save | grep -e ^-; done; true"
	}
	return r.server.Shell(t, script)
}

// expectRuleset checks that the server has the rules it had before.
func (r *rig) expectRuleset(t testing.TB, before string) {
	t.Helper()
	if after := r.ruleset(t); after != before {
		t.Errorf("the server was\n%s\nand is now\n%s", before, after)
	}
}

// expect checks how port 22 answers one of the hosts.
func (r *rig) expect(t testing.TB, from *lab.Host, want lab.State) {
	t.Helper()
	r.expectPort(t, from, lab.GuardedPort, want)
}

// expectPort checks how a port of the server answers one of the hosts.
func (r *rig) expectPort(t testing.TB, from *lab.Host, port uint16, want lab.State) {
	t.Helper()
	if got := from.Probe(t, r.port(port)); got != want {
		t.Fatalf("%s, %v: port %d is %v for the %s, want %v", r.firewall.Name, r.family, port, got, from.Name, want)
	}
}

// await waits until a port of the server answers one of the hosts so.
func (r *rig) await(t testing.TB, within time.Duration, from *lab.Host, port uint16, want lab.State) {
	t.Helper()
	lab.Await(t, within, func() string { // the kernel's clock cannot be faked
		if got := from.Probe(t, r.port(port)); got != want {
			return fmt.Sprintf("%s, %v: port %d is %v for the %s, want %v", r.firewall.Name, r.family, port, got, from.Name, want)
		}
		return ""
	})
}

// expectSoon is expectPort for a firewall that may open a moment after the knocks.
func (r *rig) expectSoon(t testing.TB, from *lab.Host, port uint16, want lab.State) {
	t.Helper()
	if r.firewall.Async {
		r.await(t, 10*time.Second, from, port, want)
	}
	r.expectPort(t, from, port, want)
}

// visitor returns an address of the client that has not knocked yet.
func (r *rig) visitor() netip.Addr {
	r.visitors++
	return r.client.Source(r.family, r.visitors)
}

// addAddr gives the client an address of its own, so that programs can bind to it.
func (r *rig) addAddr(t testing.TB, addr netip.Addr) {
	t.Helper()
	args := []string{"addr", "replace", addr.String(), "dev", "eth0"}
	if addr.Is6() {
		args = append(args, "nodad")
	}
	r.client.Run(t, "ip", args...)
}

// answer returns how port 22 answers an address of the client.
func (r *rig) answer(t testing.TB, from netip.Addr) lab.State {
	t.Helper()
	return r.client.ProbeFrom(t, from, r.port(lab.GuardedPort))
}

// admits sends knocks from an address of the client and reports whether port 22 is
// open to that address then.
func (r *rig) admits(t testing.TB, from netip.Addr, steps ...knock.Step) bool {
	t.Helper()
	r.client.KnockFrom(t, from, r.addr(), steps...)
	return r.answer(t, from) == lab.Open
}

// knockAndWait has portknock knock from a host until port 22 is open.
func (r *rig) knockAndWait(t testing.TB, from *lab.Host, args ...string) {
	t.Helper()
	from.Run(t, "portknock", append(append([]string{"knock", "--wait", "-c", r.profile}, args...), "vps")...)
}

// ipv4 is for tests to which the family does not matter.
var ipv4 = []lab.Family{lab.IPv4}

// eachFirewall runs a test against every firewall and family, in parallel.
func eachFirewall(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	eachOf(t, lab.Firewalls, lab.Families, test)
}

// eachKernelFirewall leaves out knockd, which has no schedules and verifies no
// tokens.
func eachKernelFirewall(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	eachOf(t, kernelFirewalls(), lab.Families, test)
}

// eachIptables is for what only iptables has, and has alike in both families.
func eachIptables(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	isOther := func(f lab.Firewall) bool { return format(f) != "iptables" }
	eachOf(t, slices.DeleteFunc(slices.Clone(lab.Firewalls), isOther), ipv4, test)
}

// kernelFirewalls are those that need no daemon.
func kernelFirewalls() []lab.Firewall {
	isDaemon := func(f lab.Firewall) bool { return f.Async }
	return slices.DeleteFunc(slices.Clone(lab.Firewalls), isDaemon)
}

// eachOf runs a test against these firewalls and families, in parallel.
func eachOf(t *testing.T, firewalls []lab.Firewall, families []lab.Family, test func(*testing.T, lab.Firewall, lab.Family)) {
	t.Parallel() // beside other tests too: they mostly wait
	for _, f := range firewalls {
		for _, family := range families {
			t.Run(fmt.Sprintf("%s/%v", f.Name, family), func(t *testing.T) {
				t.Parallel()
				test(t, f, family)
			})
		}
	}
}
