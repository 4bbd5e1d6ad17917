package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
)

// TestSequenceOpensOnlyInItsWindowAndSkew: the current sequence opens the port at every
// place of its window. The previous or next window's sequence opens the port only within
// Skew of the boundary to that window. An older sequence never opens the port.
func TestSequenceOpensOnlyInItsWindowAndSkew(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		var r *rig
		for _, tt := range []struct {
			name         string
			place        place
			skew         time.Duration
			before, next bool
		}{
			{"early, within Skew", early, 2 * minute, true, false},
			{"early, Skew 0", early, 0, false, false},
			{"in the middle", middle, 2 * minute, false, false},
			{"late, within Skew", late, 110 * time.Second, false, true},
		} {
			period := periodWithNowAt(t, tt.place)
			settings, s := rotating(t, period, tt.skew)
			if r == nil {
				r = newRig(t, f, family, settings...)
			}
			r.load(t, settings) // these rules replace those of the case before
			now := time.Now()
			for _, attempt := range []struct {
				name string
				time time.Time
				want bool
			}{
				{"the current window's", now, true},
				{"the previous window's", now.Add(-period), tt.before},
				{"the next window's", now.Add(period), tt.next},
				{"the last but one window's", now.Add(-2 * period), false},
				{"the next but one window's", now.Add(2 * period), false},
				{"last week's", now.Add(-7 * 24 * time.Hour), false},
			} {
				if got := r.sequenceOpens(t, s, attempt.time); got != attempt.want {
					t.Errorf("%s (period %v, skew %v, %v after the window's start): %s sequence opens port 22: %v", tt.name, period, tt.skew,
						now.Sub(knock.WindowAt(now, period).Start), attempt.name, got)
				}
			}
		}
	})
}

// TestTwoWindowsInForceDoNotInterfere: while two windows are valid, each of their sequences
// opens the port, even if the rules are reloaded during the sequence. A packet is a wrong
// knock only if it goes to KnockPorts.
func TestTwoWindowsInForceDoNotInterfere(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newListeningRig(t, f, family)
		a, b := sequence("20001/udp 27000/udp 23456/udp"), sequence("21234/udp 29998/udp 20002/udp")
		g := alternatingGuard("odd of two", a, b)
		g.KnockPorts = []knock.PortRange{{Transport: knock.UDP, First: 20000, Last: 29999}}
		g.KnockTimeout = 30 * time.Second
		r.rules = loadGuard(t, r.server, f, g, rules.Options{})
		// expect sends knocks and checks port 22. If reload is not 0, it reloads the rules
		// after this number of knocks.
		expect := func(want lab.State, reload int, knocks ...knock.Step) {
			t.Helper()
			from := r.freshAddr()
			r.client.KnockFrom(t, from, r.addr(), knocks[:reload]...)
			if reload > 0 {
				r.runHeaderLine(t, "load")
			}
			r.client.KnockFrom(t, from, r.addr(), knocks[reload:]...)
			if got := r.answer(t, from); got != want {
				t.Errorf("after %v port 22 is %v, want %v", knock.Sequence(knocks), got, want)
			}
		}
		expect(lab.Open, 0, a...)
		expect(lab.Open, 0, b...)
		expect(lab.Open, 2, a...)
		expect(lab.Open, 2, b...)
		expect(lab.Open, 0, a[0], b[0], b[1], b[2])
		expect(lab.Open, 0, b[0], a[0], a[1], a[2])
		expect(lab.Dropped, 0, a[0], a[1], b[2])
		expect(lab.Dropped, 0, a[0], b[1], a[2])
		for _, s := range []knock.Sequence{a, b} {
			for _, stray := range sequence("20000/udp 29999/udp") {
				expect(lab.Dropped, 0, s[0], stray, s[1], s[2])
				expect(lab.Dropped, 0, s[0], s[1], stray, s[2])
				expect(lab.Open, 0, s[0], s[1], stray, s[0], s[1], s[2])
			}
			for _, harmless := range sequence("19999/udp 30000/udp 25000/tcp") {
				expect(lab.Open, 0, s[0], harmless, s[1], harmless, s[2])
			}
		}
	})
}

