package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// eachFirewall runs a test against every firewall and family, in parallel.
func eachFirewall(t *testing.T, test func(*testing.T, lab.Firewall, lab.Family)) {
	t.Parallel() // beside other tests too: they mostly wait
	for _, f := range lab.Firewalls {
		for _, family := range lab.Families {
			t.Run(fmt.Sprintf("%s/%v", f.Name, family), func(t *testing.T) {
				t.Parallel()
				test(t, f, family)
			})
		}
	}
}

func addrPort(r *rig, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(r.Server.Addr(r.family), port)
}

// TestTraces plays every trace against every firewall.
func TestTraces(t *testing.T) {
	traces := lab.ReadTraces(t, filepath.Join("..", "..", "testdata", "traces"))
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, tr := range traces {
			if tr.For(f) {
				t.Run(strings.TrimSuffix(tr.File, ".txt"), func(t *testing.T) {
					t.Parallel()
					tr.Run(t, f, family, loadTrace(t, f, tr))
				})
			}
		}
	})
}

// TestGuard follows a guard's whole life: the server without it, ssh through
// it, its reload, its end.
func TestGuard(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		// Long enough for a busy machine to log in and to load the rules again.
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp 9005/udp", "OpenFor 10s")
		before := ruleset(t, r)

		// Sessions from before the guard, on a server without connection
		// tracking until now: one goes on, and one is idle during the load.
		idle := r.echo(t, "direct")
		r.quiet(t)
		header(t, r.Server, r.rules, "check")
		header(t, r.Server, r.rules, "load")
		once := ruleset(t, r)
		idle.say(t, "before the first load")

		r.expect(t, r.Client, lab.Dropped)
		through := r.echo(t, "vps")
		through.say(t, "through the guard")
		opened := time.Now()
		r.expect(t, r.Client, lab.Open)
		r.expect(t, r.Attacker, lab.Dropped)

		header(t, r.Server, r.rules, "load") // again: sessions and openings go on
		if twice := ruleset(t, r); twice != once {
			t.Errorf("loaded once the rules are\n%s\nloaded twice\n%s", once, twice)
		}
		r.expect(t, r.Client, lab.Open)
		through.say(t, "after the second load")
		idle.say(t, "after the second load")
		r.expect(t, r.Attacker, lab.Dropped)

		transfer(t, r)

		// The knocks of the transfer came later than opened: so long it is open.
		for r.probe(t, r.Client) == lab.Open {
			if time.Since(opened) > 60*time.Second {
				t.Fatal("still open long after OpenFor")
			}
			time.Sleep(50 * time.Millisecond) // the kernel's clock cannot be faked
		}
		r.expect(t, r.Client, lab.Dropped)
		through.say(t, "after OpenFor")

		header(t, r.Server, r.rules, "undo")
		r.expect(t, r.Client, lab.Open)
		through.say(t, "after the undo")
		if after := ruleset(t, r); after != before {
			t.Errorf("the server was\n%s\nand is now\n%s", before, after)
		}
	})
}

// transfer moves 20 MB to the server and back through a new knock.
func transfer(t *testing.T, r *rig) {
	t.Helper()
	data := make([]byte, 20<<20)
	rand.Read(data)
	var back bytes.Buffer
	c := r.Client.Command("ssh", "-F", r.config, "vps", "cat")
	c.Stdin, c.Stdout = bytes.NewReader(data), &back
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(back.Bytes()) != sha256.Sum256(data) {
		t.Errorf("of %d bytes %d came back, and not the same", len(data), back.Len())
	}
}

// quiet waits until every segment of the sessions has been acknowledged: from
// then on neither side has anything to say by itself.
func (r *rig) quiet(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		unacknowledged := ""
		for _, h := range []*lab.Host{r.Client, r.Server} {
			unacknowledged += h.Shell(t, "ss -Htn state established | awk '$2 > 0'") // Send-Q
		}
		if unacknowledged == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("never quiet: %s", unacknowledged)
		}
	}
}

// ruleset returns the rules in force, without counters and without what the
// sets hold.
func ruleset(t testing.TB, r *rig) string {
	t.Helper()
	script := "nft -s -t list ruleset"
	if strings.HasPrefix(r.Firewall.Name, "iptables") {
		// An empty table that was looked at once is listed from then on.
		script = "for t in iptables ip6tables; do $t-save | grep -e ^-; done; true"
	}
	return r.Server.Shell(t, script)
}

