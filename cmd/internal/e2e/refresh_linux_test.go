package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// refreshed are the formats whose rules a service keeps fresh.
var refreshed = []string{"nftables", "iptables", "knockd"}

// printedUnits has portknock print the units for the profile vps, with the rules in a
// folder of the test whose name needs every quoting there is.
func printedUnits(t testing.TB, h *lab.Host, format, profile string) (text, rules string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), `a b$c%d"e`)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	rules = filepath.Join(dir, "rules")
	return h.Run(t, "portknock", "emit-rules", "-c", profile, "--refresh", "systemd", "--format", format, "--output", rules, "vps"), rules
}

// unitCommands returns the commands of a service as systemd would run them.
func unitCommands(t testing.TB, text string) (commands [][]string) {
	t.Helper()
	for _, line := range regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindAllStringSubmatch(text, -1) {
		var words []string
		word, quoted, any := "", false, false
		for i := 0; i < len(line[1]); i++ {
			switch c := line[1][i]; {
			case c == '"':
				quoted, any = !quoted, true
			case c == '\\':
				i++
				word += line[1][i : i+1]
			case c == '$' || c == '%':
				if i++; i == len(line[1]) || line[1][i] != c {
					t.Fatalf("a lone %c in %s", c, line[1])
				}
				word += string(c)
			case c == ' ' && !quoted:
				if any {
					words = append(words, word)
				}
				word, any = "", false
			default:
				word, any = word+string(c), true
			}
		}
		commands = append(commands, append(words, word))
	}
	if len(commands) == 0 {
		t.Fatal(text)
	}
	return commands
}

func runAll(h *lab.Host, commands [][]string) error {
	for _, c := range commands {
		if out, err := h.Try(c[0], c[1:]...); err != nil {
			return fmt.Errorf("%q: %w\n%s", c, err, out)
		}
	}
	return nil
}

// TestRefresh runs the service's commands over and over while one window ends and
// another begins: nobody who knocks is refused, who is in stays in, and from then
// on the new sequence opens and the old one does not.
func TestRefresh(t *testing.T) {
	const period, skew = 8 * time.Second, time.Second
	for _, f := range lab.Firewalls {
		if !slices.Contains(refreshed, format(f)) {
			continue
		}
		for _, family := range lab.Families {
			t.Run(fmt.Sprintf("%s/%v", f.Name, family), func(t *testing.T) {
				t.Parallel()
				n := lab.New(t)
				f.Install(t, n.Server)
				n.Server.Listen(t, 22)
				n.Attacker.Shell(t, "echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind") // an address for each knocker
				key := secret(t, "key", windowKey)
				profile := secret(t, "config", "Host vps", "HostName "+n.Server.Addr(family).String(), "Scheme rotating",
					"KeyFile "+key, fmt.Sprintf("Period %.0f\nSkew %.0f", period.Seconds(), skew.Seconds()), "OpenFor 1m", "Knocks 3")
				text, rules := printedUnits(t, n.Server, format(f), profile)
				commands := unitCommands(t, text)
				service := func() error { return runAll(n.Server, commands) }
				to := netip.AddrPortFrom(n.Server.Addr(family), 22)

				// Soon after Skew has passed, with most of the window still to come.
				for into := time.Duration(0); into < skew+time.Second || into > period/2; time.Sleep(10 * time.Millisecond) {
					into = time.Duration(time.Now().UnixNano()) % period
				}
				end := time.Now().Truncate(period).Add(period)
				said, _, _ := strings.Cut(n.Client.Run(t, "portknock", "sequence", "-c", profile, "vps"), "  (")
				old, err := knock.ParseSequence(said)
				if err != nil {
					t.Fatal(err)
				}
				if err := service(); err != nil {
					t.Fatal(err)
				}
				var daemon *lab.Daemon
				if f.Async {
					daemon = n.Server.Daemon(t, "stdbuf", "-oL", "knockd", "-i", "eth0", "-v", "-D", "-c", rules, "-p", "/run/knockd.pid")
					daemon.Log.Await(t, "istening on eth0", 1)
				}
				if got := n.Client.Probe(t, to); got != lab.Dropped {
					t.Fatalf("guarded, the port is %v", got)
				}
				n.Client.Run(t, "portknock", "knock", "--wait", "-c", profile, "vps")

				var keeper sync.WaitGroup
				over := end.Add(skew + time.Second)
				runs := 1
				keeper.Go(func() {
					for ; time.Now().Before(over); runs++ {
						if err := service(); err != nil {
							t.Error(err)
							return
						}
						time.Sleep(500 * time.Millisecond) // as the timer would, only sooner
					}
				})
				knockers := 0
				for ; time.Now().Before(over); knockers++ {
					from := n.Attacker.Source(family, uint16(1000+knockers)).String()
					if out, err := n.Attacker.Try("portknock", "knock", "--wait", "-c", profile, "-o", "BindAddress="+from, "-o", "ConnectTimeout=5", "vps"); err != nil {
						t.Errorf("knocker %d, %v after the window's end: %v %s", knockers, time.Since(end), err, out)
					}
					time.Sleep(100 * time.Millisecond) // xt_recent remembers 100 addresses, and who was in is one
				}
				keeper.Wait()
				if err := service(); err != nil {
					t.Fatal(err)
				}
				t.Logf("%d knockers, %d refreshes", knockers, runs)
				if f.Async {
					reread := strings.Count(strings.ToLower(daemon.Log.String()), "re-reading")
					if reread == 0 || reread >= runs {
						t.Errorf("knockd has read its file again %d times", reread)
					}
				}

				if got := n.Client.Probe(t, to); got != lab.Open {
					t.Errorf("for who was in before, the port is %v", got)
				}
				before := n.Attacker.Source(family, 1)
				n.Attacker.KnockFrom(t, before, to.Addr(), old...)
				n.Attacker.Run(t, "portknock", "knock", "--wait", "-c", profile, "-o", "BindAddress="+n.Attacker.Source(family, 2).String(), "vps")
				if got := n.Attacker.ProbeFrom(t, before, to); got != lab.Dropped {
					t.Errorf("after the window before's sequence the port is %v", got)
				}
			})
		}
	}
}