// TestKnocksOfTwoWindowsDoNotCombine: the first knocks of one valid window and the last
// knocks of another valid window do not open the port.
func TestKnocksOfTwoWindowsDoNotCombine(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := periodWithNowAt(t, early)
		settings, s := rotating(t, period, 2*time.Minute)
		r := newGuardedRig(t, f, family, settings...)
		now := time.Now()
		current, before := stepsAt(t, s, now), stepsAt(t, s, now.Add(-period))
		for i := 1; i < 5; i++ {
			from := r.freshAddr()
			r.client.KnockFrom(t, from, r.addr(), current[:i]...)
			r.client.KnockFrom(t, from, r.addr(), before[i:]...)
			if got := r.answer(t, from); got != lab.Dropped {
				t.Errorf("port 22 is %v after the first %d knocks of one window and the other knocks of another", got, i)
			}
		}
	})
}

// TestSequencesChangeWithinSkewOfBoundary: at a boundary between two windows, the next
// sequence opens the port from Skew before the boundary on. The previous sequence opens the
// port until Skew after the boundary.
func TestSequencesChangeWithinSkewOfBoundary(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		const skew = time.Second
		r := newRig(t, f, family, twoKnocks) // first, because this takes a while
		var s knock.Rotating
		period, boundary := loadEnding(t, func(period time.Duration) {
			var settings []string
			settings, s = rotating(t, period, skew)
			r.load(t, settings)
		})
		// expect returns 1 if an attempt with these times must open the port, and 0 if it
		// must not. A sequence is valid between from and until.
		const unknown = -1
		const tick = 100 * time.Millisecond // more than the delay of the kernel's coarse clock, which iptables uses
		expect := func(began, ended time.Time, from, until time.Time) int {
			switch {
			case began.After(from.Add(tick)) && ended.Before(until):
				return 1
			case ended.Before(from) || began.After(until.Add(tick)):
				return 0
			}
			return unknown
		}
		counts := map[string]int{}
		for time.Now().Before(boundary.Add(skew+time.Second)) || counts["before0"] == 0 {
			for name, window := range map[string][3]time.Time{
				"before": {boundary.Add(-1), {}, boundary.Add(skew)},
				"next":   {boundary, boundary.Add(-skew), boundary.Add(period)},
			} {
				began := time.Now()
				got := r.sequenceOpens(t, s, window[0])
				ended := time.Now()
				want := expect(began, ended, window[1], window[2])
				if want == unknown {
					continue
				}
				counts[fmt.Sprint(name, want)]++
				if got != (want == 1) {
					t.Errorf("the %s sequence, %v after the boundary, opens port 22: %v", name, began.Sub(boundary), got)
				}
			}
		}
		for _, seen := range []string{"before1", "before0", "next1", "next0"} {
			if counts[seen] == 0 {
				t.Errorf("the test made no attempt of the kind %s: %v", seen, counts)
			}
		}
	})
}

// TestSequenceMayCrossBoundary: a sequence opens the port if it begins in its window and
// ends in the next window, within Skew.
func TestSequenceMayCrossBoundary(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		const skew = 2 * time.Second
		r := newRig(t, f, family, twoKnocks) // first, because this takes a while
		var s knock.Rotating
		_, boundary := loadEnding(t, func(period time.Duration) {
			var settings []string
			settings, s = rotating(t, period, skew)
			r.load(t, append(settings, "KnockTimeout 5m"))
		})
		knocks, from := stepsAt(t, s, boundary.Add(-1)), r.freshAddr()
		r.client.KnockFrom(t, from, r.addr(), knocks[:3]...)
		sleepInto(boundary)
		if !r.admits(t, from, knocks[3:]...) {
			t.Error("a sequence that crosses the boundary does not open port 22")
		}
	})
}