// echo is an ssh session with a program that repeats what it is told.
type echo struct {
	in  io.Writer
	out *lab.Log
	n   int
}

func (r *rig) echo(t testing.TB, host string) *echo {
	t.Helper()
	return startEcho(t, r.Client.Command("ssh", "-F", r.config, host, "cat"))
}

// startEcho starts a command that repeats its input, and has it do so once.
func startEcho(t testing.TB, c *lab.Cmd) *echo {
	t.Helper()
	// A real pipe: with any other reader the end of c would wait for its end.
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{in: w, out: &lab.Log{}}
	c.Stdin, c.Stdout, c.Stderr = in, e.out, e.out
	err = c.Start()
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); c.End() })
	e.say(t, "hello")
	return e
}

// say has the session repeat a line.
func (e *echo) say(t testing.TB, what string) {
	t.Helper()
	e.n++
	line := fmt.Sprintf("%d %s\n", e.n, what)
	if _, err := io.WriteString(e.in, line); err != nil {
		t.Fatal(err)
	}
	e.out.Await(t, line, 1)
}

// TestPublishedPort guards a port that the server hands on to another host.
func TestPublishedPort(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp", "OpenPorts 22/tcp 2200-2222/tcp")
		r.Attacker.Listen(t, 80) // the host that it is handed on to
		r.Server.Shell(t, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
		proto := map[lab.Family]string{lab.IPv4: "ip", lab.IPv6: "ip6"}[family]
		r.Server.RunInput(t, strings.NewReader(fmt.Sprintf(`table %s published {
			chain in { type nat hook prerouting priority -100; tcp dport 2222 dnat to %s; }
			chain out { type nat hook postrouting priority 100; oif eth0 masquerade; }
		}`, proto, netip.AddrPortFrom(r.Attacker.Addr(family), 80))), "nft", "-f", "-")
		port := addrPort(r, 2222)
		if got := r.Client.Probe(t, port); got != lab.Open {
			t.Fatalf("without a guard the published port is %v", got)
		}
		header(t, r.Server, r.rules, "load")
		if got := r.Client.Probe(t, port); got != lab.Dropped {
			t.Errorf("guarded, the published port is %v", got)
		}
		r.ssh(t, "true")
		if got := r.Client.Probe(t, port); got != lab.Open {
			t.Errorf("after the knock the published port is %v", got)
		}
	})
}

// TestRoutedTraffic: a guard is about its own host. What the server hands on
// between others passes, to the same port, too.
func TestRoutedTraffic(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		r.Attacker.Listen(t, 22)
		r.Server.Shell(t, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
		beyond := r.Attacker.Source(family, 5)
		r.Client.Run(t, "ip", "route", "add", beyond.String(), "via", r.Server.Addr(family).String())
		header(t, r.Server, r.rules, "load")
		if got := r.Client.Probe(t, netip.AddrPortFrom(beyond, 22)); got != lab.Open {
			t.Errorf("port 22 of a host beyond the server is %v", got)
		}
		r.expect(t, r.Client, lab.Dropped)
	})
}

// TestKnockAtAService: a knock may go to a port where somebody answers. The
// client's kernel then ends the handshake by RST, which is not another knock.
func TestKnockAtAService(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp 9005/tcp 4000/udp")
		r.Server.Listen(t, 8003)
		header(t, r.Server, r.rules, "load")
		if got := r.ssh(t, "echo in"); got != "in\n" {
			t.Errorf("ssh prints %q", got)
		}
		if got := r.Attacker.Probe(t, addrPort(r, 8003)); got != lab.Open {
			t.Errorf("the service is %v for others", got)
		}
	})
}

// TestFragmentedSYN hides the flags of a SYN from rules that do not wait for
// the whole packet. The kernel itself refuses such fragments of IPv6.
func TestFragmentedSYN(t *testing.T) {
	for _, f := range lab.Firewalls {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, f, lab.IPv4, "Sequence 7001/udp 8003/tcp")
			if got := r.Client.FragmentedSYN(t, addrPort(r, 22)); got != lab.Open {
				t.Fatalf("without a guard the port is %v", got)
			}
			header(t, r.Server, r.rules, "load")
			if got := r.Client.FragmentedSYN(t, addrPort(r, 22)); got != lab.Dropped {
				t.Errorf("the port is %v", got)
			}
		})
	}
}

