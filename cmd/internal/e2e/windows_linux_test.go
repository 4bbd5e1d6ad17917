package e2e

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// The kernel's clock cannot be faked. These tests choose windows instead, so
// that the present moment lies in them where they want it.

const windowKey = "portknock-key-1:aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypzcjt6ri"

// place says where in its window the present moment is to be: so long after the
// start, and so long before the end.
type place struct{ into, left [2]time.Duration } // at least, below

const minute, ever = time.Minute, math.MaxInt64

var (
	early  = place{[2]time.Duration{5 * time.Second, 80 * time.Second}, [2]time.Duration{4 * minute, ever}}
	middle = place{[2]time.Duration{150 * time.Second, ever}, [2]time.Duration{150 * time.Second, ever}}
	late   = place{[2]time.Duration{4 * minute, ever}, [2]time.Duration{minute, 100 * time.Second}}
	ending = place{[2]time.Duration{10 * time.Second, ever}, [2]time.Duration{5 * time.Second, 7 * time.Second}}
)

// standing returns a period whose window has the present moment there. A few
// seconds have none: then it waits for the next.
func standing(t testing.TB, p place) time.Duration {
	t.Helper()
	for range 60 {
		now := time.Duration(time.Now().Unix()) * time.Second
		for period := 30 * time.Second; period < 12*24*time.Hour; period += time.Second {
			into := now % period
			left := period - into
			if p.into[0] <= into && into < p.into[1] && p.left[0] <= left && left < p.left[1] {
				return period
			}
		}
		time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
	}
	t.Fatal("no such period")
	return 0
}

// rotating returns the settings of a scheme with this period and skew, and its
// schedule.
func rotating(t testing.TB, period, skew time.Duration) (settings []string, s knock.Rotating) {
	t.Helper()
	key, err := knock.ParseKey(windowKey)
	if err != nil {
		t.Fatal(err)
	}
	return []string{
			"Scheme rotating", "KeyFile " + secret(t, "key", windowKey), "OpenFor 5m",
			fmt.Sprintf("Period %d", period/time.Second), fmt.Sprintf("Skew %d", skew/time.Second),
		},
		knock.Rotating{Key: key, Ports: knock.PortRange{Transport: knock.UDP, First: 20000, Last: 59999}, Knocks: 5, Period: period}
}

// visitor is a source address that nobody has knocked from yet.
func (r *rig) visitor() netip.Addr {
	r.visitors++
	return r.Client.Source(r.family, r.visitors)
}

// opens reports whether a schedule's sequence of some time lets a new visitor in.
func (r *rig) opens(t testing.TB, s knock.Schedule, at time.Time) bool {
	t.Helper()
	seqs, _, err := s.At(at)
	if err != nil {
		t.Fatal(err)
	}
	from := r.visitor()
	r.Client.KnockFrom(t, from, r.Server.Addr(r.family), seqs[0]...)
	return r.Client.ProbeFrom(t, from, addrPort(r, 22)) == lab.Open
}

// TestWindows: the current sequence opens wherever in its window it is knocked,
// a neighbour's only within Skew of the boundary between them, an older one never.
func TestWindows(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		var r *rig
		for _, tt := range []struct {
			name         string
			place        place
			skew         time.Duration
			before, next bool
		}{
			{"early, within Skew", early, 2 * minute, true, false},
			{"early, without Skew", early, 0, false, false},
			{"in the middle", middle, 2 * minute, false, false},
			{"late, within Skew", late, 110 * time.Second, false, true},
		} {
			period := standing(t, tt.place)
			settings, s := rotating(t, period, tt.skew)
			if r == nil {
				r = newRig(t, f, family, settings...)
			}
			r.load(t, settings) // over the last one's
			now := time.Now()
			for _, at := range []struct {
				name string
				time time.Time
				want bool
			}{
				{"the current", now, true},
				{"the one before", now.Add(-period), tt.before},
				{"the next", now.Add(period), tt.next},
				{"the one before that", now.Add(-2 * period), false},
				{"the next but one", now.Add(2 * period), false},
				{"last week's", now.Add(-7 * 24 * time.Hour), false},
			} {
				if got := r.opens(t, s, at.time); got != at.want {
					t.Errorf("%s (period %v, skew %v, %v into it): %s sequence opens: %v", tt.name, period, tt.skew,
						now.Sub(knock.WindowAt(now, period).Start), at.name, got)
				}
			}
		}
	})
}

