package rules

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
)

// iptKernel simulates how the kernel judges packets with an iptables text. It knows only
// the matches and options that these rules use.
type iptKernel struct {
	t         testing.TB
	chains    map[string][][]string
	lists     map[string]map[string][]int64 // seconds of the entries, by list and source
	now       int64                         // time in seconds since 1970
	source    string                        // source address of the packets
	rulesSeen int                           // number of rules compared with the last packet
	depth     int                           // most chains in a row for the last packet

	consumes bool // whether the rules may drop knocks
}

// withoutScript returns a text without the shell code in its comments.
func withoutScript(text string) string {
	return regexp.MustCompile(`(?m)^#:.*\n`).ReplaceAllString(text, "")
}

// loadRules returns the kernel with the rules of a guard. It checks that each chain is
// declared before a rule leads to it, and that each declared chain is used.
func loadRules(t testing.TB, g Guard, o Options) *iptKernel {
	t.Helper()
	var text bytes.Buffer
	if err := Format("iptables").Emit(&text, []Guard{g}, o); err != nil {
		t.Fatal(err)
	}
	k := &iptKernel{t: t, chains: map[string][][]string{}, lists: map[string]map[string][]int64{}, source: "somebody"}
	for line := range strings.Lines(text.String()) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0][0] == '#' || words[0] == "-I" || words[0] == "COMMIT" || words[0] == "*mangle":
		case words[0][0] == ':':
			name := words[0][1:]
			if _, twice := k.chains[name]; twice || len(name) > 28 {
				t.Errorf("chain %q is declared twice or longer than 28 bytes", name)
			}
			k.chains[name] = nil
		case words[0] == "-A":
			to := words[len(words)-1]
			if _, declared := k.chains[to]; strings.HasPrefix(to, "PORTKNOCK") && !declared {
				t.Errorf("rule %q comes before chain %s, so a load in parts would fail", line, to)
			}
			k.chains[words[1]] = append(k.chains[words[1]], words[2:])
		default:
			t.Fatalf("unexpected line %q", line)
		}
	}
	used := map[string]bool{"PORTKNOCK": true, "PORTKNOCKIN": true}
	for _, rules := range k.chains {
		for _, r := range rules {
			if to := r[len(r)-1]; strings.HasPrefix(to, "PORTKNOCK") {
				used[to] = true
			}
		}
	}
	if declared := slices.Sorted(maps.Keys(k.chains)); !slices.Equal(declared, slices.Sorted(maps.Keys(used))) {
		t.Errorf("declared chains and used chains differ: declared %q, used %v", declared, used)
	}
	return k
}

// passes judges a packet and reports whether no rule drops it.
func (k *iptKernel) passes(s knock.Step) bool {
	k.rulesSeen, k.depth = 0, 0
	return k.chain("PORTKNOCK", s, 1) != "DROP"
}

