package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// TestTraces plays every trace against every firewall.
func TestTraces(t *testing.T) {
	traces := lab.ReadTraces(t, filepath.Join("..", "..", "..", "testdata", "traces"))
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

// TestReloadInMidSequence: a reload between two knocks costs nothing. knockd forgets
// attempts when it reads its configuration again.
func TestReloadInMidSequence(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp 9005/udp", "KnockTimeout 20s")
		header(t, r.Server, r.rules, "load")
		to := r.Server.Addr(family)
		r.Client.Knock(t, to, knock.Step{Transport: knock.UDP, Port: 7001}, knock.Step{Port: 8003})
		header(t, r.Server, r.rules, "load")
		r.Client.Knock(t, to, knock.Step{Transport: knock.UDP, Port: 9005})
		r.expect(t, r.Client, lab.Open)
	})
}

// TestManyAtOnce: several clients of one address get in at the same time. knockd takes
// them for one that errs.
func TestManyAtOnce(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
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

// TestTrial: rules on trial undo themselves, unless they are kept.
func TestTrial(t *testing.T) {
	for _, f := range lab.Firewalls {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			lab.Require(t, "pgrep", "mkfifo")
			r := newRig(t, f, lab.IPv4, "Sequence 7001/udp 8003/tcp")
			trial := headerLine(t, r.rules, "trial")
			// try begins a trial. Its minute is over when the test says so.
			try := func() (end func()) {
				t.Helper()
				r.visitors++
				minute := fmt.Sprintf("run/minute%d", r.visitors)
				line := strings.Replace(trial, "sleep 60", "read x </"+minute, 1)
				if line == trial {
					t.Fatal(trial)
				}
				r.Server.Shell(t, "mkfifo /"+minute)
				r.Server.Shell(t, line)
				r.expect(t, r.Client, lab.Dropped)
				return func() {
					t.Helper()
					r.Server.Shell(t, "echo >/"+minute)
					r.Server.Shell(t, "while pgrep -f '[/]"+minute+"' >/dev/null; do sleep .01; done") // not this one
				}
			}
			try()()
			r.expect(t, r.Client, lab.Open)
			if _, err := r.Server.Try("sh", "-c", headerLine(t, r.rules, "keep")); err == nil {
				t.Error("what is undone already can be kept")
			}
			first := try()
			second := try()
			first()
			r.expect(t, r.Client, lab.Dropped)
			header(t, r.Server, r.rules, "keep")
			second()
			r.expect(t, r.Client, lab.Dropped)
			header(t, r.Server, r.rules, "watch")
		})
	}
}

// TestDropPolicy closes everything else, and still lets ssh, pings, the allowed
// ports and the server's own sessions through.
func TestDropPolicy(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "ping")
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		r.Server.Listen(t, 80)
		r.Server.Listen(t, 8080)
		r.rules = emit(t, r.Server, f, r.profile, "--policy", "drop", "--allow", "80")
		before := ruleset(t, r)
		idle := r.echo(t, "direct")
		speak := make(chan bool)
		r.Client.Serve(t, 8080, func(c net.Conn) {
			<-speak
			_, _ = io.WriteString(c, "news")
		})
		var out net.Conn
		var err error
		r.Server.Do(func() { out, err = net.Dial("tcp", netip.AddrPortFrom(r.Client.Addr(family), 8080).String()) })
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		header(t, r.Server, r.rules, "load")
		close(speak)
		_ = out.SetReadDeadline(time.Now().Add(20 * time.Second))
		if got, err := io.ReadAll(out); string(got) != "news" {
			t.Errorf("from a session of the server's own comes %q, %v", got, err)
		}
		r.Attacker.Run(t, "portknock", "knock", "--wait", "-c", r.profile, "vps") // a daemon has started
		header(t, r.Server, r.rules, "load")
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