// TestRefreshFails: a server that starts and cannot write its rules anew loads
// those that it has, and says that it failed. It runs no command out of the rules
// file, which somebody else may have written.
func TestRefreshFails(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		n := lab.New(t)
		f.Install(t, n.Server)
		n.Server.Listen(t, 22)
		profile := secret(t, "config", "Host vps", "Scheme rotating", "KeyFile "+secret(t, "key", windowKey))
		text, rules := printedUnits(t, n.Server, format(f), profile)
		commands := unitCommands(t, text)
		if err := runAll(n.Server, commands); err != nil {
			t.Fatal(err)
		}
		undo := "nft delete table inet portknock" // and no daemon
		if !f.Async {
			undo = headerLine(t, rules, "undo")
		}
		n.Server.Shell(t, undo)
		if err := os.WriteFile(profile, []byte("Host vps\n    Sequense 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		mark := filepath.Join(t.TempDir(), "mark")
		n.Server.Shell(t, fmt.Sprintf(`sed -i "s,^# load: .*,# load: touch %[1]s," '%[2]s' && grep -q "touch %[1]s" '%[2]s'`, mark, rules))
		if err := runAll(n.Server, commands); err == nil || !strings.Contains(err.Error(), "Sequense") {
			t.Errorf("the service says %v", err)
		}
		if _, err := os.Stat(mark); err == nil {
			t.Error("the service runs a command out of the rules file")
		}
		if got := n.Client.Probe(t, netip.AddrPortFrom(n.Server.Addr(family), 22)); got != lab.Dropped {
			t.Errorf("the port is %v", got)
		}
	})
}