// chain judges a packet with a chain. It returns DROP, RETURN, or "" at the end.
func (k *iptKernel) chain(name string, s knock.Step, depth int) string {
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

// rule reports whether a rule matches a packet. It also returns the rule's last option
// (-j, -g or "") and its target.
func (k *iptKernel) rule(words []string, s knock.Step) (then, to string, ok bool) {
	for i := 0; i < len(words); i++ {
		word, arg := words[i], ""
		if word != "--syn" && word != "!" {
			i++
			arg = words[i]
		}
		fits := true
		switch word {
		case "-i", "--ctstate", "!":
			return "", "", false // all packets here are new, local SYNs that do not come from lo
		case "-p":
			fits = arg == s.Transport.String()
		case "--syn", "--dst-type":
		case "--tcp-flags": // all TCP packets here are SYNs
			i++
			fits = arg == "RST,ACK" && words[i] == "NONE"
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
			n := slices.IndexFunc(words[i:], func(word string) bool { return word == "-m" || word == "-j" || word == "-g" })
			if n < 0 {
				n = len(words) - i
			}
			fits = k.recent(arg, words[i+1:i+n])
			i += n - 1
		case "-m":
		case "--comment":
			for !strings.HasSuffix(words[i], `"`) {
				i++
			}
		case "-j", "-g":
			return word, arg, true
		default:
			k.t.Fatalf("unknown option %q in rule %q", word, words)
		}
		if !fits {
			return "", "", false
		}
	}
	return "", "", true
}

// recent acts on a list, and reports whether the match fits, as the kernel's xt_recent does.
func (k *iptKernel) recent(name string, options []string) bool {
	list := k.lists[name]
	if list == nil {
		list = map[string][]int64{}
		k.lists[name] = list
	}
	not := options[0] == "!"
	if not {
		options = options[1:]
	}
	action, seconds, hits := options[0], int64(1<<40), 1
	for option := range slices.Chunk(options[1:], 2) {
		switch option[0] {
		case "--seconds":
			seconds = int64(k.number(option[1]))
		case "--hitcount":
			hits = k.number(option[1])
		default:
			k.t.Fatalf("unknown option %q", option)
		}
	}
	stamps, listed := list[k.source]
	n := 0
	for _, stamp := range stamps {
		if k.now-stamp <= seconds {
			n++
		}
	}
	fits := not
	switch {
	case action == "--set":
		list[k.source] = append(stamps, k.now)
		return true
	case !listed:
	case action == "--remove":
		delete(list, k.source)
		return true
	case action == "--rcheck" || action == "--update":
		fits = n >= hits != not
		if action == "--update" && fits {
			list[k.source] = append(stamps, k.now)
		}
	default:
		k.t.Fatalf("unknown option %q", action)
	}
	return fits
}

func (k *iptKernel) number(word string) int {
	n, err := strconv.Atoi(word)
	if err != nil {
		k.t.Fatal(err)
	}
	return n
}

func (k *iptKernel) time(word string) int64 {
	at, err := time.Parse("2006-01-02T15:04:05", word)
	if err != nil {
		k.t.Fatal(err)
	}
	return at.Unix()
}

// opens reports whether knocks from a new source open port 22 to that source.
func (k *iptKernel) opens(knocks ...knock.Step) bool {
	k.source += "'"
	return k.opensSameSource(knocks...)
}

// opensSameSource is like opens, but continues with the source of earlier knocks.
func (k *iptKernel) opensSameSource(knocks ...knock.Step) bool {
	for _, s := range knocks {
		if !k.passes(s) && !k.consumes {
			k.t.Errorf("the rules drop knock %v", s)
		}
	}
	return k.passes(knock.Step{Port: 22})
}

// midnight begins a window of even number if windows last an hour.
var midnight = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

// rotation is a schedule that uses its sequences in turn. The window at midnight has
// the first sequence.
type rotation struct {
	period    time.Duration
	sequences []knock.Sequence
}

func (s rotation) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	w := knock.WindowAt(t, s.period)
	n := int(w.Start.Sub(midnight)/s.period) % len(s.sequences)
	return []knock.Sequence{s.sequences[(n+len(s.sequences))%len(s.sequences)]}, w, nil
}

// mustRotation returns a guard with a rotation. Its KnockPorts are UDP 20000-29999.
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

// drawn returns a guard whose sequences are drawn from a range of UDP ports.
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

// windowsOf returns the windows in the rules of a guard.
func windowsOf(t testing.TB, g Guard, o Options) []window {
	t.Helper()
	checked := guard{Guard: g}
	if err := checked.collectWindows(o, format{windows: 1000, clock: true}); err != nil {
		t.Fatal(err)
	}
	return checked.Windows
}

// At each second, a window's sequence opens exactly if the window, extended by Skew,
// contains the second.
func TestIptablesOpensOnlyCurrentWindows(t *testing.T) {
	for name, tt := range map[string]struct {
		period, skew time.Duration
		from, long   time.Duration // start after midnight, and how long the rules are valid
	}{
		"one day":                     {time.Hour, 2 * time.Minute, 30 * time.Minute, 24 * time.Hour},
		"start in an odd window":      {time.Hour, 2 * time.Minute, 90 * time.Minute, 24 * time.Hour},
		"start at a boundary":         {time.Hour, 2 * time.Minute, time.Hour, 5 * time.Hour},
		"no skew":                     {time.Minute, 0, 0, 20 * time.Minute},
		"one second without overlap":  {5 * time.Second, 2 * time.Second, 0, 2 * time.Minute},
		"two seconds without overlap": {6 * time.Second, 2 * time.Second, 0, 2 * time.Minute},
		"windows of one second":       {time.Second, 0, 0, time.Minute},
		"one window":                  {time.Hour, 0, time.Minute, time.Minute},
		"most windows of a file":      {time.Hour, 2 * time.Minute, time.Minute, 30 * 24 * time.Hour},
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
					continue // the test then takes about a second
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
							t.Errorf("sequence of window %d, second %d of another window: opens %v, want %v", n, second-w.startSecond(0), got, want)
						}
					}
					k.passes(knock.Step{Transport: knock.UDP, Port: 20000})
					maxDepth, maxRules = max(maxDepth, k.depth), max(maxRules, k.rulesSeen)
				}
			}
			// nftables allows 16 chains in a row.
			if maxDepth > 10 || maxRules > 75 {
				t.Errorf("a scanner's packet passes %d chains and %d rules, want at most 10 and 75", maxDepth, maxRules)
			}
			t.Logf("%d windows: %d chains, at most %d in a row, at most %d rules for a scanner's packet",
				len(windows), len(k.chains), maxDepth, maxRules)
		})
	}
}

