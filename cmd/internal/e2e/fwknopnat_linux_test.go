package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// gateway is a rig whose server is a gateway. The sshd is not at port 22 of it but
// where its fwknopd forwards that to: on a host behind, or at another port.
type gateway struct {
	*rig
	inner  *lab.Host // where the sshd runs
	target netip.AddrPort
	closed lab.State // how port 22 answers those for whom it is not open
}

// newGateway makes a gateway that forwards established connections only, and whose
// closed ports answer as given.
func newGateway(t *testing.T, closed lab.State, local bool, settings ...string) *gateway {
	t.Helper()
	lab.Require(t, "ssh", "sshd", "fwknopd", "iptables")
	g := &gateway{rig: &rig{Net: lab.New(t), Firewall: fwknopd, family: lab.IPv4}, closed: closed}
	addr := g.Server.Addr(lab.IPv4)
	g.inner, g.target = g.Attacker, netip.AddrPortFrom(g.Attacker.Source(lab.IPv4, 5), 22)
	if local {
		g.inner, g.target = g.Server, netip.AddrPortFrom(addr, 2222)
		settings = append(settings, "NATLocal yes")
	}
	g.sshd = g.inner.SSHD(t, []uint16{g.target.Port()})
	g.Server.Shell(t, fmt.Sprintf(`set -e
		echo 1 >/proc/sys/net/ipv4/ip_forward
		for redirects in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 >$redirects; done
		iptables -P FORWARD DROP
		iptables -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
		iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
		iptables -A INPUT -p tcp --dport 22 -j %s
		iptables -A INPUT -p tcp --dport 2222 -j DROP`,
		map[lab.State]string{lab.Dropped: "DROP", lab.Refused: "REJECT --reject-with tcp-reset"}[closed]))
	// The way to the host behind leads through the gateway, which does not tell of a
	// shorter one.
	g.Client.Run(t, "ip", "route", "replace", "10.3.0.0/16", "via", addr.String())
	g.profile = secret(t, "config", append([]string{"Host vps", "HostName " + addr.String(),
		fmt.Sprintf("NATAccess %v,%d", g.target.Addr(), g.target.Port())}, fwknopSettings(t, settings...)...)...)
	g.rules = emit(t, g.Server, fwknopd, g.profile)
	g.config = g.sshConfig(t, g.profile)
	return g
}

// expectIn checks that ssh gets in where it should, and others nowhere.
func (g *gateway) expectIn(t *testing.T) {
	t.Helper()
	if got := g.ssh(t, "hostname"); got != g.inner.Name+"\n" {
		t.Fatalf("ssh reaches %q, want %s", got, g.inner.Name)
	}
	g.expect(t, g.Client, lab.Open)
	for to, want := range map[netip.AddrPort]lab.State{addrPort(g.rig, 22): g.closed, g.target: lab.Dropped} {
		if got := g.Client.ProbeFrom(t, g.Client.Source(lab.IPv4, 9), to); got != want {
			t.Errorf("%v is %v for others, want %v", to, got, want)
		}
	}
}

// awaitClosed waits until the client, too, is shut out.
func (g *gateway) awaitClosed(t *testing.T) {
	t.Helper()
	for late := time.Now().Add(20 * time.Second); g.probe(t, g.Client) != g.closed; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("it does not close")
		}
	}
}

// eachNAT runs a test for a gateway that forwards to a host behind it, and for one
// that forwards to another port of its own, in parallel.
func eachNAT(t *testing.T, test func(t *testing.T, local bool)) {
	t.Parallel()
	for name, local := range map[string]bool{"access": false, "local": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, local)
		})
	}
}

// TestFwknopNAT: an fwknopd that makes its own rules forwards the port to where the
// packet says.
func TestFwknopNAT(t *testing.T) {
	eachNAT(t, func(t *testing.T, local bool) {
		for _, closed := range []lab.State{lab.Dropped, lab.Refused} {
			for _, timeout := range []string{"0", "20"} {
				t.Run(fmt.Sprintf("%v/%s", closed, timeout), func(t *testing.T) {
					t.Parallel()
					g := newGateway(t, closed, local, "SPATimeout "+timeout)
					// The host behind answers by way of the gateway.
					for _, to := range []string{g.Client.Addr(lab.IPv4).String(), "10.2.0.0/16"} {
						g.Attacker.Run(t, "ip", "route", "replace", to, "via", g.Server.Addr(lab.IPv4).String())
					}
					startFwknopd(t, g.Server, g.Server.Shell(t, "grep -v ^FORCE_NAT '"+g.rules+"'"))
					g.expect(t, g.Client, closed)
					g.expectIn(t)
				})
			}
		}
	})
}

// TestFwknopNATLoads: the lines of the header. Of what the packet says about where
// to forward the port, nothing counts then.
func TestFwknopNATLoads(t *testing.T) {
	eachNAT(t, func(t *testing.T, local bool) {
		g := newGateway(t, lab.Dropped, local)
		// The host behind would answer past the gateway, if it saw the client's address.
		g.addLines(t, "#; ENABLE_IPT_SNAT Y;", "#; SNAT_TRANSLATE_IP "+g.Server.Addr(lab.IPv4).String()+";")
		header(t, g.Server, g.rules, "check")
		header(t, g.Server, g.rules, "load")
		g.expect(t, g.Client, lab.Dropped)
		g.Client.Run(t, "portknock", "knock", "--wait", "-c", g.profile, "-o", "NATAccess=192.0.2.1,80", "vps", "22")
		if got := sshOutput(t, g.Client, "-F", g.config, "direct", "hostname"); got != g.inner.Name+"\n" {
			t.Errorf("a packet that asks for another target leads to %q", got)
		}
		if out := header(t, g.Server, g.rules, "watch"); !strings.Contains(out, "--to-destination "+g.target.String()+"\n") || strings.Contains(out, ":80\n") {
			t.Errorf("watching shows\n%s", out)
		}
		header(t, g.Server, g.rules, "load")
		g.awaitClosed(t)
		g.expectIn(t)
		header(t, g.Server, g.rules, "undo")
		g.expect(t, g.Client, lab.Dropped)
		if out := g.Server.Run(t, "iptables-save"); strings.Contains(out, "FWKNOP") {
			t.Errorf("after the undo there is\n%s", out)
		}
	})
}

// addLines appends lines to the rules.
func (g *gateway) addLines(t *testing.T, lines ...string) {
	t.Helper()
	text, err := os.ReadFile(g.rules)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.rules, append(text, strings.Join(lines, "\n")+"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
}
