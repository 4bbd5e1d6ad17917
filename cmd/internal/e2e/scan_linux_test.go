package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
	"golang.org/x/sys/unix"
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

// TestScansWithoutSYNLearnNothing: a packet that neither begins nor continues a
// connection gets no answer at a guarded port. With the drop policy, it gets no answer at
// any port, not even at a port of --allow. Without that policy, other ports answer as
// without a guard.
func TestScansWithoutSYNLearnNothing(t *testing.T) {
	scans := map[string]lab.Flags{"NULL": 0, "FIN": lab.FIN, "Xmas": lab.FIN | lab.PSH | lab.URG,
		"SYN FIN": lab.SYN | lab.FIN, "PSH": lab.PSH, "URG": lab.URG, "ECE CWR": ece | cwr}
	type answers map[string]map[uint16]lab.State
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks, "OpenPorts 22 2200")
		guarded, others := []uint16{22, 2200}, []uint16{80, 81, 8080, 8081} // half of each listens
		r.server.Listen(t, 80)
		r.server.Listen(t, 8080)
		scan := func() answers {
			all := answers{}
			for name, flags := range scans {
				all[name] = map[uint16]lab.State{}
				for _, port := range slices.Concat(guarded, others) {
					p := lab.Packet{Dst: r.port(port), Flags: flags, Proto: unix.IPPROTO_TCP}
					all[name][port] = r.attacker.ProbeAs(t, p, nil)
				}
			}
			return all
		}
		before := scan()
		if before["FIN"][22] == before["FIN"][2200] {
			t.Fatal("without a guard, FIN does not tell a listening port from another")
		}
		for _, flags := range [][]string{nil, {"--policy", "drop", "--allow", "80,81"}} {
			r.emitRules(t, flags...)
			r.runHeaderLine(t, "load")
			silent, same := guarded, others
			if flags != nil {
				silent, same = slices.Concat(guarded, others), nil
			}
			for name, got := range scan() {
				for _, port := range silent {
					if got[port] != lab.Dropped {
						t.Errorf("flags %v: a %s packet to port %d is %v", flags, name, port, got[port])
					}
				}
				for _, port := range same {
					if got[port] != before[name][port] {
						t.Errorf("flags %v: a %s packet to port %d is %v, and %v without a guard",
							flags, name, port, got[port], before[name][port])
					}
				}
			}
		}
		r.expectPort(t, r.client, 80, lab.Open)
		r.expectPort(t, r.client, 81, lab.Refused)
		r.ssh(t, "true")
	})
}

// TestNmapScansWithoutSYNLearnNothing: with the drop policy, nmap's scans -sF, -sN and -sX
// find no difference between any two ports.
func TestNmapScansWithoutSYNLearnNothing(t *testing.T) {
	eachOf(t, kernelFirewalls(), lab.Families, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "nmap")
		r := newRig(t, f, family, twoKnocks)
		r.server.Listen(t, 80)
		args := func(flag string) []string {
			args := []string{flag, "-Pn", "-n", "-v", "--max-retries", "1", "-p", "22,23,80,81", r.addr().String()}
			if family == lab.IPv6 {
				args = append(args, "-6")
			}
			return args
		}
		if out := r.attacker.Run(t, "nmap", args("-sF")...); !strings.Contains(out, "23/tcp closed") || strings.Contains(out, "22/tcp closed") {
			t.Fatalf("without a guard, nmap -sF does not find the listening ports:\n%s", out)
		}
		r.emitRules(t, "--policy", "drop", "--allow", "80,81")
		r.runHeaderLine(t, "load")
		for _, flag := range []string{"-sF", "-sN", "-sX"} {
			out := r.attacker.Run(t, "nmap", args(flag)...)
			if strings.Contains(out, "closed") || !strings.Contains(out, "open|filtered") {
				t.Errorf("nmap %s tells ports from one another:\n%s", flag, out)
			}
		}
	})
}
