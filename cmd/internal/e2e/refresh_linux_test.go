package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

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

// runAll runs commands on a host, until one fails.
func runAll(h *lab.Host, commands [][]string) error {
	for _, c := range commands {
		if out, err := h.Try(c[0], c[1:]...); err != nil {
			return fmt.Errorf("%q: %w\n%s", c, err, out)
		}
	}
	return nil
}

// TestRefresh runs the service's commands over and over while one window ends and
// another begins. Every client that knocks is let through, admitted addresses stay
// admitted, and from then on the new sequence opens and the old one does not.
func TestRefresh(t *testing.T) {
	const period, skew = 8 * time.Second, time.Second
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newHosts(t, f, family)
		r.attacker.Shell(t, "echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind") // an address for each knocker
		_, timing := schedule(t, period, skew)
		r.profile = r.vps(t, append(timing, "Scheme rotating", "OpenFor 1m", "Knocks 3")...)
		text, rules := printedUnits(t, r.server, format(f), r.profile)
		commands := unitCommands(t, text)
		service := func() error { return runAll(r.server, commands) }
		byAddress := func(n uint16) []string {
			return []string{"-o", "BindAddress=" + r.attacker.Source(family, n).String()}
		}

		// Soon after Skew has passed, with most of the window still to come.
		for into := time.Duration(0); into < skew+time.Second || into > period/2; time.Sleep(10 * time.Millisecond) {
			into = time.Duration(time.Now().UnixNano()) % period
		}
		end := time.Now().Truncate(period).Add(period)
		said, _, _ := strings.Cut(r.client.Run(t, "portknock", "sequence", "-c", r.profile, "vps"), "  (")
		old := sequence(said)
		if err := service(); err != nil {
			t.Fatal(err)
		}
		var daemon *lab.Daemon
		if f.Async {
			daemon = r.server.Knockd(t, rules)
		}
		r.expect(t, r.client, lab.Dropped)
		r.knockAndWait(t, r.client)

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
			args := append(byAddress(uint16(1000+knockers)), "-o", "ConnectTimeout=5", "vps")
			if out, err := r.attacker.Try("portknock", append([]string{"knock", "--wait", "-c", r.profile}, args...)...); err != nil {
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

		r.expect(t, r.client, lab.Open)
		before := r.attacker.Source(family, 1)
		r.attacker.KnockFrom(t, before, r.addr(), old...)
		r.knockAndWait(t, r.attacker, byAddress(2)...)
		if got := r.attacker.ProbeFrom(t, before, r.port(22)); got != lab.Dropped {
			t.Errorf("after the sequence of the window before, the port is %v", got)
		}
	})
}