// TestWrongClock: ssh gets through while the client's clock is wrong by less than
// Skew, and is told to compare the clocks when it is wrong by an hour.
func TestWrongClock(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, tt := range []struct {
			shift time.Duration
			place place
			opens bool
		}{
			{-110 * time.Second, early, true}, // in the window before
			{110 * time.Second, early, true},
			{-110 * time.Second, late, true},
			{110 * time.Second, late, true}, // in the next
			{time.Hour, middle, false},
			{-time.Hour, middle, false},
		} {
			period := standing(t, tt.place)
			settings, _ := rotating(t, period, 2*minute)
			r := newRig(t, f, family, append(settings, "ConnectTimeout 2")...)
			header(t, r.Server, r.rules, "load")
			c := r.Client.Command("ssh", "-F", r.config, "vps", "echo in")
			c.Env = append(c.Env, shiftVariable+"="+tt.shift.String())
			out, err := c.CombinedOutput()
			if in := strings.Contains(string(out), "in\n"); (err == nil && in) != tt.opens {
				t.Errorf("a clock wrong by %v, in a window of %v: %v\n%s", tt.shift, period, err, out)
			}
			w := knock.WindowAt(time.Now().Add(tt.shift), period)
			hint := fmt.Sprintf("in the window from %s until %s", w.Start.Format(time.RFC3339), w.End.Format(time.RFC3339))
			if !tt.opens && !(strings.Contains(string(out), "hold date -u on both sides together") && strings.Contains(string(out), hint)) {
				t.Errorf("a clock wrong by %v is told\n%s\nwant %q", tt.shift, out, hint)
			}
		}
	})
}

// TestBoundary goes through a boundary between two windows: from Skew before it
// the next sequence opens, until Skew after it the one before does.
func TestBoundary(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		const skew = time.Second
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp") // which takes a while
		period := standing(t, ending)
		settings, s := rotating(t, period, skew)
		r.load(t, settings)
		boundary := knock.WindowAt(time.Now(), period).End
		// What is expected of an attempt that began and ended at these times.
		const unknown = -1
		const tick = 100 * time.Millisecond // more than that by which the kernel's coarse clock, iptables', may be late
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
				got := r.opens(t, s, window[0])
				ended := time.Now()
				want := expect(began, ended, window[1], window[2])
				if want == unknown {
					continue
				}
				counts[fmt.Sprint(name, want)]++
				if got != (want == 1) {
					t.Errorf("the sequence %s, %v after the boundary: opens: %v", name, began.Sub(boundary), got)
				}
			}
		}
		for _, seen := range []string{"before1", "before0", "next1", "next0"} {
			if counts[seen] == 0 {
				t.Errorf("no attempt of the kind %s: %v", seen, counts)
			}
		}
	})
}

// TestBoundaryInMidSequence: who has begun in a window may end in the next.
func TestBoundaryInMidSequence(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		const skew = 2 * time.Second
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp") // which takes a while
		period := standing(t, ending)
		settings, s := rotating(t, period, skew)
		r.load(t, append(settings, "KnockTimeout 30s"))
		now := time.Now()
		seqs, w, _ := s.At(now)
		from, to := r.visitor(), r.Server.Addr(family)
		r.Client.KnockFrom(t, from, to, seqs[0][:3]...)
		time.Sleep(time.Until(w.End.Add(100 * time.Millisecond))) // the kernel's clock cannot be faked
		r.Client.KnockFrom(t, from, to, seqs[0][3:]...)
		if got := r.Client.ProbeFrom(t, from, addrPort(r, 22)); got != lab.Open {
			t.Errorf("port 22 is %v", got)
		}
	})
}

// TestMixedWindows: knocks of two windows that both are valid are no sequence.
func TestMixedWindows(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := standing(t, early)
		settings, s := rotating(t, period, 2*time.Minute)
		r := newRig(t, f, family, settings...)
		header(t, r.Server, r.rules, "load")
		now := time.Now()
		seqs, _, _ := s.At(now)
		before, _, _ := s.At(now.Add(-period))
		for i := 1; i < 5; i++ {
			from, to := r.visitor(), r.Server.Addr(family)
			r.Client.KnockFrom(t, from, to, seqs[0][:i]...)
			r.Client.KnockFrom(t, from, to, before[0][i:]...)
			if got := r.Client.ProbeFrom(t, from, addrPort(r, 22)); got != lab.Dropped {
				t.Errorf("port 22 is %v after %d knocks of one and the rest of the other", got, i)
			}
		}
	})
}

