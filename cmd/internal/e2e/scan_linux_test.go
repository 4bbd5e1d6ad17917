package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

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
		r.answerAllDatagrams(t)
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

// answerAllDatagrams lifts the limit on the rate at which the server answers datagrams to
// closed ports.
func (r *rig) answerAllDatagrams(t testing.TB) {
	t.Helper()
	r.server.Shell(t, "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
}

// kindOfScan says which packets a scan sends.
type kindOfScan int

const (
	begins    kindOfScan = iota // packets that begin a connection
	neither                     // packets that neither begin nor continue a connection
	continues                   // packets with ACK, as in a connection
)

// nmapScan is a scan by nmap.
type nmapScan struct {
	flags string
	kind  kindOfScan
	main  bool // every run of the tests sends the scan in all forms, and also to the second address
}

var nmapScans = []nmapScan{
	{"-sS -sU", begins, true},
	{"-sF", neither, true},
	{"-sN", neither, false},
	{"-sX", neither, false},
	{"-sS --scanflags SYNFIN", neither, false},
	{"-sF --scanflags PSH", neither, false},
	{"-sF --scanflags URG", neither, false},
	{"-sF --scanflags ECECWR", neither, false},
	{"-sA", continues, true},
	{"-sW", continues, false},
	{"-sM", continues, false},
}

// allScans means that TestScansLearnNothing runs with each scan in each form, and with and
// without NAT, that TestRepeatedKnocks runs with each firewall and option, that
// TestCheckNamesFaults has each fault, that tests on links with random losses run more often,
// and that eachOf leaves out nothing. This takes minutes.
var allScans = os.Getenv("PORTKNOCK_LAB_SCANS") == "all"

// scans returns the scans for a family: as they are, in fragments, and among packets from
// forged addresses. nmap fragments and forges only IPv4 packets.
func scans(family lab.Family) (list []nmapScan) {
	for _, s := range nmapScans {
		list = append(list, s)
		if family == lab.IPv4 && (s.main || allScans) {
			list = append(list, nmapScan{s.flags + " -f --data-length 24", s.kind, s.main},
				nmapScan{s.flags + " -D 192.0.2.2,ME,10.3.0.9", s.kind, s.main})
		}
	}
	return list
}

// scanned is a port that the matrix scans.
type scanned struct {
	port    string // as nmap prints it
	listens bool   // a service listens and answers
	guarded bool
	leads   bool // NAT leads the port to port 22 of the first address
	allowed bool // the drop policy allows the port
}

var scannedPorts = []scanned{
	{port: "22/tcp", listens: true, guarded: true},
	{port: "2200/tcp", listens: true, guarded: true}, // at all addresses
	{port: "2201/tcp", guarded: true},
	{port: "443/tcp", leads: true},
	{port: "2222/tcp", leads: true},
	{port: "2223/tcp", leads: true},
	{port: "80/tcp", listens: true, allowed: true},
	{port: "81/tcp", allowed: true},
	{port: "8080/tcp", listens: true},
	{port: "8081/tcp"},
	{port: "8443/tcp"}, // NAT leads this port to 8080
	{port: "7001/tcp"}, // a knock
	{port: "9005/tcp"}, // a knock
	{port: "22/udp", listens: true, guarded: true},
	{port: "2201/udp", guarded: true},
	{port: "443/udp", leads: true},
	{port: "2223/udp", leads: true},
	{port: "80/udp", listens: true, allowed: true},
	{port: "81/udp", allowed: true},
	{port: "8080/udp", listens: true},
	{port: "8081/udp"},
	{port: "8003/udp"}, // a knock
}

// answers maps "ADDRESS PORT" to what nmap prints about the port, such as
// "closed reset ttl 64".
type answers map[string]string

var nmapReport = regexp.MustCompile(`(?m)^Nmap scan report for (\S+)|^(\d+/(?:tcp|udp)) +(\S+) +\S+ +(.+)$`)

// nmap scans all ports of the matrix at these addresses from the attacker.
func (r *rig) nmap(t testing.TB, flags string, addrs ...string) answers {
	t.Helper()
	var ports []string
	for _, p := range scannedPorts {
		number, transport, _ := strings.Cut(p.port, "/")
		switch {
		case transport == "tcp":
			ports = append(ports, "T:"+number)
		case strings.Contains(flags, "-sU"):
			ports = append(ports, "U:"+number)
		}
	}
	args := append([]string{"-Pn", "-n", "-T5", "--max-retries", "1", "--min-rate", "1000", "--initial-rtt-timeout", "100ms",
		"--min-rtt-timeout", "100ms", "--max-rtt-timeout", "100ms", "--reason", "-vvv", "-p", strings.Join(ports, ",")},
		strings.Fields(flags)...)
	if r.family == lab.IPv6 {
		args = append(args, "-6")
	}
	all, addr := answers{}, ""
	out := r.attacker.Run(t, "nmap", append(args, addrs...)...)
	for _, m := range nmapReport.FindAllStringSubmatch(out, -1) {
		if m[1] != "" {
			addr = m[1]
		} else {
			all[addr+" "+m[2]] = m[3] + " " + m[4]
		}
	}
	if len(all) != len(ports)*len(addrs) {
		t.Fatalf("nmap %s prints the state of %d ports at %d addresses, want %d ports:\n%s", flags, len(all), len(addrs), len(ports), out)
	}
	return all
}

// echoDatagrams makes a host answer each datagram to a port with the same datagram.
func echoDatagrams(t testing.TB, h *lab.Host, port uint16) {
	t.Helper()
	c := lab.Socket(t, h, func() (net.PacketConn, error) { return net.ListenPacket("udp", fmt.Sprintf(":%d", port)) })
	go func() {
		for buf := make([]byte, 2000); ; {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	}()
}

// TestScansLearnNothing: nmap's scans learn nothing about guarded ports, and nothing about
// any port that the drop policy closes. The test compares what nmap prints about each port
// with and without the rules.
//
// A guarded port never answers, and all other ports answer as without a guard. With the
// drop policy, only the ports of --allow answer. Packets with ACK are the exception: all
// ports answer them in one way, with or without a service, a guard or the policy.
//
// NAT leads only packets that begin a connection. For other packets, a port that leads to a
// guarded port is an ordinary port of the server.
func TestScansLearnNothing(t *testing.T) {
	firewalls := append(slices.Clone(lab.Firewalls), fwknopd)
	eachOf(t, firewalls, lab.Families, func(t *testing.T, f lab.Firewall, family lab.Family) {
		testScans(t, f, family, true)
		if allScans {
			testScans(t, f, family, false)
		}
	})
}

func testScans(t *testing.T, f lab.Firewall, family lab.Family, nat bool) {
	lab.Require(t, "nmap")
	// The scans do not send the last knock, so they cannot open the ports by chance.
	settings := []string{"Sequence 7001/tcp 8003/udp 9005/tcp 41000/udp", "KnockTimeout 1m"}
	if f.Name == fwknopd.Name {
		settings = fwknopSettings(t)
	}
	r := newRig(t, f, family, append(settings, "OpenPorts 22/tcp 22/udp 2200/tcp 2201/tcp 2201/udp")...)
	r.answerAllDatagrams(t)
	for _, port := range []uint16{22, 80, 8080} {
		echoDatagrams(t, r.server, port)
	}
	r.server.Listen(t, 80)
	r.server.Listen(t, 8080)
	listenTransparently(t, r.server, family, 2200)
	all := []string{r.addr().String()}
	if nat {
		r.redirect(t)
		all = append(all, r.routeByTable(t).String())
	}
	addrs := func(s nmapScan) []string {
		if s.main && s.kind != continues {
			return all
		}
		return all[:1] // the kernel answers ACK only at its own addresses
	}
	before := map[string]answers{}
	for _, s := range scans(family) {
		// On a busy machine, nmap may not wait long enough for an answer.
		lab.Await(t, time.Minute, func() string {
			got := r.nmap(t, s.flags, addrs(s)...)
			before[s.flags] = got
			for _, p := range scannedPorts {
				for i, addr := range addrs(s) {
					answers := s.kind != neither || !p.listens
					if i > 0 { // most services do not listen at the second address
						answers = s.kind == begins && (p.leads || p.port == "2200/tcp")
					}
					if answers && strings.HasSuffix(got[addr+" "+p.port], "no-response") {
						return fmt.Sprintf("without a guard, nmap %s gets no answer from port %s of %s", s.flags, p.port, addr)
					}
				}
			}
			return ""
		})
		// If a scan finds no difference without a guard, it cannot find one with a guard.
		if states := slices.Compact(slices.Sorted(maps.Values(before[s.flags]))); (len(states) == 1) != (s.kind == continues) {
			t.Errorf("without a guard, nmap %s finds ports in the states %q", s.flags, states)
		}
	}
	for _, policy := range []string{"guard", "drop"} {
		silent := func(s nmapScan, p scanned) bool {
			if policy == "drop" {
				return s.kind == neither || s.kind == begins && !p.allowed
			}
			return s.kind != continues && p.guarded || s.kind == begins && p.leads && nat
		}
		flags := []string{"--policy", policy, "--output", r.rules}
		if policy == "drop" {
			flags = append(flags, "--allow", "80-81/tcp,80-81/udp")
		}
		emitRules(t, r.server, f, r.profile, flags...)
		r.runHeaderLine(t, "load")
		for _, s := range scans(family) {
			t.Run(fmt.Sprintf("nat=%v/%s/%s", nat, policy, s.flags), func(t *testing.T) {
				lab.Await(t, 30*time.Second, func() string {
					var wrong []string
					got := r.nmap(t, s.flags, addrs(s)...)
					for _, p := range scannedPorts {
						for _, addr := range addrs(s) {
							at := addr + " " + p.port
							if got[at] == "" {
								continue // the scan sends no datagrams
							}
							answered := !strings.HasSuffix(got[at], "no-response")
							if silent(s, p) && answered || !silent(s, p) && got[at] != before[s.flags][at] {
								wrong = append(wrong, fmt.Sprintf("%s is %q, and %q without the rules", at, got[at], before[s.flags][at]))
							}
						}
					}
					return strings.Join(wrong, "\n")
				})
			})
		}
	}
}

// TestSweepThroughRedirectOpensNothing: a sweep in any order opens nothing if REDIRECT
// leads many ports to the guarded one, also ports of the sequence. The right knocks open
// the guarded port and all these ports, only for the client.
func TestSweepThroughRedirectOpensNothing(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 1900/tcp 1200/udp 1500/tcp", "KnockTimeout 1m", "OpenFor 5m", "OpenPorts 22/tcp 22/udp")
		table := map[lab.Family]string{lab.IPv4: "ip", lab.IPv6: "ip6"}[family]
		r.server.RunInput(t, strings.NewReader("table "+table+` paths {
			chain in { type nat hook prerouting priority -100; meta l4proto { tcp, udp } th dport 1000-2000 redirect to :22; }
		}`), "nft", "-f", "-")
		r.expectPaths(t, "without a guard", r.attacker, lab.Open, 22, 1000, 2000)
		r.runHeaderLine(t, "load")
		ports := make([]uint16, 2200)
		for i := range ports {
			ports[i] = uint16(i + 1)
		}
		orders := map[lab.Order]func(){
			lab.Ascending:  func() { slices.Sort(ports) },
			lab.Descending: func() { slices.Reverse(ports) },
			lab.Random: func() {
				rand.New(rand.NewPCG(1, 2)).Shuffle(len(ports), func(i, j int) { ports[i], ports[j] = ports[j], ports[i] })
			},
		}
		for _, order := range []lab.Order{lab.Ascending, lab.Descending, lab.Random} {
			orders[order]()
			for _, transports := range [][]knock.Transport{{knock.TCP}, {knock.UDP}, {knock.TCP, knock.UDP}} {
				if f.Async && (order != lab.Ascending || len(transports) > 1) {
					continue // knockd stops only scans in order
				}
				r.attacker.Flood(t, len(ports)*len(transports), func(i int) lab.Packet {
					step := knock.Step{Transport: transports[i%len(transports)], Port: ports[i/len(transports)]}
					return lab.KnockPacket(netip.AddrPort{}, r.addr(), step)
				})
				r.expectPaths(t, fmt.Sprintf("after a sweep, %s, %v", order, transports), r.attacker, lab.Dropped, 22, 1000, 1500, 2000)
			}
		}
		r.knockAndWait(t, r.client)
		r.expectPaths(t, "after the knocks", r.client, lab.Open, 22, 1000, 1500, 2000)
		r.expectPaths(t, "after the knocks of the client", r.attacker, lab.Dropped, 22, 1000, 1500, 2000)
	})
}