// TestRefreshTokens runs the service's commands over and over while one window ends
// and another begins, and an attacker sends all spent tokens again: these open
// nothing, admitted addresses stay admitted, and fresh tokens open all the while.
func TestRefreshTokens(t *testing.T) {
	const period, skew = 4 * time.Second, time.Second
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newHosts(t, f, family)
		settings, s := tokens(t, period, skew)
		s.Tokens = 16
		profile := vps(t, append(settings, "OpenFor 5m", "TokensPerWindow 16")...)
		text, _ := printedUnits(t, r.server, format(f), profile)
		commands := unitCommands(t, text)
		if err := runAll(r.server, commands); err != nil {
			t.Fatal(err)
		}
		var keeper sync.WaitGroup
		done := make(chan bool)
		defer keeper.Wait()
		defer close(done)
		keeper.Go(func() {
			for {
				if err := runAll(r.server, commands); err != nil {
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
			r.attacker.Knock(t, r.addr(), spent...)
			if r.attacker.Probe(t, r.port(22)) == lab.Open {
				t.Fatalf("a token of %d opens twice", len(spent))
			}
			if len(spent) > 0 && r.answer(t, first) != lab.Open {
				t.Fatalf("%d have come; the first is no longer admitted", len(spent))
			}
			time.Sleep(200 * time.Millisecond) // the kernel's clock cannot be faked
		}
	})
}

// TestRefreshFails: a server that starts and cannot write its rules anew loads
// those that it has, and says that it failed. It runs no command out of the rules
// file, which somebody else may have written.
func TestRefreshFails(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newHosts(t, f, family)
		profile := vps(t, "Scheme rotating", keyFile(t))
		text, rules := printedUnits(t, r.server, format(f), profile)
		commands := unitCommands(t, text)
		if err := runAll(r.server, commands); err != nil {
			t.Fatal(err)
		}
		undo := "nft delete table inet portknock" // and no daemon
		if !f.Async {
			undo = lab.RulesLine(t, rules, "undo")
		}
		r.server.Shell(t, undo)
		if err := os.WriteFile(profile, []byte("Host vps\n    Sequense 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		mark := filepath.Join(t.TempDir(), "mark")
		r.server.Shell(t, fmt.Sprintf(`sed -i "s,^# load: .*,# load: touch %[1]s," '%[2]s' && grep -q "touch %[1]s" '%[2]s'`, mark, rules))
		if err := runAll(r.server, commands); err == nil || !strings.Contains(err.Error(), "Sequense") {
			t.Errorf("the service says %v", err)
		}
		if _, err := os.Stat(mark); err == nil {
			t.Error("the service runs a command out of the rules file")
		}
		r.expect(t, r.client, lab.Dropped)
	})
}

// TestUnits installs the units with the line of their header, and has systemd
// itself judge them.
func TestUnits(t *testing.T) {
	t.Parallel()
	lab.Require(t, "systemd-analyze", "awk", "nft", "iptables")
	for _, format := range []string{"nftables", "iptables", "knockd"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t, "server")
			text, rules := printedUnits(t, h, format, vps(t, "Scheme rotating", keyFile(t)))
			file := lab.File(t, "units", text)
			lab.EditFile(t, file, "/etc/portknock.units", file)
			systemctl := lab.File(t, "systemctl", "#!/bin/sh", `echo systemctl "$@"`)
			h.Run(t, "chmod", "700", systemctl)
			run := func(name string) string {
				t.Helper()
				return h.Shell(t, "PATH="+filepath.Dir(systemctl)+":$PATH; "+lab.RulesLine(t, file, name))
			}
			h.Shell(t, "mount -t tmpfs tmpfs /etc/systemd/system")
			const enable = "systemctl daemon-reload\nsystemctl enable --now portknock.service portknock.timer\n"
			if got := run("install"); got != enable {
				t.Errorf("the install runs %q, want %q", got, enable)
			}
			if got := h.Shell(t, "cd /etc/systemd/system; ls"); got != "portknock.service\nportknock.timer\n" {
				t.Errorf("installed: %q", got)
			}
			if got := h.Shell(t, "cd /etc/systemd/system; systemd-analyze verify $PWD/portknock.service $PWD/portknock.timer"); got != "" {
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

// TestFirewalldStart: firewalld flushes the table of the iptables guard when it
// starts. The service starts after firewalld, waits until that has flushed, and
// loads the rules again.
func TestFirewalldStart(t *testing.T) {
	t.Parallel()
	lab.Require(t, "firewalld", "firewall-cmd", "dbus-daemon")
	r := newHosts(t, firewallNamed("iptables-nft"), lab.IPv4)
	text, _ := printedUnits(t, r.server, "iptables", vps(t, "Scheme rotating", keyFile(t)))
	for _, line := range []string{`After=.* firewalld\.service`, `WantedBy=.* firewalld\.service`, `ExecStartPre=-firewall-cmd --state`} {
		if !regexp.MustCompile("(?m)^" + line + "$").MatchString(text) {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
	service := func() {
		t.Helper()
		if err := runAll(r.server, unitCommands(t, text)); err != nil {
			t.Fatal(err)
		}
	}
	service()
	r.expect(t, r.attacker, lab.Dropped)
	r.server.Shell(t, "mkdir -p /run/dbus")
	r.server.Daemon(t, "dbus-daemon", "--system", "--nofork", "--nopidfile")
	r.server.Shell(t, "for i in $(seq 300); do [ -S /run/dbus/system_bus_socket ] && exit; sleep .1; done; exit 1")
	r.server.Daemon(t, "firewalld", "--nofork", "--nopid")
	// What systemd waits for, and then what the service waits for.
	r.server.Shell(t, `for i in $(seq 300); do
		dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner \
			string:org.fedoraproject.FirewallD1 | grep -q true && exit
		sleep .1
	done
	exit 1`)
	r.server.Run(t, "firewall-cmd", "--state")
	r.expect(t, r.attacker, lab.Open) // or this test is about nothing
	service()
	r.expect(t, r.attacker, lab.Dropped)
}
