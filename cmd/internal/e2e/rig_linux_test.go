package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// These are the exit codes of the command.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitProfile = 3
	exitKnocks  = 4
	exitClosed  = 5
)

// These profile settings are the sequences of most tests.
const (
	twoKnocks   = "Sequence 7001/udp 8003/tcp"
	threeKnocks = "Sequence 7001/udp 8003/tcp 9005/udp"
)

// nftables is the firewall of tests that need only one firewall.
var nftables = lab.Firewalls[0]

// dropAllInput is a shell command that makes a host drop all packets it receives.
const dropAllInput = "nft 'add table inet silent; add chain inet silent in { type filter hook input priority 0; policy drop; }'"

// firewallNamed returns the firewall of the lab that has this name.
func firewallNamed(name string) lab.Firewall {
	return lab.Firewalls[slices.IndexFunc(lab.Firewalls, func(f lab.Firewall) bool { return f.Name == name })]
}

// format returns the argument of --format for a firewall of the lab.
func format(f lab.Firewall) string {
	name, _, _ := strings.Cut(f.Name, "-")
	return name
}

// vpsProfile writes a profile file for the host vps with these settings.
func vpsProfile(t testing.TB, settings ...string) string {
	t.Helper()
	return lab.File(t, "config", append([]string{"Host vps"}, settings...)...)
}

// wrongKnocksProfile writes a profile file for all hosts. Its knocks do not open any port.
func wrongKnocksProfile(t testing.TB, timeout string) string {
	t.Helper()
	return lab.File(t, "config", "Host *", "Sequence 1111/udp 2222/udp", "ConnectTimeout "+timeout)
}

// sequence parses a sequence, and panics if the text is not valid.
func sequence(text string) knock.Sequence {
	s, err := knock.ParseSequence(text)
	if err != nil {
		panic(err)
	}
	return s
}

// keyFileSetting writes the key that all tests share to a file, and returns the
// KeyFile setting for this file.
func keyFileSetting(t testing.TB) string {
	t.Helper()
	return "KeyFile " + lab.File(t, "key", windowKey)
}

// emitRules makes portknock write the rules for the profile vps, and returns the file.
func emitRules(t testing.TB, h *lab.Host, f lab.Firewall, profile string, flags ...string) string {
	t.Helper()
	return emitRulesFor(t, h, f, profile, append(flags, "vps")...)
}

// emitRulesFor makes portknock write the rules for the profiles that the arguments
// name. Rules of schemes with a horizon expire after 20 minutes, unless an argument
// changes that.
func emitRulesFor(t testing.TB, h *lab.Host, f lab.Firewall, profile string, args ...string) string {
	t.Helper()
	rules := filepath.Join(t.TempDir(), "rules")
	// Most tests use two knocks, which need --force.
	common := []string{"emit-rules", "--force", "-c", profile, "--format", format(f), "--output", rules, "--horizon", "20m"}
	h.Run(t, "portknock", append(common, args...)...)
	return rules
}

// runHeaderLine runs a command from the header of a rules file on a host.
func runHeaderLine(t testing.TB, h *lab.Host, rules, name string) string {
	t.Helper()
	return h.Shell(t, lab.RulesLine(t, rules, name))
}

// tryHeaderLine is runHeaderLine for a command that may fail.
func tryHeaderLine(t testing.TB, h *lab.Host, rules, name string) (string, error) {
	t.Helper()
	return h.Try("sh", "-c", lab.RulesLine(t, rules, name))
}

// hasNumber reports whether a text contains one of these numbers. A longer number, such as that
// of a temporary folder, may contain their digits by chance.
func hasNumber(text string, numbers ...string) bool {
	return regexp.MustCompile(`\b(` + strings.Join(numbers, "|") + `)\b`).MatchString(text)
}

// rig is a server with a firewall, a client and an attacker.
type rig struct {
	server, client, attacker *lab.Host

	firewall lab.Firewall
	family   lab.Family // family of the addresses that the tests use
	sshd     *lab.SSHD  // nil if the rig has no sshd
	profile  string     // file with the profile vps
	rules    string     // file with the rules for the profile, not yet loaded
	fdpass   bool       // portknock passes its socket to ssh (ProxyUseFdpass)
	config   string     // file for ssh -F: host vps uses portknock, host direct does not

	freshAddrs uint16 // number of addresses that freshAddr has returned
}

// newListeningRig makes a rig without a profile. The server has the firewall's programs,
// and a service listens on port 22.
func newListeningRig(t testing.TB, f lab.Firewall, family lab.Family) *rig {
	t.Helper()
	r := newEmptyRig(t, f, family)
	f.Install(t, r.server)
	r.server.Listen(t, lab.GuardedPort)
	return r
}

// newEmptyRig makes a rig that has only hosts.
func newEmptyRig(t testing.TB, f lab.Firewall, family lab.Family) *rig {
	t.Helper()
	n := lab.New(t)
	return &rig{server: n.Server, client: n.Client, attacker: n.Attacker, firewall: f, family: family}
}

