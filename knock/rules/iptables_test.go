package rules

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
)

// kernel judges packets by an iptables text, as far as ours need it.
type iptSimulator struct {
	t         testing.TB
	chains    map[string][][]string
	lists     map[string]map[string][]int64 // stamps of each source
	now       int64
	source    string // the source of the packets
	rulesSeen int    // looked at for the last packet
	depth     int    // chains it went through
}

func loadRules(t testing.TB, g Guard, o Options) *iptSimulator {
	t.Helper()
	var text bytes.Buffer
	if err := Format("iptables").Emit(&text, []Guard{g}, o); err != nil {
		t.Fatal(err)
	}
	k := &iptSimulator{t: t, chains: map[string][][]string{}, lists: map[string]map[string][]int64{}, source: "somebody"}
	for line := range strings.Lines(text.String()) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0][0] == '#' || words[0] == "-I" || words[0] == "COMMIT" || words[0] == "*mangle":
		case words[0][0] == ':':
			name := words[0][1:]
			if _, twice := k.chains[name]; twice || len(name) > 28 {
				t.Errorf("a chain %q", name)
			}
			k.chains[name] = nil
		case words[0] == "-A":
			to := words[len(words)-1]
			if _, declared := k.chains[to]; strings.HasPrefix(to, "PORTKNOCK") && !declared {
				t.Errorf("%q comes before %s, which a load in parts does not know yet", line, to)
			}
			k.chains[words[1]] = append(k.chains[words[1]], words[2:])
		default:
			t.Fatalf("a line %q", line)
		}
	}
	used := map[string]bool{"PORTKNOCK": true}
	for _, rules := range k.chains {
		for _, r := range rules {
			if to := r[len(r)-1]; strings.HasPrefix(to, "PORTKNOCK") {
				used[to] = true
			}
		}
	}
	if declared := slices.Sorted(maps.Keys(k.chains)); !slices.Equal(declared, slices.Sorted(maps.Keys(used))) {
		t.Errorf("chains declared and not used, or the other way round: %q, %v", declared, used)
	}
	return k
}

// passes judges a packet, and reports whether it is not dropped.
func (k *iptSimulator) passes(s knock.Step) bool {
	k.rulesSeen, k.depth = 0, 0
	return k.chain("PORTKNOCK", s, 1) != "DROP"
}

func (k *iptSimulator) chain(name string, s knock.Step, depth int) string {
	k.depth = max(k.depth, depth)
	for _, rule := range k.chains[name] {
		k.rulesSeen++
		then, to, ok := k.rule(rule, s)
		switch {
		case !ok || then == "":
		case then == "-j" && (to == "RETURN" || to == "DROP"):
			return to
		case then == "-g":
			return k.chain(to, s, depth+1)
		default:
			if k.chain(to, s, depth+1) == "DROP" {
				return "DROP"
			}
		}
	}
	return ""
}

// rule reports whether a packet matches, and what then.
func (k *iptSimulator) rule(words []string, s knock.Step) (then, to string, ok bool) {
	list, seconds, hits := "", int64(0), 1
	for i := 0; i < len(words); i++ {
		word, arg := words[i], ""
		if word != "--syn" && word != "!" && word != "--rcheck" && word != "--set" && word != "--remove" {
			i++
			arg = words[i]
		}
		fits := true
		switch word {
		case "-m":
			list, seconds, hits = "", 0, 1
		case "-i", "--ctstate", "!":
			return "", "", false // not lo, new, a SYN, local
		case "-p":
			fits = arg == s.Transport.String()
		case "--syn", "--dst-type":
		case "--dport":
			first, last, isRange := strings.Cut(arg, ":")
			if !isRange {
				last = first
			}
			fits = int(s.Port) >= k.number(first) && int(s.Port) <= k.number(last)
		case "--datestart":
			fits = k.now >= k.time(arg)
		case "--datestop":
			fits = k.now <= k.time(arg)
		case "--name":
			list = arg
			if k.lists[list] == nil {
				k.lists[list] = map[string][]int64{}
			}
			// What the rule has besides stands behind.
			if i+3 < len(words) && words[i+2] == "--seconds" {
				seconds = int64(k.number(words[i+3]))
			}
			if i+5 < len(words) && words[i+4] == "--hitcount" {
				hits = k.number(words[i+5])
			}
		case "--seconds", "--hitcount":
		case "--rcheck":
			n := 0
			for _, stamp := range k.lists[list][k.source] {
				if k.now-stamp <= seconds {
					n++
				}
			}
			fits = n >= hits
		case "--set":
			k.lists[list][k.source] = append(k.lists[list][k.source], k.now)
		case "--remove":
			_, fits = k.lists[list][k.source]
			delete(k.lists[list], k.source)
		case "-j", "-g":
			return word, arg, true
		default:
			k.t.Fatalf("%q in %q", word, words)
		}
		if !fits {
			return "", "", false
		}
	}
	return "", "", true
}