// TestReloadInMidSequence: a reload between two knocks costs nothing.
func TestReloadInMidSequence(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		if f.Async {
			t.Skip("knockd forgets attempts when it reads its configuration again; this cannot run anywhere")
		}
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp 9005/udp", "KnockTimeout 20s")
		header(t, r.Server, r.rules, "load")
		to := r.Server.Addr(family)
		r.Client.Knock(t, to, knock.Step{Transport: knock.UDP, Port: 7001}, knock.Step{Port: 8003})
		header(t, r.Server, r.rules, "load")
		r.Client.Knock(t, to, knock.Step{Transport: knock.UDP, Port: 9005})
		r.expect(t, r.Client, lab.Open)
	})
}

// TestManyAtOnce: several clients of one address get in at the same time.
func TestManyAtOnce(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		if f.Async {
			t.Skip("knockd takes two clients of one address for one that errs; this cannot run anywhere")
		}
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp 9005/udp")
		header(t, r.Server, r.rules, "load")
		var all sync.WaitGroup
		for i := range 10 {
			all.Go(func() {
				if out := r.ssh(t, "echo in"); out != "in\n" {
					t.Errorf("client %d: %q", i, out)
				}
			})
		}
		all.Wait()
	})
}

// TestNoOracle: on a server that answers at closed ports, a scanner sees no
// difference between a knock port and any other, at any stage.
func TestNoOracle(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "nmap")
		r := newRig(t, f, family, "Sequence 7001/tcp 8003/udp 9005/tcp", "KnockTimeout 1m") // nmap takes its time
		header(t, r.Server, r.rules, "load")
		// Linux answers at a closed UDP port only so often.
		r.Server.Shell(t, "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
		sequence := knock.Sequence{{Port: 7001}, {Transport: knock.UDP, Port: 8003}, {Port: 9005}}
		for stage := range len(sequence) {
			for _, transport := range []struct {
				name, flag string
				ports      []string
			}{
				{"tcp", "-sS", []string{"7001", "9005", "7777"}},
				{"udp", "-sU", []string{"8003", "7777"}},
			} {
				for _, port := range transport.ports {
					r.Client.Knock(t, r.Server.Addr(family), sequence[:stage]...)
					args := []string{transport.flag, "-Pn", "-n", "--max-retries", "1", "-p", port, r.Server.Addr(family).String()}
					if family == lab.IPv6 {
						args = append(args, "-6")
					}
					out := r.Client.Run(t, "nmap", args...)
					if want := port + "/" + transport.name + " closed"; !strings.Contains(out, want) {
						t.Errorf("stage %d: nmap does not say %q:\n%s", stage, want, out)
					}
					r.Client.Knock(t, r.Server.Addr(family), knock.Step{Port: 1}) // back to the start
				}
			}
		}
	})
}

// TestNmapSweep has nmap itself scan all ports; it opens nothing.
func TestNmapSweep(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nmap")
	r := newRig(t, lab.Firewalls[0], lab.IPv4, "Sequence 7001/tcp 8003/tcp 9005/tcp")
	header(t, r.Server, r.rules, "load")
	out := r.Client.Run(t, "nmap", "-sS", "-Pn", "-n", "-T5", "-p-", r.Server.Addr(lab.IPv4).String())
	if !strings.Contains(out, "22/tcp filtered") || strings.Contains(out, "7001/tcp filtered") {
		t.Errorf("nmap says\n%s", out)
	}
	r.expect(t, r.Client, lab.Dropped)
}

// TestTrial: rules on trial undo themselves, unless they are kept.
func TestTrial(t *testing.T) {
	for _, f := range lab.Firewalls {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			lab.Require(t, "pgrep", "mkfifo")
			r := newRig(t, f, lab.IPv4, "Sequence 7001/udp 8003/tcp")
			// The minute is over when the test says so.
			trial := strings.Replace(headerLine(t, r.rules, "trial"), "sleep 60", "read x </run/minute", 1)
			if !strings.Contains(trial, "/run/minute") {
				t.Fatal(trial)
			}
			r.Server.Shell(t, "mkfifo /run/minute")
			end := func() {
				t.Helper()
				r.Server.Shell(t, "echo >/run/minute")
				r.Server.Shell(t, "while pgrep -f '[/]run/minute' >/dev/null; do sleep .01; done") // not this one
			}
			r.Server.Shell(t, trial)
			r.expect(t, r.Client, lab.Dropped)
			end()
			r.expect(t, r.Client, lab.Open)
			r.Server.Shell(t, trial)
			header(t, r.Server, r.rules, "keep")
			end()
			r.expect(t, r.Client, lab.Dropped)
			header(t, r.Server, r.rules, "watch")
		})
	}
}