// TestClientClockMayBeWrongByLessThanSkew: ssh connects if the client's clock is wrong by
// less than Skew. If the clock is wrong by an hour, portknock's hint says to compare the
// clocks.
func TestClientClockMayBeWrongByLessThanSkew(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, tt := range []struct {
			shift time.Duration
			place place
			opens bool
		}{
			{-110 * time.Second, early, true}, // the client's clock is in the previous window
			{110 * time.Second, early, true},
			{-110 * time.Second, late, true},
			{110 * time.Second, late, true}, // the client's clock is in the next window
			{time.Hour, middle, false},
			{-time.Hour, middle, false},
		} {
			period := periodWithNowAt(t, tt.place)
			settings, _ := rotating(t, period, 2*minute)
			r := newGuardedRig(t, f, family, append(settings, "ConnectTimeout 2")...)
			c := r.client.Command("ssh", "-F", r.config, "vps", "echo in")
			c.Env = append(c.Env, shiftVariable+"="+tt.shift.String())
			out, err := c.CombinedOutput()
			if loggedIn := strings.Contains(string(out), "in\n"); (err == nil && loggedIn) != tt.opens {
				t.Errorf("the client's clock is wrong by %v, in a window of %v: ssh returns %v\n%s", tt.shift, period, err, out)
			}
			w := knock.WindowAt(time.Now().Add(tt.shift), period)
			hint := fmt.Sprintf("in the window from %s until %s", w.Start.Format(time.RFC3339), w.End.Format(time.RFC3339))
			for _, want := range []string{"run date -u on both machines", hint} {
				if !tt.opens && !strings.Contains(string(out), want) {
					t.Errorf("the client's clock is wrong by %v: the output is\n%s\nwant %q", tt.shift, out, want)
				}
			}
		}
	})
}

// TestServerTimeZoneDoesNotMatter: the time zone of the server does not change the rules or
// the valid sequences. This holds even in the hour in which summer time begins.
func TestServerTimeZoneDoesNotMatter(t *testing.T) {
	now := time.Now().UTC()
	zones := []string{"UTC", "CET-1CEST,M3.5.0,M10.5.0/3", "NST3:30NDT,M3.2.0,M11.1.0", "LINT-14"}
	for _, hour := range []int{now.Hour(), now.Hour() + 1} {
		// In one of these two zones, summer time has begun with the current hour. In the
		// other zone it begins with the next hour.
		zones = append(zones, fmt.Sprintf("AAA0BBB,J%d/%d,J%d", julian(now), hour, julian(now.AddDate(0, 0, -30))))
	}
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := rotating(t, periodWithNowAt(t, middle), time.Minute)
		r := newRig(t, f, family, settings...)
		list := map[string]string{
			"nftables": "nft list map inet portknock even_vps; nft list map inet portknock odd_vps",
			"iptables": "iptables-save -t mangle; ip6tables-save -t mangle",
		}[format(f)]
		// After one period, the time is in the middle of the next window. So all rules have the
		// same windows, although some seconds pass between the first and the last.
		horizon := fmt.Sprintf("%ds", s.Period/time.Second)
		first := ""
		for _, zone := range zones {
			in := "export TZ=" + zone + "; "
			r.server.Shell(t, in+"portknock emit-rules -c "+r.profile+" --horizon "+horizon+" --format "+format(f)+" --output "+r.rules+" vps")
			r.server.Shell(t, in+lab.RulesLine(t, r.rules, "load"))
			// TZ=UTC shows the times in the rules as the kernel stores them.
			loaded := regexp.MustCompile(`\[\d+:\d+\]|#.*`).ReplaceAllString(r.server.Shell(t, "export TZ=UTC; "+list), "")
			if first == "" {
				first = loaded
			}
			if loaded != first {
				t.Errorf("rules emitted and loaded in UTC are\n%s\nin zone %s they are\n%s", first, zone, loaded)
			}
			now := time.Now()
			if !r.sequenceOpens(t, s, now) || r.sequenceOpens(t, s, now.Add(-s.Period)) || r.sequenceOpens(t, s, now.Add(s.Period)) {
				t.Errorf("in zone %s, the current sequence does not open port 22, or another one does", zone)
			}
		}
	})
}