func (k *iptSimulator) number(word string) int {
	n, err := strconv.Atoi(word)
	if err != nil {
		k.t.Fatal(err)
	}
	return n
}

func (k *iptSimulator) time(word string) int64 {
	at, err := time.Parse("2006-01-02T15:04:05", word)
	if err != nil {
		k.t.Fatal(err)
	}
	return at.Unix()
}

// opens reports whether knocks of a source that is new open port 22 to it.
func (k *iptSimulator) opens(knocks ...knock.Step) bool {
	k.source += "'"
	return k.opensSameSource(knocks...)
}

// opensFurther is opens for the same source.
func (k *iptSimulator) opensSameSource(knocks ...knock.Step) bool {
	for _, s := range knocks {
		if !k.passes(s) {
			k.t.Errorf("knock %v dropped", s)
		}
	}
	return k.passes(knock.Step{Port: 22})
}

// midnight begins an even hour; an odd one follows.
var midnight = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

// turns is a schedule whose sequences take turns, from midnight on.
type rotation struct {
	period    time.Duration
	sequences []knock.Sequence
}

func (s rotation) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	w := knock.WindowAt(t, s.period)
	n := int(w.Start.Sub(midnight)/s.period) % len(s.sequences)
	return []knock.Sequence{s.sequences[(n+len(s.sequences))%len(s.sequences)]}, w, nil
}

// mustTurns returns a guard of knocks to UDP ports in 20000-29999 alone.
func mustRotation(t testing.TB, name string, period, skew time.Duration, sequences ...string) Guard {
	t.Helper()
	g := mustGuard(t, name, "1 9", "22/tcp")
	s := rotation{period: period}
	for _, text := range sequences {
		seq, err := knock.ParseSequence(text)
		if err != nil {
			t.Fatal(err)
		}
		s.sequences = append(s.sequences, seq)
	}
	g.Schedule, g.Skew = s, skew
	g.KnockPorts = []knock.PortRange{{Transport: knock.UDP, First: 20000, Last: 29999}}
	return g
}

// drawn returns a guard whose sequences are drawn from a range.
func drawn(t testing.TB, period, skew time.Duration, first, last uint16) Guard {
	t.Helper()
	g := mustGuard(t, "a-name-that-is-long", "1 9", "22/tcp")
	r := knock.Rotating{
		Key:    knock.KeyFrom([]byte("0123456789abcdef0123456789abcdef")),
		Ports:  knock.PortRange{Transport: knock.UDP, First: first, Last: last},
		Knocks: 5,
		Period: period,
	}
	g.Schedule, g.Skew, g.KnockPorts = r, skew, []knock.PortRange{r.Ports}
	return g
}

// windowsOf returns the windows that the rules of a guard carry.
func windowsOf(t testing.TB, g Guard, o Options) []window {
	t.Helper()
	checked := guard{Guard: g}
	if err := checked.collectWindows(o, format{windows: 1000, clock: true}); err != nil {
		t.Fatal(err)
	}
	return checked.Windows
}

