package e2e

import (
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestKnockdSequencesMayRepeatAndSharePorts: a sequence opens the port although a port
// occurs twice in it, as in sequences of md5-hourly. It also opens the port although
// another section's sequence has the same port, as sequences of two windows may.
func TestKnockdSequencesMayRepeatAndSharePorts(t *testing.T) {
	t.Parallel()
	for _, tt := range [][2]string{
		{"7001 7001 9005 8003", "7002 7001 8003 9005"},
		{"7001 9005 7001 8003 6000", "9005 7001 8003 7001 7001"},
		{"7001/udp 9005/udp 9005/udp 8003", "8003 7001/udp 9005/udp 7001/udp"},
		{"7001 9005 8003 6000 5000", "8003 9005 7001 5000 6000"},
	} {
		t.Run(tt[0], func(t *testing.T) {
			t.Parallel()
			r := newListeningRig(t, firewallNamed("knockd"), lab.IPv4)
			addr := "HostName " + r.addr().String()
			r.profile = vpsProfile(t, addr, "Sequence "+tt[0], "Host web", addr, "Sequence "+tt[1])
			r.emitRules(t, "web")
			r.runHeaderLine(t, "load")
			r.server.Run(t, "pkill", "-x", "knockd")
			r.server.Knockd(t, r.rules)
			r.client.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "vps")
			r.attacker.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "web")
		})
	}
}