// TestTimeZones: the server's zone changes nothing, not even in the hour in which
// its clocks change.
func TestTimeZones(t *testing.T) {
	now := time.Now().UTC()
	zones := []string{"UTC", "CET-1CEST,M3.5.0,M10.5.0/3", "NST3:30NDT,M3.2.0,M11.1.0", "LINT-14"}
	for _, hour := range []int{now.Hour(), now.Hour() + 1} {
		// In these, summer has begun with this hour, or begins with the next.
		zones = append(zones, fmt.Sprintf("AAA0BBB,J%d/%d,J%d", julian(now), hour, julian(now.AddDate(0, 0, -30))))
	}
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := rotating(t, standing(t, middle), time.Minute)
		r := newRig(t, f, family, settings...)
		list := map[string]string{
			"nftables": "nft list map inet portknock even_vps; nft list map inet portknock odd_vps",
			"iptables": "iptables-save -t mangle; ip6tables-save -t mangle",
		}[format(f)]
		first := ""
		for _, zone := range zones {
			in := "export TZ=" + zone + "; "
			r.Server.Shell(t, in+"portknock emit-rules -c "+r.profile+" --horizon 1h --format "+format(f)+" --output "+r.rules+" vps")
			r.Server.Shell(t, in+headerLine(t, r.rules, "load"))
			// Times as the kernel has them.
			loaded := regexp.MustCompile(`\[\d+:\d+\]|#.*`).ReplaceAllString(r.Server.Shell(t, "export TZ=UTC; "+list), "")
			if first == "" {
				first = loaded
			}
			if loaded != first {
				t.Errorf("in UTC the kernel has\n%s\nin %s\n%s", first, zone, loaded)
			}
			now := time.Now()
			if !r.opens(t, s, now) || r.opens(t, s, now.Add(-s.Period)) || r.opens(t, s, now.Add(s.Period)) {
				t.Errorf("in %s other sequences open", zone)
			}
		}
	})
}

// julian is a day of the year as POSIX's TZ counts it: without 29 February.
func julian(t time.Time) int {
	return time.Date(2026, t.Month(), t.Day(), 0, 0, 0, 0, time.UTC).YearDay()
}

// TestDerivedKeys: of two servers with one master key, neither's rules say how
// to open the other.
func TestDerivedKeys(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		period := standing(t, middle)
		settings, s := rotating(t, period, time.Minute)
		r := newRig(t, f, family, append(settings, "DeriveHostKey yes")...)
		header(t, r.Server, r.rules, "load")
		master := s.Key
		for name, want := range map[string]bool{"vps": true, "other": false, "VPS.example": false} {
			s.Key = master.Derive(name)
			if got := r.opens(t, s, time.Now()); got != want {
				t.Errorf("the key of %s opens vps: %v", name, got)
			}
		}
		if s.Key = master; r.opens(t, s, time.Now()) {
			t.Error("the master key opens vps")
		}
		if got := r.ssh(t, "echo in"); got != "in\n" {
			t.Errorf("ssh prints %q", got)
		}
	})
}

// TestKnockAtAServiceByTheClock: a first knock that happens to go to a service
// reaches it, and counts.
func TestKnockAtAServiceByTheClock(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := rotating(t, standing(t, middle), 0)
		r := newRig(t, f, family, append(settings, "Protocol tcp")...)
		s.Ports.Transport = knock.TCP
		seqs, _, _ := s.At(time.Now())
		r.Server.Listen(t, seqs[0][0].Port)
		header(t, r.Server, r.rules, "load")
		if got := r.Attacker.Probe(t, addrPort(r, seqs[0][0].Port)); got != lab.Open {
			t.Errorf("the service is %v", got)
		}
		if got := r.ssh(t, "echo in"); got != "in\n" {
			t.Errorf("ssh prints %q", got)
		}
	})
}

