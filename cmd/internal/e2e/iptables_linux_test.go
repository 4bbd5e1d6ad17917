package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
)

// alternating is a schedule of two sequences, for windows of even and odd number.
type alternating struct {
	period    time.Duration
	sequences [2]knock.Sequence
}

func (a alternating) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	w := knock.WindowAt(t, a.period)
	return []knock.Sequence{a.sequences[w.Start.Unix()/int64(a.period/time.Second)&1]}, w, nil
}

// places are those in time at which a window can stand: alone in force, or with
// the one before, as the even one of the two or the odd one.
var places = []string{"alone", "even of two", "odd of two"}

// alternate returns a guard in one of the places now, and for a while, in which
// one sequence opens, and the other belongs to the windows beside.
func alternate(place string, sequence, other knock.Sequence) rules.Guard {
	g := rules.Guard{
		Name:         "vps",
		OpenPorts:    []knock.PortRange{{First: lab.GuardedPort, Last: lab.GuardedPort}},
		OpenFor:      30 * time.Second,
		KnockTimeout: 5 * time.Second,
		IgnorePorts:  []knock.PortRange{{First: 80, Last: 80}, {First: 443, Last: 443}, {Transport: knock.UDP, First: 443, Last: 443}},
	}
	now := time.Now().Unix()
	period := int64(600)
	for now%period < 5 || now%period > period/2-120 {
		period++
	}
	a := alternating{period: time.Duration(period) * time.Second}
	odd := now / period & 1
	if place != "alone" {
		g.Skew = (a.period/2 - time.Second).Truncate(time.Second)
		odd = map[string]int64{"even of two": 0, "odd of two": 1}[place]
	}
	a.sequences[odd], a.sequences[1-odd] = sequence, other
	g.Schedule = a
	return g
}

// loadGuard puts a guard in force on a host, and returns the file of its rules.
func loadGuard(t testing.TB, h *lab.Host, f lab.Firewall, g rules.Guard, horizon time.Duration) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules")
	var text strings.Builder
	o := rules.Options{File: file, From: time.Now(), Until: time.Now().Add(horizon)}
	if err := rules.Format(format(f)).Emit(&text, []rules.Guard{g}, o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	header(t, h, file, "load")
	return file
}

// TestTracesInWindows plays every trace where its sequence is that of a window.
// The windows beside have a sequence that shares two ports with it. Of the sweeps,
// which are most of the work of TestTraces, one is enough here.
func TestTracesInWindows(t *testing.T) {
	traces := lab.ReadTraces(t, filepath.Join("..", "..", "..", "testdata", "traces"))
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for i, tr := range traces {
			if sweep := strings.HasPrefix(tr.File, "sweep"); !tr.For(f) || sweep && (tr.File != "sweep-udp-ascending.txt" || family != lab.IPv4) {
				continue
			}
			place := places[i%len(places)]
			t.Run(strings.TrimSuffix(tr.File, ".txt")+"/"+place, func(t *testing.T) {
				t.Parallel()
				tr.Run(t, f, family, func(server *lab.Host) {
					other := knock.Sequence{tr.Sequence[1], {Transport: knock.UDP, Port: 4001}, tr.Sequence[0]}
					g := alternate(place, tr.Sequence, other)
					for _, s := range tr.Settings {
						d, err := time.ParseDuration(s.Value)
						switch {
						case err != nil:
							t.Fatal(err)
						case s.Keyword == "OpenFor":
							g.OpenFor = d
						case s.Keyword == "KnockTimeout":
							g.KnockTimeout = d
						default:
							t.Fatalf("a setting %s", s.Keyword)
						}
					}
					loadGuard(t, server, f, g, 2*time.Hour)
				})
			})
		}
	})
}

// TestWindowsBeside: two windows in force at a time open each by its sequence,
// also if the rules are loaded again meanwhile. Only what goes to KnockPorts is
// a wrong knock.
func TestWindowsBeside(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		n := lab.New(t)
		f.Install(t, n.Server)
		n.Server.Listen(t, lab.GuardedPort)
		sequences := [2]knock.Sequence{}
		for i, text := range []string{"20001/udp 27000/udp 23456/udp", "21234/udp 29998/udp 20002/udp"} {
			var err error
			if sequences[i], err = knock.ParseSequence(text); err != nil {
				t.Fatal(err)
			}
		}
		g := alternate("odd of two", sequences[0], sequences[1])
		g.KnockPorts = []knock.PortRange{{Transport: knock.UDP, First: 20000, Last: 29999}}
		g.KnockTimeout = 30 * time.Second
		file := loadGuard(t, n.Server, f, g, 2*time.Hour)
		source := uint16(0)
		expect := func(want lab.State, reload int, knocks ...knock.Step) {
			t.Helper()
			source++
			from, to := n.Client.Source(family, source), n.Server.Addr(family)
			n.Client.KnockFrom(t, from, to, knocks[:reload]...)
			if reload > 0 {
				header(t, n.Server, file, "load")
			}
			n.Client.KnockFrom(t, from, to, knocks[reload:]...)
			if got := n.Client.ProbeFrom(t, from, addrPortOf(n, family)); got != want {
				t.Errorf("after %v it is %v, want %v", knock.Sequence(knocks), got, want)
			}
		}
		a, b := sequences[0], sequences[1]
		expect(lab.Open, 0, a...)
		expect(lab.Open, 0, b...)
		expect(lab.Open, 2, a...)
		expect(lab.Open, 2, b...)
		if format(f) == "iptables" {
			// With nftables an address is in one window at a time.
			expect(lab.Open, 0, a[0], b[0], b[1], a[1], b[2])
		}
		expect(lab.Dropped, 0, a[0], a[1], b[2])
		expect(lab.Dropped, 0, a[0], b[1], a[2])
		for _, s := range []knock.Sequence{a, b} {
			for _, stray := range []knock.Step{{Transport: knock.UDP, Port: 20000}, {Transport: knock.UDP, Port: 29999}} {
				expect(lab.Dropped, 0, s[0], stray, s[1], s[2])
				expect(lab.Dropped, 0, s[0], s[1], stray, s[2])
				expect(lab.Open, 0, s[0], s[1], stray, s[0], s[1], s[2])
			}
			for _, harmless := range []knock.Step{{Transport: knock.UDP, Port: 19999}, {Transport: knock.UDP, Port: 30000}, {Port: 25000}} {
				expect(lab.Open, 0, s[0], harmless, s[1], harmless, s[2])
			}
		}
	})
}

