package e2e

import (
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// TestScannerCannotTellKnockPorts: on a server that rejects packets to closed ports, a
// scanner sees no difference between a knock port and other ports. This holds at every
// stage.
func TestScannerCannotTellKnockPorts(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "nmap")
		r := newRig(t, f, family, "Sequence 7001/tcp 8003/udp 9005/tcp", "KnockTimeout 1m") // nmap may need several seconds
		r.runHeaderLine(t, "load")
		// Linux limits the rate of its answers for closed UDP ports.
		r.server.Shell(t, "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
		knocks := sequence("7001/tcp 8003/udp 9005/tcp")
		for stage := range len(knocks) {
			for _, transport := range []struct {
				name, flag string
				ports      []string
			}{
				{"tcp", "-sS", []string{"7001", "9005", "7777"}},
				{"udp", "-sU", []string{"8003", "7777"}},
			} {
				for _, port := range transport.ports {
					r.client.Knock(t, r.addr(), knocks[:stage]...)
					args := []string{transport.flag, "-Pn", "-n", "--max-retries", "1", "-p", port, r.addr().String()}
					if family == lab.IPv6 {
						args = append(args, "-6")
					}
					out := r.client.Run(t, "nmap", args...)
					if want := port + "/" + transport.name + " closed"; !strings.Contains(out, want) {
						t.Errorf("stage %d: nmap does not print %q:\n%s", stage, want, out)
					}
					r.client.Knock(t, r.addr(), knock.Step{Port: 1}) // a wrong knock resets the stage
				}
			}
		}
	})
}

// TestNmapScanOfAllPortsOpensNothing: a scan of all ports by nmap does not open port 22.
func TestNmapScanOfAllPortsOpensNothing(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nmap")
	r := newGuardedRig(t, nftables, lab.IPv4, "Sequence 7001/tcp 8003/tcp 9005/tcp")
	out := r.client.Run(t, "nmap", "-sS", "-Pn", "-n", "-T5", "-p-", r.addr().String())
	if !strings.Contains(out, "22/tcp filtered") || strings.Contains(out, "7001/tcp filtered") {
		t.Errorf("nmap does not show port 22 filtered and port 7001 not filtered:\n%s", out)
	}
	r.expect(t, r.client, lab.Dropped)
}