// newRig makes a rig with an sshd, and emits rules for the profile vps with these
// settings. If the variable PORTKNOCK_LAB_FDPASS is set, portknock passes its socket
// to ssh in every test.
func newRig(t testing.TB, f lab.Firewall, family lab.Family, settings ...string) *rig {
	t.Helper()
	lab.Require(t, append([]string{"ssh", "sshd"}, f.Programs...)...)
	r := newEmptyRig(t, f, family)
	r.fdpass = os.Getenv("PORTKNOCK_LAB_FDPASS") != ""
	f.Install(t, r.server)
	r.sshd = r.server.SSHD(t, []uint16{lab.GuardedPort})
	r.profile = r.vpsProfile(t, settings...)
	r.emitRules(t)
	r.config = r.sshConfig(t, r.profile)
	return r
}

// newGuardedRig is newRig, and loads the rules.
func newGuardedRig(t testing.TB, f lab.Firewall, family lab.Family, settings ...string) *rig {
	t.Helper()
	r := newRig(t, f, family, settings...)
	r.runHeaderLine(t, "load")
	return r
}

// newDefaultRig is newGuardedRig for nftables and IPv4, with three knocks.
func newDefaultRig(t testing.TB) *rig {
	t.Helper()
	return newGuardedRig(t, nftables, lab.IPv4, threeKnocks)
}

// twoHosts returns a client and a server on one link.
func twoHosts(t testing.TB) (client, server *lab.Host) {
	t.Helper()
	client, server = lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server)
	return client, server
}

// nameServer gives a server a name on one host. The name has an address of each family.
func nameServer(t testing.TB, on *lab.Host, name string, server *lab.Host) {
	t.Helper()
	hosts := lab.File(t, "hosts", server.Addr(lab.IPv6).String()+" "+name, server.Addr(lab.IPv4).String()+" "+name)
	on.Run(t, "mount", "--bind", hosts, "/etc/hosts")
}

// nameHosts gives several hosts the same name on one host. The name has the address of each
// host in this family, in this order.
func nameHosts(t testing.TB, on *lab.Host, name string, family lab.Family, hosts ...*lab.Host) {
	t.Helper()
	var lines []string
	for _, h := range hosts {
		lines = append(lines, h.Addr(family).String()+" "+name)
	}
	on.Run(t, "mount", "--bind", lab.File(t, "hosts", lines...), "/etc/hosts")
}

// addr returns the server's address.
func (r *rig) addr() netip.Addr { return r.server.Addr(r.family) }

// port returns the server's address with this port.
func (r *rig) port(port uint16) netip.AddrPort { return netip.AddrPortFrom(r.addr(), port) }

// vpsProfile writes a profile file for the host vps with these settings. Its HostName is
// the server's address.
func (r *rig) vpsProfile(t testing.TB, settings ...string) string {
	t.Helper()
	return vpsProfile(t, append([]string{"HostName " + r.addr().String()}, settings...)...)
}

// runHeaderLine runs a command from the header of the rig's rules on the server.
func (r *rig) runHeaderLine(t testing.TB, name string) string {
	t.Helper()
	return runHeaderLine(t, r.server, r.rules, name)
}

// emitRules makes portknock write new rules with these flags, and does not load them.
// They replace r.rules.
func (r *rig) emitRules(t testing.TB, flags ...string) {
	t.Helper()
	r.rules = emitRules(t, r.server, r.firewall, r.profile, flags...)
}

// load emits and loads rules for the profile vps with other settings. It changes neither
// r.profile nor r.rules.
func (r *rig) load(t testing.TB, settings []string, flags ...string) {
	t.Helper()
	runHeaderLine(t, r.server, emitRules(t, r.server, r.firewall, vpsProfile(t, settings...), flags...), "load")
}

// ruleset returns the rules that the server has loaded, without counters and without
// the elements of sets.
func (r *rig) ruleset(t testing.TB) string {
	t.Helper()
	script := "nft -s -t list ruleset"
	if format(r.firewall) == "iptables" {
		// iptables-save lists an empty table as soon as a program has read that table.
		script = "for t in iptables ip6tables; do $t-save | grep -e ^-; done; true"
	}
	return r.server.Shell(t, script)
}

// expectRuleset checks that the server has the same rules as before.
func (r *rig) expectRuleset(t testing.TB, before string) {
	t.Helper()
	if after := r.ruleset(t); after != before {
		t.Errorf("the server's rules were\n%s\nand are now\n%s", before, after)
	}
}

// expect checks the state of port 22 as one of the hosts sees it.
func (r *rig) expect(t testing.TB, from *lab.Host, want lab.State) {
	t.Helper()
	r.expectPort(t, from, lab.GuardedPort, want)
}