// julian returns the day of the year as the Jn format of POSIX's TZ counts it: from 1, and
// without 29 February.
func julian(t time.Time) int {
	return time.Date(2026, t.Month(), t.Day(), 0, 0, 0, 0, time.UTC).YearDay()
}

// TestDerivedKeyOpensOnlyItsServer: the rules of a server with a derived key do not reveal
// how to open another server with the same master key. Neither the master key nor another
// server's derived key opens the server.
func TestDerivedKeyOpensOnlyItsServer(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := periodWithNowAt(t, middle)
		settings, s := rotating(t, period, time.Minute)
		r := newGuardedRig(t, f, family, append(settings, "DeriveHostKey yes")...)
		master := s.Key
		for name, want := range map[string]bool{"vps": true, "other": false, "VPS.example": false} {
			s.Key = master.Derive(name)
			if got := r.sequenceOpens(t, s, time.Now()); got != want {
				t.Errorf("the key of %s opens vps: %v", name, got)
			}
		}
		if s.Key = master; r.sequenceOpens(t, s, time.Now()) {
			t.Error("the master key opens vps")
		}
		r.login(t)
	})
}

// TestRotatingKnockAtLiveServiceCounts: the first knock of a rotating sequence may go to a
// port on which a service listens. The knock counts, and the service stays reachable.
func TestRotatingKnockAtLiveServiceCounts(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := rotating(t, periodWithNowAt(t, middle), 0)
		r := newRig(t, f, family, append(settings, "Protocol tcp")...)
		s.Ports.Transport = knock.TCP
		first := stepsAt(t, s, time.Now())[0]
		r.server.Listen(t, first.Port)
		r.runHeaderLine(t, "load")
		r.expectPort(t, r.attacker, first.Port, lab.Open)
		r.login(t)
	})
}

// TestPortAfterHorizonIsClosedOrOpen: after the last window, the port is closed to all
// clients or open to all, as --at-end says.
func TestPortAfterHorizonIsClosedOrOpen(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks)
		load := func(atEnd string) (s knock.Schedule, end time.Time) {
			_, end = loadEnding(t, func(period time.Duration) {
				var settings []string
				settings, s = rotating(t, period, time.Second)
				r.load(t, settings, "--horizon", "1s", "--at-end", atEnd)
			})
			r.expect(t, r.client, lab.Dropped)
			return s, end
		}
		_, end := load("open")
		r.awaitPort(t, time.Until(end)+20*time.Second, r.client, 22, lab.Open)
		if early := time.Until(end); early > 0 {
			t.Errorf("port 22 is open %v before the end of the last window", early)
		}
		s, end := load("closed")
		for time.Since(end) < 2*time.Second { // for Skew (1 s), and 1 s more
			r.expect(t, r.attacker, lab.Dropped)
			time.Sleep(50 * time.Millisecond)
		}
		if r.sequenceOpens(t, s, end.Add(-time.Second)) || r.sequenceOpens(t, s, time.Now()) {
			t.Error("a sequence opens port 22 after the last window")
		}
	})
}

// TestReloadWithNewHorizonKeepsStagesAndOpenings: new rules with another horizon replace the
// loaded rules. Admitted addresses stay admitted, and other addresses keep their stage.
func TestReloadWithNewHorizonKeepsStagesAndOpenings(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := rotating(t, periodWithNowAt(t, middle), time.Minute)
		r := newGuardedRig(t, f, family, append(settings, "KnockTimeout 30s")...)
		r.ssh(t, "true")
		knocks, from := stepsAt(t, s, time.Now()), r.freshAddr()
		r.client.KnockFrom(t, from, r.addr(), knocks[:2]...)
		r.emitRules(t, "--horizon", "2h")
		r.runHeaderLine(t, "test")
		r.runHeaderLine(t, "load")
		r.expect(t, r.client, lab.Open)
		if !r.admits(t, from, knocks[2:]...) {
			t.Error("an address loses its stage at the reload")
		}
		r.runHeaderLine(t, "unload")
		r.expect(t, r.attacker, lab.Open)
	})
}