// Around a boundary, both windows open, one after the other and from one address.
func TestIptablesBothWindowsOpenAroundBoundary(t *testing.T) {
	g := drawn(t, 10*time.Second, 4*time.Second, 20000, 20011)
	o := Options{From: midnight, Until: midnight.Add(3 * time.Minute), Force: true}
	k := loadRules(t, g, o)
	windows := windowsOf(t, g, o)
	for i := range windows[1:] {
		a, b := windows[i], windows[i+1]
		k.now = b.startSecond(g.Skew) - 1
		k.opens(b.Steps[0])
		k.now++
		if k.opensSameSource(b.Steps[1:]...) {
			t.Fatalf("window %d opens although the first knock came one second too early", i+1)
		}
		for k.now = b.startSecond(g.Skew); k.now < a.endSecond(g.Skew); k.now++ {
			for _, w := range [][]knock.Step{a.Steps, b.Steps} {
				for n := range w {
					if k.opens(w[:n]...) {
						t.Fatalf("only %d knocks of window %d or the next one open at second %d", n, i, k.now)
					}
					for _, other := range [][]knock.Step{a.Steps, b.Steps} {
						if !k.opensSameSource(other...) {
							t.Fatalf("%d knocks of window %d or the next one, and then all of one: closed at second %d", n, i, k.now)
						}
						k.opens(w[:n]...)
					}
				}
			}
		}
	}
}

// Around a boundary, a packet that is a knock of both windows counts in both, also if the
// rules drop it.
func TestIptablesSharedKnockCountsInBothWindows(t *testing.T) {
	g := mustRotation(t, "vps", time.Hour, 10*time.Minute, "20001/udp 20003/udp 20009/udp", "20003/udp 20001/udp 20007/udp")
	udp := func(port uint16) knock.Step { return knock.Step{Transport: knock.UDP, Port: port} }
	for _, consume := range []bool{false, true} {
		k := loadRules(t, g, Options{From: midnight, Until: midnight.Add(5 * time.Hour), Consume: consume})
		k.now, k.consumes = midnight.Add(2*time.Hour).Unix(), consume
		if !k.opens(udp(20003), udp(20001), udp(20003), udp(20007)) || !k.opens(udp(20001), udp(20003), udp(20001), udp(20009)) {
			t.Errorf("with Consume %v, a knock of both windows counts in one of them only", consume)
		}
		if k.passes(udp(20003)) == consume || !k.passes(udp(20005)) {
			t.Errorf("with Consume %v, the rules drop the wrong packets", consume)
		}
	}
}

// No later window uses the lists of a window while an address may still be in them.
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
				t.Errorf("four knocks of window %d and the last knock of window %d open the port", i, n)
			}
		}
	}
}