// TestRefreshTokens runs the service's commands over and over while one window ends
// and another begins, and somebody sends again all that was spent: nobody gets in
// by that, who is in stays in, and fresh tokens open all the while.
func TestRefreshTokens(t *testing.T) {
	const period, skew = 4 * time.Second, time.Second
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := &rig{Net: lab.New(t), Firewall: f, family: family}
		f.Install(t, r.Server)
		r.Server.Listen(t, 22)
		settings, s := tokens(t, period, skew)
		s.Tokens = 16
		profile := secret(t, "config", append([]string{"Host vps", "OpenFor 5m", "TokensPerWindow 16"}, settings...)...)
		text, _ := printedUnits(t, r.Server, format(f), profile)
		commands := unitCommands(t, text)
		if err := runAll(r.Server, commands); err != nil {
			t.Fatal(err)
		}
		var keeper sync.WaitGroup
		done := make(chan bool)
		defer keeper.Wait()
		defer close(done)
		keeper.Go(func() {
			for {
				if err := runAll(r.Server, commands); err != nil {
					t.Error(err)
				}
				select {
				case <-done:
					return
				case <-time.After(300 * time.Millisecond): // as the timer would, only sooner
				}
			}
		})
		var spent []knock.Step
		var end time.Time // of the window in which the first has come
		first := r.visitor()
		known, ended := map[string]bool{}, false
		for from := first; !ended || time.Now().Before(end.Add(skew+500*time.Millisecond)); from = r.visitor() {
			began := time.Now()
			for _, step := range r.own(t, s, began) {
				if known[string(step.Payload)] {
					continue
				}
				known[string(step.Payload)] = true
				switch in := r.admits(t, from, step); {
				case in:
					spent = append(spent, step)
					ended = !end.IsZero() && began.After(end)
				case time.Since(began) < skew: // or the machine is too busy
					t.Fatalf("%d have come; a fresh token does not open", len(spent))
				}
				break
			}
			if end.IsZero() && len(spent) > 0 {
				first, end = from, knock.WindowAt(began, period).End
			}
			r.Attacker.Knock(t, r.Server.Addr(family), spent...)
			if r.probe(t, r.Attacker) == lab.Open {
				t.Fatalf("a token of %d opens twice", len(spent))
			}
			if len(spent) > 0 && r.Client.ProbeFrom(t, first, addrPort(r, 22)) != lab.Open {
				t.Fatalf("%d have come; who was first is out", len(spent))
			}
			time.Sleep(200 * time.Millisecond) // the kernel's clock cannot be faked
		}
	})
}

// TestUnits installs the units with the line of their header, and has systemd
// itself judge them.
func TestUnits(t *testing.T) {
	lab.Require(t, "systemd-analyze", "awk", "nft", "iptables")
	for _, format := range refreshed {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			key := secret(t, "key", windowKey)
			profile := secret(t, "config", "Host vps", "Scheme rotating", "KeyFile "+key)
			h := lab.NewHost(t, "server")
			text, rules := printedUnits(t, h, format, profile)
			file := filepath.Join(t.TempDir(), "units")
			if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "/etc/portknock.units", file)), 0o600); err != nil {
				t.Fatal(err)
			}
			bin := t.TempDir()
			systemctl := filepath.Join(bin, "systemctl")
			if err := os.WriteFile(systemctl, []byte("#!/bin/sh\necho systemctl \"$@\"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			run := func(name string) string {
				t.Helper()
				return h.Shell(t, "PATH="+bin+":$PATH; "+headerLine(t, file, name))
			}
			h.Shell(t, "mount -t tmpfs tmpfs /etc/systemd/system")
			if got, want := run("install"), "systemctl daemon-reload\nsystemctl enable --now portknock.service portknock.timer\n"; got != want {
				t.Errorf("the install runs %q, want %q", got, want)
			}
			if got := h.Shell(t, "cd /etc/systemd/system; ls"); got != "portknock.service\nportknock.timer\n" {
				t.Errorf("installed: %q", got)
			}
			if got := h.Run(t, "systemd-analyze", "verify", "/etc/systemd/system/portknock.service", "/etc/systemd/system/portknock.timer"); got != "" {
				t.Errorf("systemd says: %s", got)
			}
			h.Run(t, "systemd-analyze", "security", "--offline=yes", "--threshold=40", "/etc/systemd/system/portknock.service")
			// What runs as root comes from the units, and not from the rules file.
			if err := os.WriteFile(rules, []byte("# undo: echo from the rules file\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			h.Shell(t, "nft add table inet portknock; iptables -t mangle -N PORTKNOCK")
			if got := run("undo"); !strings.HasSuffix(got, "systemctl daemon-reload\n") {
				t.Errorf("the undo says %q", got)
			}
			left := "nft list tables | grep portknock"
			if format == "iptables" {
				left = "iptables-save | grep PORTKNOCK"
			}
			if got := h.Shell(t, left+" || :"); got != "" {
				t.Errorf("the undo leaves %q", got)
			}
			if got := h.Shell(t, "ls /etc/systemd/system"); got != "" {
				t.Errorf("left behind: %q", got)
			}
		})
	}
}

