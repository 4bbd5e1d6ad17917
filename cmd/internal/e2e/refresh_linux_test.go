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

// printedUnits makes portknock print the units for the profile vps. The rules are in a
// folder of the test, whose name needs every kind of quoting.
func printedUnits(t testing.TB, h *lab.Host, format, profile string) (text, rules string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), `a b$c%d"e`)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	rules = filepath.Join(dir, "rules")
	return h.Run(t, "portknock", "emit-rules", "-c", profile, "--refresh", "systemd", "--format", format, "--output", rules, "vps"), rules
}

// unitCommands returns the commands of a service, each with its arguments as systemd
// would pass them.
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
					t.Fatalf("a single %c, which must be doubled, in %s", c, line[1])
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

// runAll runs commands on a host until one fails.
func runAll(h *lab.Host, commands [][]string) error {
	for _, c := range commands {
		if out, err := h.Try(c[0], c[1:]...); err != nil {
			return fmt.Errorf("%q: %w\n%s", c, err, out)
		}
	}
	return nil
}

// TestRefreshLosesNoClientAtWindowEnd: the service's commands run repeatedly while one
// window ends and another begins. The guard lets every client through that knocks, and
// admitted addresses stay admitted. Then only the new sequence opens the port.
func TestRefreshLosesNoClientAtWindowEnd(t *testing.T) {
	const period, skew = 8 * time.Second, time.Second
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		r.attacker.Shell(t, "echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind") // so that each knocker can use another address
		_, timing := schedule(t, period, skew)
		r.profile = r.vpsProfile(t, append(timing, "Scheme rotating", "OpenFor 1m", "Knocks 3")...)
		text, rules := printedUnits(t, r.server, format(f), r.profile)
		commands := unitCommands(t, text)
		service := func() error { return runAll(r.server, commands) }
		byAddress := func(n uint16) []string {
			return []string{"-o", "BindAddress=" + r.attacker.Source(family, n).String()}
		}

		// This waits until the window has lasted for at least Skew and 1 s, and for at most half
		// of Period.
		for into := time.Duration(0); into < skew+time.Second || into > period/2; time.Sleep(10 * time.Millisecond) {
			into = time.Duration(time.Now().UnixNano()) % period
		}
		end := time.Now().Truncate(period).Add(period)
		printed, _, _ := strings.Cut(r.client.Run(t, "portknock", "sequence", "-c", r.profile, "vps"), "  (")
		old := sequence(printed)
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
		stop := end.Add(skew + time.Second)
		runs := 1
		keeper.Go(func() {
			for ; time.Now().Before(stop); runs++ {
				if err := service(); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(500 * time.Millisecond) // the timer runs the service less often
			}
		})
		knockers := 0
		for ; time.Now().Before(stop); knockers++ {
			args := append(byAddress(uint16(1000+knockers)), "-o", "ConnectTimeout=5", "vps")
			if out, err := r.attacker.Try("portknock", append([]string{"knock", "--wait", "-c", r.profile}, args...)...); err != nil {
				t.Errorf("knocker %d, %v after the window's end, is not let through: %v %s", knockers, time.Since(end), err, out)
			}
			time.Sleep(100 * time.Millisecond) // xt_recent remembers 100 addresses, which include the admitted client
		}
		keeper.Wait()
		if err := service(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d knockers, %d refreshes", knockers, runs)
		if f.Async {
			reread := strings.Count(strings.ToLower(daemon.Log.String()), "re-reading")
			if reread == 0 || reread >= runs {
				t.Errorf("knockd has reread its file %d times, want at least once, and less often than the rules were refreshed", reread)
			}
		}

		r.expect(t, r.client, lab.Open)
		before := r.attacker.Source(family, 1)
		r.attacker.KnockFrom(t, before, r.addr(), old...)
		r.knockAndWait(t, r.attacker, byAddress(2)...)
		if got := r.attacker.ProbeFrom(t, before, r.port(22)); got != lab.Dropped {
			t.Errorf("after the previous window's sequence, port 22 is %v", got)
		}
	})
}

// TestRefreshKeepsTokensSpent: the service's commands run repeatedly while one window ends
// and another begins, and an attacker sends all spent tokens again. Spent tokens open
// nothing, admitted addresses stay admitted, and fresh tokens always open the port.
func TestRefreshKeepsTokensSpent(t *testing.T) {
	const period, skew = 4 * time.Second, time.Second
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		settings, s := tokens(t, period, skew)
		s.Tokens = 16
		profile := vpsProfile(t, append(settings, "OpenFor 5m", "TokensPerWindow 16")...)
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
				case <-time.After(300 * time.Millisecond): // the timer runs the service less often
				}
			}
		})
		var spent []knock.Step
		var end time.Time // end of the window in which the first address was admitted
		first := r.freshAddr()
		known, ended := map[string]bool{}, false
		for from := first; !ended || time.Now().Before(end.Add(skew+500*time.Millisecond)); from = r.freshAddr() {
			began := time.Now()
			for _, step := range r.familyTokens(t, s, began) {
				if known[string(step.Payload)] {
					continue
				}
				known[string(step.Payload)] = true
				switch admitted := r.admits(t, from, step); {
				case admitted:
					spent = append(spent, step)
					ended = !end.IsZero() && began.After(end)
				case time.Since(began) < skew: // after more than Skew, the machine was too busy for this check
					t.Fatalf("after %d admitted addresses, a fresh token does not open port 22", len(spent))
				}
				break
			}
			if end.IsZero() && len(spent) > 0 {
				first, end = from, knock.WindowAt(began, period).End
			}
			r.attacker.Knock(t, r.addr(), spent...)
			if r.attacker.Probe(t, r.port(22)) == lab.Open {
				t.Fatalf("one of %d spent tokens opens port 22 again", len(spent))
			}
			if len(spent) > 0 && r.answer(t, first) != lab.Open {
				t.Fatalf("after %d admitted addresses, the first address is not admitted any more", len(spent))
			}
			time.Sleep(200 * time.Millisecond) // a test cannot fake the kernel's clock
		}
	})
}

