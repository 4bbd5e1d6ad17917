package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// refresher returns a function that does what a refresh does: it emits rules that are
// valid for longer, and loads them.
func (r *rig) refresher(t testing.TB, profile string) (refresh func() error, rules string) {
	t.Helper()
	horizon := "2m"
	if r.firewall.Async {
		horizon = "10s" // knockd allows few windows
	}
	emit := []string{"emit-rules", "-c", profile, "--format", format(r.firewall), "--horizon", horizon}
	rules = filepath.Join(t.TempDir(), "rules")
	if r.firewall.Async { // a test starts the daemon, and not the script
		emit = append(emit, "--output", rules, "vps")
	} else {
		emit = append(emit, "--script", "--output", rules, "vps")
	}
	load := func() (string, error) { return r.server.Try("sh", rules, "load") }
	if r.firewall.Async {
		load = func() (string, error) { return tryHeaderLine(t, r.server, rules, "load") }
	}
	return func() error {
		if out, err := r.server.Try("portknock", emit...); err != nil {
			return fmt.Errorf("emit-rules: %w\n%s", err, out)
		}
		if out, err := load(); err != nil {
			return fmt.Errorf("load: %w\n%s", err, out)
		}
		return nil
	}, rules
}

// TestRefreshLosesNoClientAtWindowEnd: the rules are refreshed repeatedly while one
// window ends and another begins. The guard lets every client through that knocks, and
// admitted addresses stay admitted. Then only the new sequence opens the port.
func TestRefreshLosesNoClientAtWindowEnd(t *testing.T) {
	const period, skew = 8 * time.Second, time.Second
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		r.attacker.Shell(t, "echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind") // so that each knocker can use another address
		_, timing := schedule(t, period, skew)
		r.profile = r.vpsProfile(t, append(timing, "Scheme rotating", "OpenFor 1m", "Knocks 3")...)
		refresh, rules := r.refresher(t, r.profile)
		byAddress := func(n uint16) []string {
			return []string{"-o", "BindAddress=" + r.attacker.Source(family, n).String()}
		}

		// This waits until the window has lasted for at least Skew and 1 s, and for at most half
		// of Period.
		for into := time.Duration(0); into < skew+time.Second || into > period/2; time.Sleep(10 * time.Millisecond) {
			into = time.Duration(time.Now().UnixNano()) % period
		}
		end := time.Now().Truncate(period).Add(period)
		current := func() knock.Sequence {
			printed, _, _ := strings.Cut(r.client.Run(t, "portknock", "sequence", "-c", r.profile, "vps"), "  (")
			return sequence(printed)
		}
		old := current()
		if err := refresh(); err != nil {
			t.Fatal(err)
		}
		var daemon *lab.Daemon
		if f.Async {
			// A knockd in the foreground writes a log that the test can read, but no PID file.
			// A knockd that ends removes the PID file, so the old one must be gone before.
			r.server.Shell(t, "timeout 10 sh -c 'while pkill -x knockd; do sleep 0.05; done'")
			daemon = r.server.Knockd(t, rules)
			r.server.Shell(t, "pgrep -nx knockd >/run/knockd.pid")
		}
		r.expect(t, r.client, lab.Dropped)
		r.knockAndWait(t, r.client)

		// knockd reloads in its signal handler. It can hang if the signal comes while it handles a
		// packet, so clients of knockd do not knock during a refresh.
		var handling sync.Mutex
		exclusively := func(do func()) {
			if f.Async {
				handling.Lock()
				defer handling.Unlock()
			}
			do()
		}
		knockers := 0
		awaitHandled := func() { // knockd handles packets in order
			if f.Async {
				marker := r.attacker.Source(family, uint16(2000+knockers))
				r.attacker.KnockFrom(t, marker, r.addr(), current()[0])
				daemon.Log.Await(t, marker.String()+": vps", 1)
			}
		}
		awaitHandled()
		var keeper sync.WaitGroup
		stop := end.Add(skew + time.Second)
		runs := 1
		keeper.Go(func() {
			for ; time.Now().Before(stop); runs++ {
				var err error
				if exclusively(func() { err = refresh() }); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(500 * time.Millisecond) // the timer runs the service less often
			}
		})
		for time.Now().Before(stop) {
			knockers++
			args := append(byAddress(uint16(1000+knockers)), "-o", "ConnectTimeout=5", "vps")
			exclusively(func() {
				if out, err := r.attacker.Try("portknock", append([]string{"knock", "--wait", "-c", r.profile}, args...)...); err != nil {
					t.Errorf("knocker %d, %v after the window's end, is not let through: %v %s", knockers, time.Since(end), err, out)
				}
				awaitHandled()
			})
			time.Sleep(100 * time.Millisecond) // xt_recent remembers 100 addresses, which include the admitted client
		}
		keeper.Wait()
		if err := refresh(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d knockers, %d refreshes", knockers, runs)
		if f.Async {
			if !strings.Contains(strings.ToLower(daemon.Log.String()), "re-reading") {
				t.Error("knockd has not reread its file")
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

// TestRefreshKeepsTokensSpent: the rules are refreshed repeatedly while one window ends
// and another begins, and an attacker sends all spent tokens again. Spent tokens open
// nothing, admitted addresses stay admitted, and fresh tokens always open the port.
func TestRefreshKeepsTokensSpent(t *testing.T) {
	const period, skew = 4 * time.Second, time.Second
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		settings, s := tokens(t, period, skew)
		s.Tokens = 16
		profile := vpsProfile(t, append(settings, "OpenFor 5m", "TokensPerWindow 16")...)
		refresh, _ := r.refresher(t, profile)
		if err := refresh(); err != nil {
			t.Fatal(err)
		}
		var keeper sync.WaitGroup
		done := make(chan bool)
		defer keeper.Wait()
		defer close(done)
		keeper.Go(func() {
			for {
				if err := refresh(); err != nil {
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
