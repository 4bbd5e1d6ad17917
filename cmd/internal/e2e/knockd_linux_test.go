package e2e

import (
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestKnockdSharedPorts: a sequence opens although a port stands twice in it, as in
// sequences of md5-hourly, or stands in another window's sequence too.
func TestKnockdSharedPorts(t *testing.T) {
	t.Parallel()
	for _, tt := range [][2]string{
		{"7001 7001 9005 8003", "7002 7001 8003 9005"},
		{"7001 9005 7001 8003 6000", "9005 7001 8003 7001 7001"},
		{"7001/udp 9005/udp 9005/udp 8003", "8003 7001/udp 9005/udp 7001/udp"},
		{"7001 9005 8003 6000 5000", "8003 9005 7001 5000 6000"},
	} {
		t.Run(tt[0], func(t *testing.T) {
			t.Parallel()
			r := newHosts(t, firewallNamed("knockd"), lab.IPv4)
			addr := "HostName " + r.addr().String()
			r.profile = vps(t, addr, "Sequence "+tt[0], "Host web", addr, "Sequence "+tt[1])
			r.emit(t, "web")
			r.header(t, "load")
			r.server.Run(t, "pkill", "-x", "knockd")
			r.server.Knockd(t, r.rules)
			r.client.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "vps")
			r.attacker.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "web")
		})
	}
}