// Sequences of any shape open the port, with knocks doubled or not. Static sequences and
// sequences that change behave alike.
func TestIptablesSequenceOfAnyShapeOpens(t *testing.T) {
	udp := func(port uint16) knock.Step { return knock.Step{Transport: knock.UDP, Port: port} }
	a, b, c, d := udp(20001), udp(20005), udp(20009), udp(20015)
	for _, seq := range []knock.Sequence{
		{a, b, c, d}, {a, a, b}, {a, b, a}, {a, b, b}, {a, b, a, c}, {a, b, c, b, d},
		{a, a, a, b}, {a, b, a, b, a}, {b, a, a, c, a}, {a, b, c, c},
	} {
		for _, kind := range []string{"static", "one window", "two windows", "consumed"} {
			t.Run(kind+"/"+seq.String(), func(t *testing.T) {
				g := mustRotation(t, "vps", time.Hour, 10*time.Minute, seq.String())
				o := Options{From: midnight, Until: midnight.Add(5 * time.Hour), Force: true}
				start := midnight.Add(150 * time.Minute).Unix()
				switch kind {
				case "static":
					g.Schedule, g.Skew = seq, 0
				case "two windows":
					start = midnight.Add(120 * time.Minute).Unix()
				case "consumed":
					o.Consume = true
				}
				k := loadRules(t, g, o)
				k.now, k.consumes = start, o.Consume
				if !k.opens(seq...) {
					t.Error("the sequence does not open")
				}
				var doubled []knock.Step
				for i, s := range seq {
					doubled = append(doubled, s, s)
					rest := append(slices.Clone(seq[:i+1]), seq[i:]...)
					if !k.opens(rest...) {
						t.Errorf("with knock %d doubled the sequence does not open", i+1)
					}
					if k.opens(seq[:i]...) {
						t.Errorf("only %d knocks open", i)
					}
					// The client stops after some knocks, and then sends the whole sequence
					// ten times.
					k.now = start
					k.opens(seq[:i]...)
					for range 10 {
						k.now += 3
						for list := range k.lists { // the kernel forgets admitted addresses
							if strings.HasSuffix(list, "_open") {
								delete(k.lists[list], k.source)
							}
						}
						if !k.opensSameSource(seq...) {
							t.Errorf("%d knocks, and %d s later the whole sequence: does not open", i, k.now-start)
						}
					}
					k.now = start
					// The next knock comes too late.
					k.opens(seq[:i]...)
					k.now += 6
					if i > 0 && k.opensSameSource(seq[i:]...) {
						t.Errorf("with a pause of 6 s after knock %d the sequence still opens", i)
					}
					k.now = start
					stray := slices.Insert(slices.Clone(seq), i, knock.Step{Transport: knock.UDP, Port: 20003})
					if i > 0 && k.opens(stray...) {
						t.Errorf("with a wrong knock after knock %d the sequence still opens", i)
					}
					for _, harmless := range []knock.Step{{Port: 20003}, udp(19999), udp(443), {Port: 80}} {
						stray := slices.Insert(slices.Clone(seq), i, harmless)
						if !k.opens(stray...) {
							t.Errorf("with a packet to %v after knock %d the sequence does not open", harmless, i)
						}
					}
				}
				if !k.opens(doubled...) {
					t.Error("with every knock doubled the sequence does not open")
				}
				for _, order := range [][]knock.Step{{a, b, c, d}, {d, c, b, a}} {
					if knock.Sequence(order).String() != seq.String() && k.opens(order...) {
						t.Errorf("the knocks open in another order: %v", order)
					}
				}
			})
		}
	}
}

// A client that begins anew has KnockTimeout between its knocks again, also if an earlier
// attempt got further. A copy of the first knock that comes late does no harm.
func TestIptablesFirstKnockBeginsAnew(t *testing.T) {
	k := loadRules(t, mustGuard(t, "vps", "7001 9000 8000", "22"), Options{})
	a, b, c := knock.Step{Port: 7001}, knock.Step{Port: 9000}, knock.Step{Port: 8000}
	k.opens(a, b)
	k.now += 4
	k.opensSameSource(a)
	k.now += 4
	k.opensSameSource(b)
	k.now += 4
	if !k.opensSameSource(c) {
		t.Error("a second attempt with pauses of 4 s does not open")
	}
	k.opens(a, b)
	if k.now += 2; !k.opensSameSource(a, c) {
		t.Error("a copy of the first knock 2 s later takes back the second knock")
	}
}

// After the last window the port is closed to everybody, or with OpenAtEnd open to
// everybody.
func TestIptablesAfterLastWindow(t *testing.T) {
	for _, open := range []bool{false, true} {
		g := drawn(t, time.Hour, 2*time.Minute, 20000, 29999)
		k := loadRules(t, g, Options{From: midnight, Until: midnight.Add(5 * time.Hour), OpenAtEnd: open})
		end := midnight.Add(5 * time.Hour).Unix()
		for second, want := range map[int64]bool{end - 1: false, end: open, end + 1e8: open} {
			if k.now = second; k.opens() != want {
				t.Errorf("%d s after the end: port open %v, want %v", second-end, !want, want)
			}
		}
	}
}