// TestIptablesWindows: at each second, those windows open that it belongs to,
// and no others.
func TestIptablesOpensOnlyCurrentWindows(t *testing.T) {
	for name, tt := range map[string]struct {
		period, skew time.Duration
		from, long   time.Duration // after midnight
	}{
		"day":               {time.Hour, 2 * time.Minute, 30 * time.Minute, 24 * time.Hour},
		"from an odd one":   {time.Hour, 2 * time.Minute, 90 * time.Minute, 24 * time.Hour},
		"within skew":       {time.Hour, 2 * time.Minute, time.Hour, 5 * time.Hour},
		"no skew":           {time.Minute, 0, 0, 20 * time.Minute},
		"never alone":       {5 * time.Second, 2 * time.Second, 0, 2 * time.Minute},
		"one second alone":  {6 * time.Second, 2 * time.Second, 0, 2 * time.Minute},
		"one second long":   {time.Second, 0, 0, time.Minute},
		"one window":        {time.Hour, 0, time.Minute, time.Minute},
		"as many as may be": {time.Hour, 2 * time.Minute, time.Minute, 30 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := drawn(t, tt.period, tt.skew, 20000, 29999)
			from := midnight.Add(tt.from)
			o := Options{From: from, Until: from.Add(tt.long)}
			k := loadRules(t, g, o)
			windows := windowsOf(t, g, o)
			maxDepth, maxRules := 0, 0
			for i, w := range windows {
				if len(windows) > 100 && i%7 > 0 && i < len(windows)-7 {
					continue // so that it takes a second
				}
				seconds := map[int64]bool{}
				for _, edge := range []int64{w.startSecond(0), w.endSecond(0), w.startSecond(g.Skew), w.endSecond(g.Skew), w.startSecond(-g.Skew), w.endSecond(-g.Skew)} {
					seconds[edge-1], seconds[edge], seconds[edge+1] = true, true, true
				}
				for second := range seconds {
					k.now = second
					for n := max(0, i-2); n < min(len(windows), i+3); n++ {
						other := windows[n]
						want := other.startSecond(g.Skew) <= second && second < other.endSecond(g.Skew)
						if got := k.opens(other.Steps...); got != want {
							t.Errorf("window %d opens at second %d: %v, want %v", n, second-w.startSecond(0), got, want)
						}
					}
					k.passes(knock.Step{Transport: knock.UDP, Port: 20000})
					maxDepth, maxRules = max(maxDepth, k.depth), max(maxRules, k.rulesSeen)
				}
			}
			// nftables allows 16 chains in a row.
			if maxDepth > 10 || maxRules > 75 {
				t.Errorf("a stranger's packet passes %d chains and %d rules", maxDepth, maxRules)
			}
			t.Logf("%d windows: %d chains, at most %d in a row, at most %d rules for a stranger's packet",
				len(windows), len(k.chains), maxDepth, maxRules)
		})
	}
}

// TestIptablesFewPorts: ports that two windows share lead on in both, so that
// who uses one is not in the way of who uses the other.
func TestIptablesSharedPortsCountInBothWindows(t *testing.T) {
	g := drawn(t, 10*time.Second, 4*time.Second, 20000, 20011)
	o := Options{From: midnight, Until: midnight.Add(30 * time.Minute), Force: true}
	k := loadRules(t, g, o)
	windows := windowsOf(t, g, o)
	for i := range windows[1:] {
		a, b := windows[i], windows[i+1]
		k.now = b.startSecond(g.Skew) - 1
		k.opens(b.Steps[0])
		k.now++
		if k.opensSameSource(b.Steps[1:]...) {
			t.Fatalf("window %d opens to who has begun too early", i+1)
		}
		for k.now = b.startSecond(g.Skew); k.now < a.endSecond(g.Skew); k.now++ {
			if !k.opens(a.Steps...) || !k.opens(b.Steps...) {
				t.Fatalf("windows %d and %d do not both open at %d", i, i+1, k.now)
			}
			for _, first := range [][]knock.Step{a.Steps, b.Steps} {
				for n := 1; n < len(first); n++ {
					var mixed []knock.Step // every knock at least is one of the two's
					for j := range first {
						mixed = append(mixed, a.Steps[j], b.Steps[j])
					}
					if !k.opens(mixed...) {
						t.Fatalf("windows %d and %d at the same time do not open at %d", i, i+1, k.now)
					}
					if k.opens(first[:n]...) {
						t.Fatalf("%d knocks of window %d open at %d", n, i, k.now)
					}
				}
			}
		}
	}
}