// TestDropPolicyEnds: rules without the drop policy, loaded over rules with it,
// open the other ports again; and the undo of either takes all away.
func TestDropPolicyEnds(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		r.Server.Listen(t, 8080)
		dropping := emit(t, r.Server, f, r.profile, "--policy", "drop")
		before := ruleset(t, r)
		for _, then := range []string{"load", "undo"} {
			header(t, r.Server, dropping, "load")
			if got := r.Client.Probe(t, addrPort(r, 8080)); got != lab.Dropped {
				t.Errorf("with the drop policy port 8080 is %v", got)
			}
			header(t, r.Server, r.rules, then)
			if got := r.Client.Probe(t, addrPort(r, 8080)); got != lab.Open {
				t.Errorf("after the %s of rules without it, port 8080 is %v", then, got)
			}
			if then == "load" {
				r.expect(t, r.Client, lab.Dropped)
			}
		}
		if after := ruleset(t, r); after != before {
			t.Errorf("the server was\n%s\nand is now\n%s", before, after)
		}
	})
}

// TestDropPolicyKeepsSessions: a session to an allowed port goes on that was idle
// while the server, which did not track connections until then, loaded the rules.
func TestDropPolicyKeepsSessions(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp", "OpenPorts 8080")
		r.rules = emit(t, r.Server, f, r.profile, "--policy", "drop", "--allow", "22")
		idle := r.echo(t, "direct")
		r.quiet(t)
		header(t, r.Server, r.rules, "load")
		idle.say(t, "after the load")
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

// TestSeveralSchemes: profiles of different schemes in one file are in nobody's
// way, also where each drops the knocks that it knows.
func TestSeveralSchemes(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		key := "KeyFile " + secret(t, "key", windowKey)
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp",
			"Host hour", "OpenPorts 8001", "Scheme rotating", key,
			"Host minutes", "OpenPorts 8002", "Scheme rotating", "Period 6m", "Protocol tcp", key,
			"Host token", "OpenPorts 8004", "Scheme token", key,
			"Host md5", "OpenPorts 8005", "Scheme md5-hourly", "PortRange 10000-10999", key)
		profiles := []string{"hour", "minutes", "token", "md5", "vps"}
		ports := []uint16{8001, 8002, 8004, 8005, 22}
		for _, port := range ports[:4] {
			r.Server.Listen(t, port)
		}
		for _, flag := range []string{"--policy=guard", "--consume"} {
			r.rules = emit(t, r.Server, f, r.profile, append([]string{flag}, profiles[:4]...)...)
			header(t, r.Server, r.rules, "check")
			header(t, r.Server, r.rules, "load")
			for i, name := range profiles {
				r.Client.Run(t, "portknock", "knock", "-c", r.profile, "-o", "HostName="+r.Server.Addr(family).String(), name)
				for j, port := range ports {
					want := lab.Dropped
					if j <= i {
						want = lab.Open
					}
					if got := r.Client.Probe(t, addrPort(r, port)); got != want {
						t.Errorf("%s, after the knocks of %s: port %d is %v, want %v", flag, name, port, got, want)
					}
				}
			}
			header(t, r.Server, r.rules, "undo")
		}
	})
}

// TestGoldenRules asks the firewalls themselves about the golden files.
func TestGoldenRules(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "..", "testdata", "rules", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			asked := 0
			for _, f := range append(slices.Clone(lab.Firewalls), fwknopd) {
				if "."+format(f) != filepath.Ext(file) {
					continue
				}
				asked++
				h := lab.NewHost(t, f.Name)
				f.Install(t, h)
				switch format(f) {
				case "nftables":
					h.Run(t, "nft", "-c", "-f", file)
				case "iptables":
					h.Run(t, "iptables-restore", "--test", file)
					h.Run(t, "ip6tables-restore", "--test", file)
				case "knockd", "fwknop":
					h.Shell(t, `sed -n "s/^#: //p" `+file+` | nft -c -f -`)
					lab.Link(t, h, lab.NewHost(t, "neighbour")) // they want an eth0
					text, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					if f.Name == "knockd" {
						h.Knockd(t, string(text))
					} else {
						startFwknopd(t, h, string(text))
					}
				}
			}
			if asked == 0 {
				t.Error("no firewall has been asked")
			}
		})
	}
}