// expectPort checks the state of a port of the server as one of the hosts sees it.
func (r *rig) expectPort(t testing.TB, from *lab.Host, port uint16, want lab.State) {
	t.Helper()
	if got := from.Probe(t, r.port(port)); got != want {
		t.Fatalf("%s, %v: port %d is %v for the %s, want %v", r.firewall.Name, r.family, port, got, from.Name, want)
	}
}

// awaitPort waits until a port of the server has this state for one of the hosts.
func (r *rig) awaitPort(t testing.TB, within time.Duration, from *lab.Host, port uint16, want lab.State) {
	t.Helper()
	lab.Await(t, within, func() string { // a test cannot fake the kernel's clock
		if got := from.Probe(t, r.port(port)); got != want {
			return fmt.Sprintf("%s, %v: port %d is %v for the %s, want %v", r.firewall.Name, r.family, port, got, from.Name, want)
		}
		return ""
	})
}

// expectSoon is expectPort for a firewall that may open the port a moment after the
// knocks.
func (r *rig) expectSoon(t testing.TB, from *lab.Host, port uint16, want lab.State) {
	t.Helper()
	if r.firewall.Async {
		r.awaitPort(t, time.Minute, from, port, want)
	}
	r.expectPort(t, from, port, want)
}

// freshAddr returns an address of the client that has not knocked yet.
func (r *rig) freshAddr() netip.Addr {
	r.freshAddrs++
	return r.client.Source(r.family, r.freshAddrs)
}

// addAddr adds an address to the client's interface, so that programs can bind to the
// address.
func (r *rig) addAddr(t testing.TB, addr netip.Addr) {
	t.Helper()
	args := []string{"addr", "replace", addr.String(), "dev", "eth0"}
	if addr.Is6() {
		args = append(args, "nodad")
	}
	r.client.Run(t, "ip", args...)
}

// answer returns the state of port 22 for an address of the client.
func (r *rig) answer(t testing.TB, from netip.Addr) lab.State {
	t.Helper()
	return r.client.ProbeFrom(t, from, r.port(lab.GuardedPort))
}

// admits sends knocks from an address of the client, and then reports whether port 22
// is open to that address.
func (r *rig) admits(t testing.TB, from netip.Addr, steps ...knock.Step) bool {
	t.Helper()
	r.client.KnockFrom(t, from, r.addr(), steps...)
	return r.answer(t, from) == lab.Open
}

// knockAndWait makes portknock knock from a host until port 22 is open.
func (r *rig) knockAndWait(t testing.TB, from *lab.Host, args ...string) {
	t.Helper()
	from.Run(t, "portknock", append(append([]string{"knock", "--wait", "-c", r.profile}, args...), "vps")...)
}

// onlyIPv4 is for tests that do not depend on the family.
var onlyIPv4 = []lab.Family{lab.IPv4}

// eachFirewall runs a test against every firewall and family, in parallel.
func eachFirewall(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	eachOf(t, lab.Firewalls, lab.Families, test)
}

// eachKernelFirewall is eachFirewall without knockd, which neither supports schedules
// nor verifies tokens.
func eachKernelFirewall(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	eachOf(t, kernelFirewalls(), lab.Families, test)
}

// eachIptables runs a test against every iptables with IPv4, for features that only
// iptables has, and that are the same in both families.
func eachIptables(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	isOther := func(f lab.Firewall) bool { return format(f) != "iptables" }
	eachOf(t, slices.DeleteFunc(slices.Clone(lab.Firewalls), isOther), onlyIPv4, test)
}

// kernelFirewalls returns the firewalls that do not need a daemon.
func kernelFirewalls() []lab.Firewall {
	isDaemon := func(f lab.Firewall) bool { return f.Async }
	return slices.DeleteFunc(slices.Clone(lab.Firewalls), isDaemon)
}

// eachOf runs a test against these firewalls and families, in parallel. iptables-legacy and
// iptables-nft load the same rules. So without allScans, and if the test is for all four
// combinations, iptables-legacy loads only those for IPv4, and iptables-nft those for IPv6.
func eachOf(t *testing.T, firewalls []lab.Firewall, families []lab.Family, test func(*testing.T, lab.Firewall, lab.Family)) {
	t.Parallel() // other tests may run meanwhile, because tests mostly wait
	has := func(name string) bool {
		return slices.ContainsFunc(firewalls, func(f lab.Firewall) bool { return f.Name == name })
	}
	hasBothIptables := has("iptables-legacy") && has("iptables-nft")
	for _, f := range firewalls {
		for _, family := range families {
			twice := family == lab.IPv6 && f.Name == "iptables-legacy" || family == lab.IPv4 && f.Name == "iptables-nft"
			if twice && !allScans && len(families) == 2 && hasBothIptables {
				continue
			}
			t.Run(fmt.Sprintf("%s/%v", f.Name, family), func(t *testing.T) {
				t.Parallel()
				test(t, f, family)
			})
		}
	}
}