func addrPortOf(n *lab.Net, family lab.Family) netip.AddrPort {
	return netip.AddrPortFrom(n.Server.Addr(family), lab.GuardedPort)
}

// TestManyWindows: as many windows as iptables carries, and fewer after that.
// The undo leaves nothing of either. The rules of both families are one file,
// which takes seconds to load: a family for each firewall is enough.
func TestManyWindows(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		if family == lab.IPv4 == (f.Name == "iptables-legacy") {
			return
		}
		r := &rig{Net: lab.New(t), Firewall: f, family: family}
		f.Install(t, r.Server)
		r.Server.Listen(t, lab.GuardedPort)
		before := ruleset(t, r)
		profile := secret(t, "config", "Host vps", "HostName "+r.Server.Addr(family).String(), "Scheme rotating", "KeyFile "+secret(t, "key", windowKey))
		for _, hours := range []int{720, 24, 1} {
			r.rules = emit(t, r.Server, f, profile, "--horizon", fmt.Sprint(hours, "h"))
			header(t, r.Server, r.rules, "check")
			header(t, r.Server, r.rules, "load")
			once := ruleset(t, r)
			header(t, r.Server, r.rules, "load")
			if twice := ruleset(t, r); twice != once {
				t.Errorf("%d hours, loaded once, are %d bytes of rules, twice %d", hours, len(once), len(twice))
			}
			if hours > 24 {
				header(t, r.Server, r.rules, "parts") // beside what is loaded
				if parts := ruleset(t, r); parts != once {
					t.Errorf("%d hours, loaded in parts, are %d bytes of rules, at once %d", hours, len(parts), len(once))
				}
				// An unprivileged container that has nothing yet.
				r.Server.Shell(t, "unshare -Urn sh -c '"+headerLine(t, r.rules, "parts")+"'")
			}
			r.expect(t, r.Attacker, lab.Dropped)
			r.Client.Run(t, "portknock", "knock", "-c", profile, "vps")
			r.expect(t, r.Client, lab.Open)
		}
		header(t, r.Server, r.rules, "undo")
		if after := ruleset(t, r); after != before {
			t.Errorf("the server was\n%s\nand is now\n%s", before, after)
		}
		if left, _ := r.Server.Try("sh", "-c", "iptables-save | grep PORTKNOCK; ip6tables-save | grep PORTKNOCK; ls /proc/net/xt_recent"); format(f) == "iptables" && strings.Contains(strings.ToLower(left), "portknock") {
			t.Errorf("the undo has left\n%s", left)
		}
	})
}

// TestChainsOfOthers: a chain whose name begins like ours is not taken for it.
func TestChainsOfOthers(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		r.Server.Listen(t, 8080)
		for _, chain := range []string{"mangle PREROUTING", "filter INPUT"} {
			table, hook, _ := strings.Cut(chain, " ")
			r.Server.Shell(t, fmt.Sprintf("iptables -t %[1]s -N PORTKNOCKING; iptables -t %[1]s -A PORTKNOCKING -p tcp --dport 9 -j DROP; iptables -t %[1]s -A %[2]s -j PORTKNOCKING", table, hook))
		}
		before := ruleset(t, r)
		r.rules = emit(t, r.Server, f, r.profile, "--policy", "drop")
		for range 2 {
			header(t, r.Server, r.rules, "load")
			r.expect(t, r.Client, lab.Dropped)
			if got := r.Client.Probe(t, addrPort(r, 8080)); got != lab.Dropped {
				t.Errorf("port 8080 is %v", got)
			}
		}
		header(t, r.Server, r.rules, "undo")
		if after := ruleset(t, r); after != before {
			t.Errorf("the server was\n%s\nand is now\n%s", before, after)
		}
	})
}

// TestLoadFails: rules that only one family refuses are not loaded in silence.
func TestLoadFails(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		text, err := os.ReadFile(r.rules)
		if err != nil {
			t.Fatal(err)
		}
		for _, flag := range []string{"-4", "-6"} {
			bad := strings.Replace(string(text), "\nCOMMIT", "\n"+flag+" -A PORTKNOCK -j NONSENSE\nCOMMIT", 1)
			if err := os.WriteFile(r.rules, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := r.Server.Try("sh", "-c", headerLine(t, r.rules, "load")); err == nil {
				t.Errorf("with a fault for %s alone: no failure, but %q", flag, out)
			}
		}
	})
}
