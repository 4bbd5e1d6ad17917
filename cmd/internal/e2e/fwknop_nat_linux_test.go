package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// gateway is a rig whose server is a gateway. The sshd does not listen at port 22 of
// the server but at the target: on a host behind, or at another port of the server.
// The fwknopd forwards port 22 there.
type gateway struct {
	rig    *rig
	inner  *lab.Host      // where the sshd runs
	target netip.AddrPort // where the sshd listens
	closed lab.State      // how port 22 answers addresses that are not admitted
}

// newGateway makes a gateway that forwards established connections only, and whose
// closed ports answer as given.
func newGateway(t *testing.T, closed lab.State, local bool, settings ...string) *gateway {
	t.Helper()
	lab.Require(t, "ssh", "sshd", "fwknopd", "iptables")
	r := newNet(t, fwknopd, lab.IPv4)
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
	// The way to the host behind leads through the gateway, which does not tell of a
	// shorter one.
	r.client.Run(t, "ip", "route", "replace", "10.3.0.0/16", "via", r.addr().String())
	settings = append(settings, fmt.Sprintf("NATAccess %v,%d", g.target.Addr(), g.target.Port()))
	r.profile = r.vps(t, fwknopSettings(t, settings...)...)
	r.emit(t)
	r.config = r.sshConfig(t, r.profile)
	return g
}

// expectIn checks that ssh gets in where it should, and others nowhere.
func (g *gateway) expectIn(t *testing.T) {
	t.Helper()
	r := g.rig
	if got := r.ssh(t, "hostname"); got != g.inner.Name+"\n" {
		t.Fatalf("ssh reaches %q, want %s", got, g.inner.Name)
	}
	r.expect(t, r.client, lab.Open)
	for to, want := range map[netip.AddrPort]lab.State{r.port(22): g.closed, g.target: lab.Dropped} {
		if got := r.client.ProbeFrom(t, r.client.Source(lab.IPv4, 9), to); got != want {
			t.Errorf("%v is %v for others, want %v", to, got, want)
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
					r := g.rig
					for _, to := range []string{r.client.Addr(lab.IPv4).String(), "10.2.0.0/16"} {
						r.attacker.Run(t, "ip", "route", "replace", to, "via", r.addr().String())
					}
					startFwknopd(t, r.server, r.server.Shell(t, "grep -v ^FORCE_NAT '"+r.rules+"'"))
					r.expect(t, r.client, closed)
					g.expectIn(t)
				})
			}
		}
	})
}

// TestFwknopNATLoads: the lines of the header. Rules that are loaded that way forward
// the port where the profile says, whatever the packet says.
func TestFwknopNATLoads(t *testing.T) {
	eachNAT(t, func(t *testing.T, local bool) {
		g := newGateway(t, lab.Dropped, local)
		r := g.rig
		// The host behind would answer past the gateway, if it saw the client's address.
		r.server.Shell(t, "printf '#; %s;\\n' 'ENABLE_IPT_SNAT Y' 'SNAT_TRANSLATE_IP "+r.addr().String()+"' >>'"+r.rules+"'")
		r.header(t, "check")
		r.header(t, "load")
		r.expect(t, r.client, lab.Dropped)
		r.knockAndWait(t, r.client, "-o", "NATAccess=192.0.2.1,80")
		if got := sshOutput(t, r.client, "-F", r.config, "direct", "hostname"); got != g.inner.Name+"\n" {
			t.Errorf("a packet that asks for another target leads to %q", got)
		}
		watched := r.header(t, "watch")
		if !strings.Contains(watched, "--to-destination "+g.target.String()+"\n") || strings.Contains(watched, ":80\n") {
			t.Errorf("watching shows\n%s", watched)
		}
		r.header(t, "load")
		r.await(t, 20*time.Second, r.client, 22, g.closed)
		g.expectIn(t)
		r.header(t, "undo")
		r.expect(t, r.client, lab.Dropped)
		if out := r.server.Run(t, "iptables-save"); strings.Contains(out, "FWKNOP") {
			t.Errorf("after the undo there is\n%s", out)
		}
	})
}