// TestAtEnd: when the last window ends, the port is closed to all or open to all.
func TestAtEnd(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp")
		load := func(atEnd string) (s knock.Schedule, end time.Time) {
			period := standing(t, ending)
			settings, s := rotating(t, period, time.Second)
			end = knock.WindowAt(time.Now(), period).End
			r.load(t, settings, "--horizon", "1s", "--at-end", atEnd)
			r.expect(t, r.Client, lab.Dropped)
			return s, end
		}
		_, end := load("open")
		for r.probe(t, r.Client) != lab.Open {
			if time.Since(end) > 20*time.Second {
				t.Fatal("not open after the end")
			}
			time.Sleep(50 * time.Millisecond) // the kernel's clock cannot be faked
		}
		if early := time.Until(end); early > 0 {
			t.Errorf("open %v before the end", early)
		}
		s, end := load("closed")
		for time.Since(end) < 2*time.Second { // Skew, and more
			r.expect(t, r.Attacker, lab.Dropped)
			time.Sleep(50 * time.Millisecond)
		}
		if r.opens(t, s, end.Add(-time.Second)) || r.opens(t, s, time.Now()) {
			t.Error("a sequence opens after the end")
		}
	})
}

// TestReloadByTheClock: new rules of other times find those who knock and those
// who are in where the old ones left them.
func TestReloadByTheClock(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		settings, s := rotating(t, standing(t, middle), time.Minute)
		r := newRig(t, f, family, append(settings, "KnockTimeout 30s")...)
		header(t, r.Server, r.rules, "load")
		r.ssh(t, "true")
		seqs, _, _ := s.At(time.Now())
		from := r.visitor()
		r.Client.KnockFrom(t, from, r.Server.Addr(family), seqs[0][:2]...)
		longer := emit(t, r.Server, f, r.profile, "--horizon", "2h")
		header(t, r.Server, longer, "check")
		header(t, r.Server, longer, "load")
		r.expect(t, r.Client, lab.Open)
		r.Client.KnockFrom(t, from, r.Server.Addr(family), seqs[0][2:]...)
		if got := r.Client.ProbeFrom(t, from, addrPort(r, 22)); got != lab.Open {
			t.Errorf("for who was knocking, port 22 is %v", got)
		}
		header(t, r.Server, longer, "undo")
		r.expect(t, r.Attacker, lab.Open)
	})
}

// TestContainer: where a server may not load much at once, it loads in parts.
func TestContainer(t *testing.T) {
	knocks, _ := rotating(t, time.Hour, time.Minute)
	tokens, _ := tokens(t, time.Hour, time.Minute)
	for name, settings := range map[string][]string{"rotating": knocks, "token": tokens} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testContainer(t, settings)
		})
	}
}

func testContainer(t *testing.T, settings []string) {
	lab.Require(t, "nft", "unshare", "setpriv", "awk")
	profile := secret(t, "config", append([]string{"Host vps"}, settings...)...)
	server := lab.NewHost(t, "server")
	rules := emit(t, server, lab.Firewalls[0], profile, "--horizon", "365d")
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	// For a user who has no privilege but in a namespace of its own.
	text, err := os.ReadFile(rules)
	must(err)
	dir, err := os.MkdirTemp("/tmp", "portknock")
	must(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(os.Chmod(dir, 0o755))
	file := filepath.Join(dir, "rules")
	must(os.WriteFile(file, bytes.ReplaceAll(text, []byte(rules), []byte(file)), 0o644))
	inside := func(script string) (string, error) {
		return server.Try("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-Urn", "sh", "-c", script)
	}
	if out, err := inside("true"); err != nil {
		lab.Missing(t, fmt.Sprintf("namespaces for users: %v %s", err, out))
	}
	if out, err := inside(headerLine(t, file, "load")); err == nil {
		t.Logf("this kernel takes it all at once: %s", out)
	}
	parts := headerLine(t, file, "parts")
	out, err := inside(parts + " && " + parts + " && nft list table inet portknock | grep -c 'timeout\\|goto'")
	if err != nil || strings.TrimSpace(out) == "0" {
		t.Errorf("%v: %s", err, out)
	}
	// A part that fails is not passed over.
	must(os.WriteFile(file, append(bytes.ReplaceAll(text, []byte(rules), []byte(file)), "nonsense\n"...), 0o644))
	if _, err := inside(parts); err == nil {
		t.Error("a fault in the last part is no failure")
	}
}