// A large file has small parts, with a mark between two. A small file does not have the
// mark.
func TestIptablesSplitsLargeFile(t *testing.T) {
	emit := func(g Guard) string {
		var text bytes.Buffer
		if err := Format("iptables").Emit(&text, []Guard{g}, Options{From: midnight, Until: midnight.Add(100 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		return withoutScript(text.String())
	}
	parts := strings.Split(emit(drawn(t, time.Hour, 2*time.Minute, 20000, 29999)), "\n# part\n")
	for _, part := range parts {
		if n := strings.Count(part, "\n-A "); n > 200 || len(parts) < 4 {
			t.Errorf("%d parts, one with %d rules; want at least 4 parts of at most 200 rules", len(parts), n)
		}
	}
	for _, part := range parts[:len(parts)-1] {
		if strings.Contains(part, ":PORTKNOCK -") || strings.Contains(part, "PREROUTING -j PORTKNOCK\n-A") {
			t.Errorf("the guard comes before the last part:\n%s", part)
		}
	}
	text := emit(mustGuard(t, "part", "7001 9000 8000", "22"))
	if strings.Contains(text, "\n# part\n") || strings.Contains(text, "# parts:") {
		t.Errorf("a small file has parts:\n%s", text)
	}
}

// A part has only the chains, lists and labels of its own profile, and rules that all
// parts share. The text of several profiles has the rules of all parts.
func TestIptablesPartHasOnlyItsProfile(t *testing.T) {
	guards, err := checkAll([]Guard{mustGuard(t, "vps", "7001 9000 8000", "22"), tokenGuard(t, "web")},
		Options{From: noon, Until: noon.Add(time.Hour)}, format{windows: 10, clock: true, tokens: true})
	if err != nil {
		t.Fatal(err)
	}
	r := iptRules{guards, Options{DropPolicy: true}}
	all := strings.Split(r.text(), "\n")
	for i, g := range guards {
		part, other := r.part(g), guards[1-i].ID
		for _, name := range []string{"PORTKNOCK-" + other, "portknock_" + other, ":" + other} {
			if strings.Contains(part, name) {
				t.Errorf("the part of %s contains %q:\n%s", g.ID, name, part)
			}
		}
		for line := range strings.Lines(part) {
			if line = strings.TrimSuffix(line, "\n"); line != "" && !slices.Contains(all, line) {
				t.Errorf("the text of both profiles lacks this line of %s: %s", g.ID, line)
			}
		}
		label := regexp.MustCompile(`-A PORTKNOCK(?:IN)? .*--comment "[0-9]:`)
		for _, table := range strings.Split(part, "*filter") {
			n := strings.Count(table, "-A PORTKNOCK ") + strings.Count(table, "-A PORTKNOCKIN ")
			if labels := len(label.FindAllString(table, -1)); n == 0 || n != labels {
				t.Errorf("%d rules of the root chain of %s, with %d labels", n, g.ID, labels)
			}
		}
	}
}

// The shell function fw_close writes the same rules for all parts as this package.
func TestIptablesScriptHasSharedRules(t *testing.T) {
	lines := slices.Concat(iptRules{}.rootChain().lines, iptRules{}.inputChain().lines)
	shared := 0
	for _, line := range lines {
		if strings.HasPrefix(line, "-A ") {
			shared++
			if !strings.Contains(shellFile("iptables.sh"), "'"+line+"'") {
				t.Errorf("sh/iptables.sh lacks the rule %s", line)
			}
		}
	}
	if shared != 6 {
		t.Errorf("%d shared rules, want 6: %q", shared, lines)
	}
}

// The lists of spent tokens have the name of the key, so that they stay when the name of
// the profile changes.
func TestIptablesSpentListsBelongToKey(t *testing.T) {
	lists := func(g Guard) []string {
		var text bytes.Buffer
		if err := Format("iptables").Emit(&text, []Guard{g}, Options{From: noon, Until: noon.Add(5 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`--name portspent_\S+`).FindAllString(withoutScript(text.String()), -1)
		slices.Sort(names)
		return slices.Compact(names)
	}
	a := tokenGuard(t, "vps")
	renamed, longer := a, a
	renamed.Name = "renamed"
	token := a.Schedule.(knock.Token)
	token.Period *= 2
	longer.Schedule = token
	if got := lists(renamed); !slices.Equal(got, lists(a)) || len(got) != 2*iptTokenListCycle*token.Tokens {
		t.Errorf("the lists of a renamed profile are %q, before they were %q", got, lists(a))
	}
	for _, list := range lists(longer) {
		if slices.Contains(lists(a), list) {
			t.Errorf("profiles with different tokens share the list %s", list)
		}
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