// TestIptablesNextButOne: the lists of a window are not yet those of another
// while a knocker may still be in them.
func TestIptablesKnocksDoNotCarryIntoLaterWindow(t *testing.T) {
	g := drawn(t, 2*time.Second, 0, 20000, 29999)
	o := Options{From: midnight, Until: midnight.Add(time.Minute)}
	k := loadRules(t, g, o)
	windows := windowsOf(t, g, o)
	for i := range windows[3:] {
		for n := i + 1; n <= i+3; n++ {
			k.now = windows[i].endSecond(0) - 1
			k.opens(windows[i].Steps[:4]...)
			k.now = windows[n].startSecond(0)
			if k.opensSameSource(windows[n].Steps[4]) {
				t.Errorf("four knocks of window %d and the last of window %d open", i, n)
			}
		}
	}
}

// TestIptablesSequences: sequences of any shape open, doubled or not, alike
// where they change and where they do not.
func TestIptablesSequenceOfAnyShapeOpens(t *testing.T) {
	udp := func(port uint16) knock.Step { return knock.Step{Transport: knock.UDP, Port: port} }
	a, b, c, d := udp(20001), udp(20005), udp(20009), udp(20015)
	for _, seq := range []knock.Sequence{
		{a, b, c, d}, {a, a, b}, {a, b, a}, {a, b, b}, {a, b, a, c}, {a, b, c, b, d},
		{a, a, a, b}, {a, b, a, b, a}, {b, a, a, c, a}, {a, b, c, c},
	} {
		for _, kind := range []string{"static", "alone", "two", "consumed"} {
			t.Run(kind+"/"+seq.String(), func(t *testing.T) {
				g := mustRotation(t, "vps", time.Hour, 10*time.Minute, seq.String())
				o := Options{From: midnight, Until: midnight.Add(5 * time.Hour), Force: true}
				start := midnight.Add(150 * time.Minute).Unix()
				switch kind {
				case "static":
					g.Schedule, g.Skew = seq, 0
				case "two":
					start = midnight.Add(120 * time.Minute).Unix()
				}
				k := loadRules(t, g, o)
				k.now = start
				if !k.opens(seq...) {
					t.Error("does not open")
				}
				var doubled []knock.Step
				for i, s := range seq {
					doubled = append(doubled, s, s)
					rest := append(slices.Clone(seq[:i+1]), seq[i:]...)
					if !k.opens(rest...) {
						t.Errorf("with knock %d doubled it does not open", i+1)
					}
					if k.opens(seq[:i]...) {
						t.Errorf("%d knocks open", i)
					}
					// After an attempt that broke off, a whole one; and one more, later.
					k.now = start
					k.opens(seq[:i]...)
					for range 10 {
						k.now += 3
						for list := range k.lists { // as if nobody had got in yet
							if strings.HasSuffix(list, "_open") {
								delete(k.lists[list], k.source)
							}
						}
						if !k.opensSameSource(seq...) {
							t.Errorf("%d knocks, and %d s later all: closed", i, k.now-start)
						}
					}
					k.now = start
					// A knock too late.
					k.opens(seq[:i]...)
					k.now += 6
					if i > 0 && k.opensSameSource(seq[i:]...) {
						t.Errorf("a pause of 6 s after knock %d does no harm", i)
					}
					k.now = start
					stray := slices.Insert(slices.Clone(seq), i, knock.Step{Transport: knock.UDP, Port: 20003})
					if i > 0 && k.opens(stray...) {
						t.Errorf("a wrong knock after knock %d does no harm", i)
					}
					for _, harmless := range []knock.Step{{Port: 20003}, udp(19999), udp(443), {Port: 80}} {
						stray := slices.Insert(slices.Clone(seq), i, harmless)
						if !k.opens(stray...) {
							t.Errorf("%v after knock %d does harm", harmless, i)
						}
					}
				}
				if !k.opens(doubled...) {
					t.Error("with every knock doubled it does not open")
				}
				for _, order := range [][]knock.Step{{a, b, c, d}, {d, c, b, a}} {
					if knock.Sequence(order).String() != seq.String() && k.opens(order...) {
						t.Errorf("%v opens", order)
					}
				}
			})
		}
	}
}