// TestFailedRefreshLoadsPreviousRules: a server starts and cannot emit new rules. It loads
// the rules that it has, and the service fails. The service does not run a command from
// the rules file, because another user may have written this file.
func TestFailedRefreshLoadsPreviousRules(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		profile := vpsProfile(t, "Scheme rotating", keyFileSetting(t))
		text, rules := printedUnits(t, r.server, format(f), profile)
		commands := unitCommands(t, text)
		if err := runAll(r.server, commands); err != nil {
			t.Fatal(err)
		}
		undo := "nft delete table inet portknock" // this test starts no knockd that undo could end
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
			t.Errorf("the service returns %v, want an error about Sequense", err)
		}
		if _, err := os.Stat(mark); err == nil {
			t.Error("the service runs a command from the rules file")
		}
		r.expect(t, r.client, lab.Dropped)
	})
}

// TestRefreshUnitsInstallAndUndo: the install and undo commands in the header of the units
// work, and systemd-analyze accepts the units.
func TestRefreshUnitsInstallAndUndo(t *testing.T) {
	t.Parallel()
	lab.Require(t, "systemd-analyze", "awk", "nft", "iptables")
	for _, format := range []string{"nftables", "iptables", "knockd"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			h := lab.NewHost(t, "server")
			text, rules := printedUnits(t, h, format, vpsProfile(t, "Scheme rotating", keyFileSetting(t)))
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
				t.Errorf("the install command runs %q, want %q", got, enable)
			}
			if got := h.Shell(t, "cd /etc/systemd/system; ls"); got != "portknock.service\nportknock.timer\n" {
				t.Errorf("the install command wrote the units %q", got)
			}
			if got := h.Shell(t, "cd /etc/systemd/system; systemd-analyze verify $PWD/portknock.service $PWD/portknock.timer"); got != "" {
				t.Errorf("systemd-analyze verify prints: %s", got)
			}
			h.Run(t, "systemd-analyze", "security", "--offline=yes", "--threshold=40", "/etc/systemd/system/portknock.service")
			// Commands that run as root come from the units, and not from the rules file.
			if err := os.WriteFile(rules, []byte("# undo: echo from the rules file\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			h.Shell(t, "nft add table inet portknock; iptables -t mangle -N PORTKNOCK")
			if got := run("undo"); !strings.HasSuffix(got, "systemctl daemon-reload\n") {
				t.Errorf("the undo command prints %q", got)
			}
			left := "nft list tables | grep portknock"
			if format == "iptables" {
				left = "iptables-save | grep PORTKNOCK"
			}
			if got := h.Shell(t, left+" || :"); got != "" {
				t.Errorf("the undo command left the rules %q", got)
			}
			if got := h.Shell(t, "ls /etc/systemd/system"); got != "" {
				t.Errorf("the undo command left the units %q", got)
			}
		})
	}
}

// TestRefreshRestoresRulesAfterFirewalldStarts: firewalld flushes the table of the
// iptables guard when firewalld starts. The service starts after firewalld, waits until
// firewalld has flushed the table, and loads the rules again.
func TestRefreshRestoresRulesAfterFirewalldStarts(t *testing.T) {
	t.Parallel()
	lab.Require(t, "firewalld", "firewall-cmd", "dbus-daemon")
	r := newListeningRig(t, firewallNamed("iptables-nft"), lab.IPv4)
	text, _ := printedUnits(t, r.server, "iptables", vpsProfile(t, "Scheme rotating", keyFileSetting(t)))
	for _, line := range []string{`After=.* firewalld\.service`, `WantedBy=.* firewalld\.service`, `ExecStartPre=-firewall-cmd --state`} {
		if !regexp.MustCompile("(?m)^" + line + "$").MatchString(text) {
			t.Errorf("the units have no line %s:\n%s", line, text)
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
	// systemd waits for the D-Bus name of firewalld. Then the service waits for
	// firewall-cmd --state.
	r.server.Shell(t, `for i in $(seq 300); do
		dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner \
			string:org.fedoraproject.FirewallD1 | grep -q true && exit
		sleep .1
	done
	exit 1`)
	r.server.Run(t, "firewall-cmd", "--state")
	r.expect(t, r.attacker, lab.Open) // firewalld has flushed the rules
	service()
	r.expect(t, r.attacker, lab.Dropped)
}