// TestDropPolicy closes everything else, and still lets ssh, pings and the
// allowed ports through.
func TestDropPolicy(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "ping")
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		r.Server.Listen(t, 80)
		r.Server.Listen(t, 8080)
		r.rules = emit(t, r.Server, f, r.profile, "--policy", "drop", "--allow", "80")
		before := ruleset(t, r)
		idle := r.echo(t, "direct")
		for range 2 {
			header(t, r.Server, r.rules, "load")
		}
		idle.say(t, "before the first load")
		for port, want := range map[uint16]lab.State{80: lab.Open, 8080: lab.Dropped, 22: lab.Dropped, 1: lab.Dropped} {
			if got := r.Client.Probe(t, addrPort(r, port)); got != want {
				t.Errorf("port %d is %v, want %v", port, got, want)
			}
		}
		r.ssh(t, "true")
		r.Client.Run(t, "ping", "-c1", "-W5", r.Server.Addr(family).String())
		header(t, r.Server, r.rules, "undo")
		if got := r.Client.Probe(t, addrPort(r, 8080)); got != lab.Open {
			t.Errorf("after the undo port 8080 is %v", got)
		}
		if after := ruleset(t, r); after != before {
			t.Errorf("the server was\n%s\nand is now\n%s", before, after)
		}
	})
}

// TestConsume drops the knocks, for servers that are silent anyway.
func TestConsume(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		if f.Async {
			return // refused: knockd only listens
		}
		r := newRig(t, f, family, "Sequence 7001/tcp 8003/udp 9005/tcp")
		r.rules = emit(t, r.Server, f, r.profile, "--consume")
		header(t, r.Server, r.rules, "load")
		if got := r.Client.Probe(t, addrPort(r, 7001)); got != lab.Dropped {
			t.Errorf("the first knock is %v", got)
		}
		if got := r.Client.Probe(t, addrPort(r, 7002)); got != lab.Refused {
			t.Errorf("a port beside it is %v", got)
		}
		r.ssh(t, "true")
	})
}

// TestSeveralProfiles: two profiles of one server open their own ports, and a
// port of both opens to either.
func TestSeveralProfiles(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp",
			"Host web", "Sequence 1000/udp 2000/udp", "OpenPorts 22 8080-8081", "IgnorePorts 80/tcp")
		r.Server.Listen(t, 8080)
		r.rules = emit(t, r.Server, f, r.profile, "web")
		header(t, r.Server, r.rules, "load")
		state := func(h *lab.Host, port uint16, want lab.State) {
			t.Helper()
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				got := h.Probe(t, addrPort(r, port))
				if got == want {
					return
				}
				if !f.Async || time.Now().After(end) {
					t.Fatalf("port %d is %v for the %s, want %v", port, got, h.Name, want)
				}
			}
		}
		to := r.Server.Addr(family)
		r.Client.Knock(t, to, knock.Step{Transport: knock.UDP, Port: 7001}, knock.Step{Port: 8003})
		r.Attacker.Knock(t, to, knock.Step{Transport: knock.UDP, Port: 1000}, knock.Step{Transport: knock.UDP, Port: 2000})
		state(r.Client, 22, lab.Open)
		state(r.Client, 8080, lab.Dropped)
		state(r.Attacker, 22, lab.Open)
		state(r.Attacker, 8080, lab.Open)
	})
}

// TestGoldenRules asks the firewalls themselves about the golden files.
func TestGoldenRules(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "testdata", "rules", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			for _, f := range lab.Firewalls {
				if "."+format(f) != filepath.Ext(file) {
					continue
				}
				h := lab.NewHost(t, f.Name)
				f.Install(t, h)
				switch format(f) {
				case "nftables":
					h.Run(t, "nft", "-c", "-f", file)
				case "iptables":
					h.Run(t, "iptables-restore", "--test", file)
					h.Run(t, "ip6tables-restore", "--test", file)
				case "knockd":
					h.Shell(t, `sed -n "s/^#: //p" `+file+` | nft -c -f -`)
					lab.Link(t, h, lab.NewHost(t, "neighbour")) // it wants an eth0
					text, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					h.Knockd(t, string(text))
				}
			}
		})
	}
}
