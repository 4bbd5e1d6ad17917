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

// A test cannot fake the kernel's clock. Instead, tests choose a Period so that the
// present is at the right place of its window.

// windowKey is the key of every schedule in these tests.
const windowKey = "portknock-key-1:aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypzcjt6ri"

// place is a place in a window: its time after the start of the window, and its time
// before the end.
type place struct{ into, left span }

// span is a range of durations. It has no upper limit if below is 0.
type span struct{ least, below time.Duration }

func (s span) contains(d time.Duration) bool { return s.least <= d && (s.below == 0 || d < s.below) }

const second, minute = time.Second, time.Minute

var (
	early  = place{into: span{least: 5 * second, below: 80 * second}, left: span{least: 4 * minute}}
	middle = place{into: span{least: 150 * second}, left: span{least: 150 * second}}
	late   = place{into: span{least: 4 * minute}, left: span{least: minute, below: 100 * second}}
)

// periodWithNowAt returns a period whose current window has the present at this place.
// For a few seconds no such period exists. Then periodWithNowAt waits for the next second.
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
	t.Fatal("no period has the present at this place of its window")
	return 0
}

// loadEnding calls load with a period whose window ends in a few seconds, and returns the
// period and the end of the window. On a machine where load takes longer, it tries again with
// more time.
func loadEnding(t testing.TB, load func(period time.Duration)) (period time.Duration, end time.Time) {
	t.Helper()
	for left := 5 * second; left < 3*minute; left *= 2 {
		period = periodWithNowAt(t, place{into: span{least: 10 * second}, left: span{least: left, below: left + 2*second}})
		end = knock.WindowAt(time.Now(), period).End
		load(period)
		if time.Until(end) > 3*second {
			return period, end
		}
	}
	t.Fatal("on this machine, a load takes minutes")
	return 0, end
}

// newTokenRig is newGuardedRig with Scheme token. The present is in the middle of a
// window.
func newTokenRig(t testing.TB, f lab.Firewall, family lab.Family, more ...string) (*rig, knock.Token) {
	t.Helper()
	settings, s := tokens(t, periodWithNowAt(t, middle), time.Minute)
	return newGuardedRig(t, f, family, append(settings, more...)...), s
}

// sleepInto waits until a window with this start has begun, also by the coarse clock that
// the kernel uses for iptables.
func sleepInto(start time.Time) { time.Sleep(time.Until(start.Add(100 * time.Millisecond))) }

// schedule returns the key of the tests, and the settings for this key, a period and a
// skew.
func schedule(t testing.TB, period, skew time.Duration) (key knock.Key, settings []string) {
	t.Helper()
	key, err := knock.ParseKey(windowKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, []string{keyFileSetting(t), fmt.Sprintf("Period %d", period/time.Second), fmt.Sprintf("Skew %d", skew/time.Second)}
}

// rotating returns the settings of a profile with Scheme rotating, this period and this
// skew. It also returns the schedule of this profile.
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

// sequenceOpens reports whether the guard admits a fresh address that sends a schedule's
// sequence of a time.
func (r *rig) sequenceOpens(t testing.TB, s knock.Schedule, when time.Time) bool {
	t.Helper()
	return r.admits(t, r.freshAddr(), stepsAt(t, s, when)...)
}

// tokens returns the settings of a profile with Scheme token, this period and this skew.
// It also returns the schedule of this profile.
func tokens(t testing.TB, period, skew time.Duration) (settings []string, s knock.Token) {
	t.Helper()
	key, timing := schedule(t, period, skew)
	return append(timing, "Scheme token"), knock.Token{Key: key, Port: 62202, Period: period, Tokens: 8}
}

// stepsAt returns the knocks of a schedule's sequence at a time, or all its tokens.
func stepsAt(t testing.TB, s knock.Schedule, when time.Time) []knock.Step {
	t.Helper()
	seqs, _, err := s.At(when)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(seqs...)
}

// familyTokens returns the tokens of a time that clients of the rig's family send first:
// every other token. iptables accepts only these tokens from that family.
func (r *rig) familyTokens(t testing.TB, s knock.Schedule, when time.Time) (tokens []knock.Step) {
	t.Helper()
	for n, step := range stepsAt(t, s, when) {
		if knock.IsTokenOf(r.family == lab.IPv6, n) {
			tokens = append(tokens, step)
		}
	}
	return tokens
}

// alternating is a schedule of two sequences: one for windows with an even number, the
// other for windows with an odd number.
type alternating struct {
	period    time.Duration
	sequences [2]knock.Sequence
}

// At returns the sequence of the window that contains t.
func (a alternating) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	w := knock.WindowAt(t, a.period)
	return []knock.Sequence{a.sequences[w.Start.Unix()/int64(a.period/time.Second)&1]}, w, nil
}

// windowRoles are the roles that a window can have now: the only valid window, the even
// one of two valid windows, or the odd one of two valid windows.
var windowRoles = []string{"alone", "even of two", "odd of two"}

// alternatingGuard returns a guard with a window that has this role now and for at least 100 s.
// This window has the given sequence. The windows before and after it have the other
// sequence.
func alternatingGuard(role string, sequence, other knock.Sequence) rules.Guard {
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
	if role != "alone" {
		g.Skew = (a.period/2 - time.Second).Truncate(time.Second)
		odd = map[string]int64{"even of two": 0, "odd of two": 1}[role]
	}
	a.sequences[odd], a.sequences[1-odd] = sequence, other
	g.Schedule = a
	return g
}

// loadGuard loads the rules for a guard on a host, and returns their file. Rules with windows
// are valid for two hours.
func loadGuard(t testing.TB, h *lab.Host, f lab.Firewall, g rules.Guard, o rules.Options) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules") // the rules contain this path
	var text strings.Builder
	o.File, o.From, o.Until = file, time.Now(), time.Now().Add(2*time.Hour)
	if err := rules.Format(format(f)).Emit(&text, []rules.Guard{g}, o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	runHeaderLine(t, h, file, "load")
	return file
}
