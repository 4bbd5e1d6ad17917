package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
)

// The kernel's clock cannot be faked. The tests choose windows instead, in which the
// present moment lies where a test wants it.

// windowKey is the key of every schedule in these tests.
const windowKey = "portknock-key-1:aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypzcjt6ri"

// place says where in its window the present moment is to be: how long after the
// start, and how long before the end.
type place struct{ into, left span }

// span is a range of durations. A zero below sets no upper limit.
type span struct{ least, below time.Duration }

func (s span) contains(d time.Duration) bool { return s.least <= d && (s.below == 0 || d < s.below) }

const second, minute = time.Second, time.Minute

var (
	early  = place{into: span{least: 5 * second, below: 80 * second}, left: span{least: 4 * minute}}
	middle = place{into: span{least: 150 * second}, left: span{least: 150 * second}}
	late   = place{into: span{least: 4 * minute}, left: span{least: minute, below: 100 * second}}
	ending = place{into: span{least: 10 * second}, left: span{least: 5 * second, below: 7 * second}}
)

// standing returns a period whose window has the present moment there. A few
// seconds have none: then it waits for the next.
func periodWithNowAt(t testing.TB, p place) time.Duration {
	t.Helper()
	for range 60 {
		now := time.Duration(time.Now().Unix()) * time.Second
		for period := 30 * time.Second; period < 12*24*time.Hour; period += time.Second {
			into := now % period
			if p.into.contains(into) && p.left.contains(period-into) {
				return period
			}
		}
		time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
	}
	t.Fatal("no such period")
	return 0
}

// newTokenRig is newGuardedRig for tokens, in the middle of a window.
func newTokenRig(t testing.TB, f lab.Firewall, family lab.Family, more ...string) (*rig, knock.Token) {
	t.Helper()
	settings, s := tokens(t, periodWithNowAt(t, middle), time.Minute)
	return newGuardedRig(t, f, family, append(settings, more...)...), s
}

// sleepInto waits until the window has begun whose start is given, also by the
// coarse clock that the kernel uses for iptables.
func sleepInto(start time.Time) { time.Sleep(time.Until(start.Add(100 * time.Millisecond))) }

// schedule returns the key of the tests, and the settings for it and for a period.
func schedule(t testing.TB, period, skew time.Duration) (key knock.Key, settings []string) {
	t.Helper()
	key, err := knock.ParseKey(windowKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, []string{keyFileSetting(t), fmt.Sprintf("Period %d", period/time.Second), fmt.Sprintf("Skew %d", skew/time.Second)}
}

// rotating returns the settings of a scheme with this period and skew, and its
// schedule.
func rotating(t testing.TB, period, skew time.Duration) (settings []string, s knock.Rotating) {
	t.Helper()
	key, timing := schedule(t, period, skew)
	return append(timing, "Scheme rotating", "OpenFor 5m"), knock.Rotating{
		Key:    key,
		Ports:  knock.PortRange{Transport: knock.UDP, First: 20000, Last: 59999},
		Knocks: 5,
		Period: period,
	}
}

// opens reports whether a schedule's sequence of some time lets a new visitor in.
func (r *rig) sequenceOpens(t testing.TB, s knock.Schedule, when time.Time) bool {
	t.Helper()
	return r.admits(t, r.freshAddr(), stepsAt(t, s, when)...)
}

// tokens returns the settings of a profile with this period and skew, and its
// schedule.
func tokens(t testing.TB, period, skew time.Duration) (settings []string, s knock.Token) {
	t.Helper()
	key, timing := schedule(t, period, skew)
	return append(timing, "Scheme token"), knock.Token{Key: key, Port: 62202, Period: period, Tokens: 8}
}

// at returns the knocks of a moment, or all its tokens.
func stepsAt(t testing.TB, s knock.Schedule, when time.Time) []knock.Step {
	t.Helper()
	seqs, _, err := s.At(when)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(seqs...)
}

// own returns the tokens of a moment that the rig's family begins with: every other
// one. iptables accepts only these from that family.
func (r *rig) familyTokens(t testing.TB, s knock.Schedule, when time.Time) (own []knock.Step) {
	t.Helper()
	for n, step := range stepsAt(t, s, when) {
		if knock.IsTokenOf(r.family == lab.IPv6, n) {
			own = append(own, step)
		}
	}
	return own
}

// alternating is a schedule of two sequences, for windows of even and odd number.
type alternating struct {
	period    time.Duration
	sequences [2]knock.Sequence
}

// At returns the sequence of the window at a time.
func (a alternating) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	w := knock.WindowAt(t, a.period)
	return []knock.Sequence{a.sequences[w.Start.Unix()/int64(a.period/time.Second)&1]}, w, nil
}

// windowRoles are those in time at which a window can stand: alone in force, or with
// the one before, as the even one of the two or the odd one.
var windowRoles = []string{"alone", "even of two", "odd of two"}

// alternate returns a guard in one of the windowRoles now, and for a while, in which
// one sequence opens, and the other belongs to the windows beside.
func alternatingGuard(place string, sequence, other knock.Sequence) rules.Guard {
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
	file := filepath.Join(t.TempDir(), "rules") // which the rules contain
	var text strings.Builder
	o := rules.Options{File: file, From: time.Now(), Until: time.Now().Add(horizon)}
	if err := rules.Format(format(f)).Emit(&text, []rules.Guard{g}, o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	runHeaderLine(t, h, file, "load")
	return file
}