// TestIptablesPace: of a flood of first knocks from one address, at most 20 a
// second count.
func TestIptablesLimitsFirstKnocksPerSecond(t *testing.T) {
	g := mustRotation(t, "vps", time.Hour, 10*time.Minute, "20001/udp 20005/udp 20009/udp", "20005/udp 20001/udp 20009/udp")
	k := loadRules(t, g, Options{From: midnight, Until: midnight.Add(5 * time.Hour)})
	k.now = midnight.Add(150 * time.Minute).Unix()
	for range 1000 {
		k.passes(knock.Step{Transport: knock.UDP, Port: 20001})
	}
	for name, list := range k.lists {
		if n := len(list[k.source]); n > 20 {
			t.Errorf("%s has %d stamps", name, n)
		}
	}
}

// TestIptablesAtEnd: after the last window nobody is let in any more, or all.
func TestIptablesAfterLastWindow(t *testing.T) {
	for _, open := range []bool{false, true} {
		g := drawn(t, time.Hour, 2*time.Minute, 20000, 29999)
		k := loadRules(t, g, Options{From: midnight, Until: midnight.Add(5 * time.Hour), OpenAtEnd: open})
		end := midnight.Add(5 * time.Hour).Unix()
		for second, want := range map[int64]bool{end - 1: false, end: open, end + 1e8: open} {
			if k.now = second; k.opens() != want {
				t.Errorf("%d s after the end it is open: %v, want %v", second-end, !want, want)
			}
		}
	}
}

// TestIptablesParts: a large file is in parts that are small, and what they are
// marked by is in no other.
func TestIptablesSplitsLargeFile(t *testing.T) {
	emit := func(g Guard) string {
		var text bytes.Buffer
		if err := Format("iptables").Emit(&text, []Guard{g}, Options{From: midnight, Until: midnight.Add(100 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		return text.String()
	}
	parts := strings.Split(emit(drawn(t, time.Hour, 2*time.Minute, 20000, 29999)), "\n# part\n")
	for _, part := range parts {
		if n := strings.Count(part, "\n-A "); n > 200 || len(parts) < 4 {
			t.Errorf("%d parts, one of %d rules", len(parts), n)
		}
	}
	for _, part := range parts[:len(parts)-1] {
		if strings.Contains(part, ":PORTKNOCK -") || strings.Contains(part, "PREROUTING -j PORTKNOCK\n-A") {
			t.Errorf("the guard comes before the last part:\n%s", part)
		}
	}
	text := emit(mustGuard(t, "part", "7001 9000 8000", "22"))
	if strings.Contains(text, "\n# part\n") || strings.Contains(text, "# parts:") {
		t.Errorf("parts of a small file:\n%s", text)
	}
}

func BenchmarkIptables(b *testing.B) {
	g := drawn(b, time.Hour, 2*time.Minute, 20000, 59999)
	for _, hours := range []int{24, 719} {
		b.Run(fmt.Sprint(hours), func(b *testing.B) {
			for b.Loop() {
				loadRules(b, g, Options{From: midnight, Until: midnight.Add(time.Duration(hours) * time.Hour)})
			}
		})
	}
}
