package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// gateway is a rig whose server is a gateway. The sshd does not listen on port 22 of the
// server. It listens on the target: on a host behind the gateway, or on another port of
// the server. The fwknopd forwards port 22 to the target.
type gateway struct {
	rig    *rig
	inner  *lab.Host      // host on which the sshd runs
	target netip.AddrPort // address and port on which the sshd listens
	closed lab.State      // state of port 22 for addresses that are not admitted
}

// newGateway makes a gateway that forwards only established connections. Its closed
// ports have the state closed. If local is true, the target is a port of the gateway.
func newGateway(t *testing.T, closed lab.State, local bool, settings ...string) *gateway {
	t.Helper()
	lab.Require(t, "ssh", "sshd", "fwknopd", "iptables")
	r := newEmptyRig(t, fwknopd, lab.IPv4)
	g := &gateway{rig: r, closed: closed}
	g.inner, g.target = r.attacker, netip.AddrPortFrom(r.attacker.Source(lab.IPv4, 5), 22)
	if local {
		g.inner, g.target = r.server, r.port(2222)
		settings = append(settings, "NATLocal yes")
	}
	r.sshd = g.inner.SSHD(t, []uint16{g.target.Port()})
	r.server.Shell(t, fmt.Sprintf(`set -e
		echo 1 >/proc/sys/net/ipv4/ip_forward
		for redirects in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 >$redirects; done
		iptables -P FORWARD DROP
		iptables -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
		iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
		iptables -A INPUT -p tcp --dport 22 -j %s
		iptables -A INPUT -p tcp --dport 2222 -j DROP`,
		map[lab.State]string{lab.Dropped: "DROP", lab.Refused: "REJECT --reject-with tcp-reset"}[closed]))
	// The client's route to the host behind leads through the gateway. The gateway does
	// not redirect the client to a shorter route (send_redirects is 0).
	r.client.Run(t, "ip", "route", "replace", "10.3.0.0/16", "via", r.addr().String())
	settings = append(settings, fmt.Sprintf("NATAccess %v,%d", g.target.Addr(), g.target.Port()))
	r.profile = r.vpsProfile(t, fwknopSettings(t, settings...)...)
	r.emitRules(t)
	r.config = r.sshConfig(t, r.profile)
	return g
}

// expectForwarding checks that ssh reaches the target, and that another address reaches
// neither port 22 nor the target.
func (g *gateway) expectForwarding(t *testing.T) {
	t.Helper()
	r := g.rig
	if got := r.ssh(t, "hostname"); got != g.inner.Name+"\n" {
		t.Fatalf("ssh reaches the host %q, want %s", got, g.inner.Name)
	}
	r.expect(t, r.client, lab.Open)
	for to, want := range map[netip.AddrPort]lab.State{r.port(22): g.closed, g.target: lab.Dropped} {
		if got := r.client.ProbeFrom(t, r.client.Source(lab.IPv4, 9), to); got != want {
			t.Errorf("%v is %v for an address that is not admitted, want %v", to, got, want)
		}
	}
}

// eachNAT runs a test in parallel for two gateways: one forwards to a host behind the
// gateway, the other to another port of the gateway.
func eachNAT(t *testing.T, test func(t *testing.T, local bool)) {
	t.Parallel()
	for name, local := range map[string]bool{"to a host behind": false, "to a local port": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, local)
		})
	}
}

// TestFwknopdForwardsWherePacketAsks: an fwknopd that makes its own rules forwards the
// port to the target that the packet names.
func TestFwknopdForwardsWherePacketAsks(t *testing.T) {
	eachNAT(t, func(t *testing.T, local bool) {
		for _, closed := range []lab.State{lab.Dropped, lab.Refused} {
			for _, timeout := range []string{"0", "20"} {
				t.Run(fmt.Sprintf("%v/SPATimeout %s", closed, timeout), func(t *testing.T) {
					t.Parallel()
					g := newGateway(t, closed, local, "SPATimeout "+timeout)
					// The host behind sends its answers through the gateway.
					r := g.rig
					for _, to := range []string{r.client.Addr(lab.IPv4).String(), "10.2.0.0/16"} {
						r.attacker.Run(t, "ip", "route", "replace", to, "via", r.addr().String())
					}
					startFwknopd(t, r.server, r.server.Shell(t, "grep -v ^FORCE_NAT '"+r.rules+"'"))
					r.expect(t, r.client, closed)
					g.expectForwarding(t)
				})
			}
		}
	})
}

// TestFwknopRulesForwardWhereProfileSays: the commands in the header test, load
// and unload the rules. These rules forward the port to the target in the profile, even if
// the packet names another target.
func TestFwknopRulesForwardWhereProfileSays(t *testing.T) {
	eachNAT(t, func(t *testing.T, local bool) {
		g := newGateway(t, lab.Dropped, local)
		r := g.rig
		// If the host behind saw the client's address, its answers would not go through the
		// gateway.
		r.server.Shell(t, "printf '#; %s;\\n' 'ENABLE_IPT_SNAT Y' 'SNAT_TRANSLATE_IP "+r.addr().String()+"' >>'"+r.rules+"'")
		r.runHeaderLine(t, "test")
		r.runHeaderLine(t, "load")
		r.expect(t, r.client, lab.Dropped)
		r.knockAndWait(t, r.client, "-o", "NATAccess=192.0.2.1,80")
		if got := sshOutput(t, r.client, "-F", r.config, "direct", "hostname"); got != g.inner.Name+"\n" {
			t.Errorf("a packet that asks for another target leads to %q", got)
		}
		watched := r.server.Run(t, "iptables-save")
		if !strings.Contains(watched, "--to-destination "+g.target.String()+"\n") || strings.Contains(watched, ":80\n") {
			t.Errorf("the rules are\n%s", watched)
		}
		r.runHeaderLine(t, "load")
		r.awaitPort(t, time.Minute, r.client, 22, g.closed)
		g.expectForwarding(t)
		r.runHeaderLine(t, "unload")
		r.expect(t, r.client, lab.Dropped)
		if out := r.server.Run(t, "iptables-save"); strings.Contains(out, "FWKNOP") {
			t.Errorf("the unload line left rules of fwknopd:\n%s", out)
		}
	})
}