// TestKnockdSharedPorts: a port that comes twice in a sequence, as md5-hourly draws
// it, and one that two windows share, keep nobody out.
func TestKnockdSharedPorts(t *testing.T) {
	knockd := lab.Firewalls[slices.IndexFunc(lab.Firewalls, func(f lab.Firewall) bool { return f.Name == "knockd" })]
	for _, tt := range [][2]string{
		{"7001 7001 9005 8003", "7002 7001 8003 9005"},
		{"7001 9005 7001 8003 6000", "9005 7001 8003 7001 7001"},
		{"7001/udp 9005/udp 9005/udp 8003", "8003 7001/udp 9005/udp 7001/udp"},
		{"7001 9005 8003 6000 5000", "8003 9005 7001 5000 6000"},
	} {
		t.Run(tt[0], func(t *testing.T) {
			t.Parallel()
			n := lab.New(t)
			knockd.Install(t, n.Server)
			n.Server.Listen(t, 22)
			addr := "HostName " + n.Server.Addr(lab.IPv4).String()
			profile := secret(t, "config", "Host vps", addr, "Sequence "+tt[0], "Host web", addr, "Sequence "+tt[1])
			rules := emit(t, n.Server, knockd, profile, "web")
			header(t, n.Server, rules, "load")
			n.Server.Run(t, "pkill", "-x", "knockd")
			daemon := n.Server.Daemon(t, "stdbuf", "-oL", "knockd", "-i", "eth0", "-v", "-D", "-c", rules, "-p", "/run/knockd.pid")
			daemon.Log.Await(t, "istening on eth0", 1)
			n.Client.Run(t, "portknock", "knock", "--wait", "-c", profile, "vps")
			n.Attacker.Run(t, "portknock", "knock", "--wait", "-c", profile, "web")
		})
	}
}

// TestFirewalldStart: firewalld flushes the table of the iptables guard when it
// starts. The service starts after firewalld, waits until that has flushed, and
// loads the rules again.
func TestFirewalldStart(t *testing.T) {
	t.Parallel()
	lab.Require(t, "firewalld", "firewall-cmd", "dbus-daemon")
	f := lab.Firewalls[slices.IndexFunc(lab.Firewalls, func(f lab.Firewall) bool { return f.Name == "iptables-nft" })]
	n := lab.New(t)
	f.Install(t, n.Server)
	n.Server.Listen(t, 22)
	profile := secret(t, "config", "Host vps", "Scheme rotating", "KeyFile "+secret(t, "key", windowKey))
	text, _ := printedUnits(t, n.Server, "iptables", profile)
	for _, line := range []string{`After=.* firewalld\.service`, `WantedBy=.* firewalld\.service`, `ExecStartPre=-firewall-cmd --state`} {
		if !regexp.MustCompile("(?m)^" + line + "$").MatchString(text) {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
	guard := func(want lab.State) {
		t.Helper()
		if got := n.Attacker.Probe(t, netip.AddrPortFrom(n.Server.Addr(lab.IPv4), 22)); got != want {
			t.Errorf("the port is %v, want %v", got, want)
		}
	}
	service := func() {
		t.Helper()
		if err := runAll(n.Server, unitCommands(t, text)); err != nil {
			t.Fatal(err)
		}
	}
	service()
	guard(lab.Dropped)
	n.Server.Shell(t, "mkdir -p /run/dbus")
	n.Server.Daemon(t, "dbus-daemon", "--system", "--nofork", "--nopidfile")
	n.Server.Shell(t, "for i in $(seq 300); do [ -S /run/dbus/system_bus_socket ] && exit; sleep .1; done; exit 1")
	n.Server.Daemon(t, "firewalld", "--nofork", "--nopid")
	// What systemd waits for, and then what the service waits for.
	n.Server.Shell(t, "for i in $(seq 300); do dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner string:org.fedoraproject.FirewallD1 | grep -q true && exit; sleep .1; done; exit 1")
	n.Server.Run(t, "firewall-cmd", "--state")
	guard(lab.Open) // or this test is about nothing
	service()
	guard(lab.Dropped)
}
