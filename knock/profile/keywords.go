package profile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
)

// keyword is one line of the documentation's table of settings.
type keyword struct {
	name   string
	list   bool                         // takes several words
	quoted bool                         // of which each may hold blanks, and keeps its quotes
	secret bool                         // must not stand on a command line
	of     group                        // which schemes it is for; 0 if for every scheme
	set    func(*Profile, string) error // reads one value, and checks what can be checked of it alone
	get    func(*Profile) string        // writes it; "" if there is none
	json   func(*Profile) any           // its value in JSON, nil if there is none; without it, what get writes
}

// word returns what get writes, "" if the keyword does not apply.
func (k *keyword) word(p *Profile) string {
	if !schemeNamed(p.Scheme).applies(k) {
		return ""
	}
	return k.get(p)
}

// jsonValue returns the value in JSON, nil if there is none.
func (k *keyword) jsonValue(p *Profile) any {
	switch {
	case !schemeNamed(p.Scheme).applies(k):
	case k.json != nil:
		return k.json(p)
	case k.get(p) != "":
		return k.get(p)
	}
	return nil
}

// keywords is all settings there are, in the order in which they are shown.
var keywords = slices.Concat(commonKeywords, in(ofKey, keyKeywords), in(ofDraw, drawKeywords), in(ofToken, tokenKeywords),
	in(ofClock, clockKeywords), in(ofSPA, spaKeywords))

// in puts keywords into a group.
func in(g group, keywords []keyword) []keyword {
	for i := range keywords {
		keywords[i].of = g
	}
	return keywords
}

var commonKeywords = []keyword{
	{
		name: "HostName",
		set: func(p *Profile, v string) error {
			host, err := expand(v, "h")
			if err != nil {
				return err
			}
			p.HostName = v // expanded once it is known for which host
			return CheckHost(host)
		},
		get:  func(p *Profile) string { return strings.ReplaceAll(p.HostName, "%", "%%") },
		json: func(p *Profile) any { return orNil(p.HostName) },
	},
	number("Port", "a port", 65535, func(p *Profile) *uint16 { return &p.Port }),
	{
		name: "AddressFamily",
		set: func(p *Profile, v string) error {
			p.AddressFamily = strings.ToLower(v)
			switch p.AddressFamily {
			case "any", "inet", "inet6":
				return nil
			}
			return fmt.Errorf("%q is not any, inet or inet6", v)
		},
		get: func(p *Profile) string { return p.AddressFamily },
	},
	{
		name: "BindAddress",
		set: func(p *Profile, v string) error {
			a, err := netip.ParseAddr(v)
			if err != nil {
				return fmt.Errorf("%q is not an IP address", v)
			}
			p.BindAddress = a.Unmap()
			return nil
		},
		get: func(p *Profile) string {
			if !p.BindAddress.IsValid() {
				return ""
			}
			return p.BindAddress.String()
		},
	},
	{
		name: "BindInterface",
		set: func(p *Profile, v string) error {
			if v == "" || len(v) > 255 || strings.ContainsFunc(v, func(r rune) bool { return r == '"' || !unicode.IsPrint(r) }) {
				return fmt.Errorf("%q is not the name of a network interface", v)
			}
			p.BindInterface = v
			return nil
		},
		get: func(p *Profile) string { return p.BindInterface },
	},
	{
		name: "Scheme",
		set: func(p *Profile, v string) error {
			p.Scheme = strings.ToLower(v)
			return checkScheme(p.Scheme)
		},
		get: func(p *Profile) string { return p.Scheme },
	},
	{
		name: "Sequence", list: true, secret: true,
		set: func(p *Profile, v string) (err error) {
			p.Sequence, err = knock.ParseSequence(v)
			return err
		},
		get: func(p *Profile) string { return p.Sequence.String() },
	},
	duration("KnockDelay", 0, 10*time.Second, func(p *Profile) *time.Duration { return &p.KnockDelay }),
	duration("ConnectTimeout", time.Microsecond, time.Hour, func(p *Profile) *time.Duration { return &p.ConnectTimeout }),
	{
		name: "OpenPorts", list: true,
		set: func(p *Profile, v string) (err error) {
			p.OpenPorts, err = knock.ParsePortRanges(v)
			return err
		},
		get:  func(p *Profile) string { return strings.Join(portWords(p.OpenPorts), " ") },
		json: func(p *Profile) any { return portWords(p.OpenPorts) },
	},
	duration("OpenFor", time.Second, 24*time.Hour, func(p *Profile) *time.Duration { return &p.OpenFor }),
	duration("KnockTimeout", time.Second, 5*time.Minute, func(p *Profile) *time.Duration { return &p.KnockTimeout }),
	{
		name: "IgnorePorts", list: true,
		set: func(p *Profile, v string) (err error) {
			if strings.EqualFold(v, "none") {
				p.IgnorePorts = []knock.PortRange{}
				return nil
			}
			p.IgnorePorts, err = knock.ParsePortRanges(v)
			return err
		},
		get: func(p *Profile) string {
			if len(p.IgnorePorts) == 0 {
				return "none"
			}
			return strings.Join(portWords(p.IgnorePorts), " ")
		},
		json: func(p *Profile) any { return portWords(p.IgnorePorts) },
	},
}

// keyKeywords say where a profile's key is.
var keyKeywords = []keyword{
	{
		name: "KeyFile", secret: true,
		set: func(p *Profile, v string) error {
			p.KeyFile = v // made absolute once it is known whether it applies
			return checkPath(v)
		},
		get: func(p *Profile) string { return p.KeyFile },
	},
	{
		name: "KeyCommand", list: true, quoted: true, secret: true,
		set: func(p *Profile, v string) error {
			p.KeyCommand = split(v)
			return checkCommand(p.KeyCommand)
		},
		get:  func(p *Profile) string { return joinWords(p.KeyCommand) },
		json: func(p *Profile) any { return listOrNil(p.KeyCommand) },
	},
	hostKeyKeyword(),
}

// hostKeyKeyword is DeriveHostKey. Schemes that do not follow the clock do not show
// it.
func hostKeyKeyword() keyword {
	k := yesNo("DeriveHostKey", func(p *Profile) *bool { return &p.DeriveHostKey })
	get := k.get
	k.get = func(p *Profile) string {
		if !p.Facts().FollowsClock {
			return ""
		}
		return get(p)
	}
	return k
}

var drawKeywords = []keyword{
	{
		name: "PortRange",
		set: func(p *Profile, v string) error {
			ranges, err := knock.ParsePortRanges(v)
			if err != nil || len(ranges) != 1 || strings.ContainsAny(v, "/:") || !strings.Contains(v, "-") {
				return fmt.Errorf("%q is not a range of ports such as 20000-29999", v)
			}
			p.PortRange.First, p.PortRange.Last = ranges[0].First, ranges[0].Last
			return nil
		},
		get: func(p *Profile) string { return fmt.Sprintf("%d-%d", p.PortRange.First, p.PortRange.Last) },
	},
	{
		name: "Knocks",
		set: func(p *Profile, v string) error {
			n, err := strconv.ParseUint(v, 10, 8)
			if err != nil || n < minKnocks || n > knock.MaxSteps {
				return fmt.Errorf("%q is not a number from %d to %d", v, minKnocks, knock.MaxSteps)
			}
			p.Knocks = int(n)
			return nil
		},
		get:  func(p *Profile) string { return strconv.Itoa(p.Knocks) },
		json: func(p *Profile) any { return p.Knocks },
	},
	{
		name: "Protocol",
		set: func(p *Profile, v string) (err error) {
			p.PortRange.Transport, err = knock.ParseTransport(v)
			return err
		},
		get: func(p *Profile) string { return p.PortRange.Transport.String() },
	},
}

var tokenKeywords = []keyword{
	number("TokenPort", "a port", 65535, func(p *Profile) *uint16 { return &p.TokenPort }),
	number("TokensPerWindow", "a number", knock.MaxTokens, func(p *Profile) *int { return &p.TokensPerWindow }),
}

var clockKeywords = []keyword{
	wholeSeconds(duration("Period", time.Second, 366*24*time.Hour, func(p *Profile) *time.Duration { return &p.Period })),
	wholeSeconds(duration("Skew", 0, 183*24*time.Hour, func(p *Profile) *time.Duration { return &p.Skew })),
	value("ValidUntil", parseTime, func(p *Profile) *time.Time { return &p.ValidUntil }, timeWord),
}

// parseTime reads a moment, as 2027-11-21T07:00:00Z, or a day, of which it
// returns the beginning in UTC. It is one that the same format can write.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t, err = time.Parse(time.DateOnly, s)
	}
	if err != nil || t.Nanosecond() != 0 {
		return time.Time{}, fmt.Errorf("%q is not a time such as 2027-11-21T07:00:00Z, nor a day such as 2027-11-21", s)
	}
	if t = t.UTC(); t.Year() < 1970 || t.Year() > 9999 {
		return time.Time{}, fmt.Errorf("%q is not from 1970 to 9999", s)
	}
	return t, nil
}

func timeWord(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}

// yesNo is the keyword of what is yes or no.
func yesNo(name string, field func(*Profile) *bool) keyword {
	return keyword{
		name: name,
		set: func(p *Profile, v string) error {
			*field(p) = strings.EqualFold(v, "yes")
			if !*field(p) && !strings.EqualFold(v, "no") {
				return fmt.Errorf("%q is neither yes nor no", v)
			}
			return nil
		},
		get: func(p *Profile) string {
			if *field(p) {
				return "yes"
			}
			return "no"
		},
		json: func(p *Profile) any { return orNil(*field(p)) },
	}
}

// orNil returns nil instead of a zero value.
func orNil[T comparable](v T) any {
	if v == *new(T) {
		return nil
	}
	return v
}

func listOrNil(list []string) any {
	if len(list) == 0 {
		return nil
	}
	return list
}

// value is the keyword of what parse reads and word writes.
func value[T any](name string, parse func(string) (T, error), field func(*Profile) *T, word func(T) string) keyword {
	return keyword{
		name: name,
		set: func(p *Profile, v string) (err error) {
			*field(p), err = parse(v)
			return err
		},
		get: func(p *Profile) string { return word(*field(p)) },
	}
}

// number is the keyword of a number from 1 to most, which is 0 where there is none.
func number[T int | uint16](name, what string, most uint64, field func(*Profile) *T) keyword {
	parse := func(s string) (T, error) {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 || n > most {
			return 0, fmt.Errorf("%q is not %s from 1 to %d", s, what, most)
		}
		return T(n), nil
	}
	word := func(n T) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(int(n))
	}
	k := value(name, parse, field, word)
	k.json = func(p *Profile) any { return orNil(*field(p)) }
	return k
}

// minKnocks is the least that is worth drawing: a scan of all ports sends every
// single knock.
const minKnocks = 2

// wholeSeconds is a duration that firewalls count in seconds.
func wholeSeconds(k keyword) keyword {
	set := k.set
	k.set = func(p *Profile, v string) error {
		if d, err := ParseDuration(v); err == nil && d%time.Second != 0 {
			return fmt.Errorf("%q is not whole seconds", v)
		}
		return set(p, v)
	}
	return k
}

// duration is the keyword of a time from least to most.
func duration(name string, least, most time.Duration, field func(*Profile) *time.Duration) keyword {
	return keyword{
		name: name,
		set: func(p *Profile, v string) error {
			d, err := ParseDuration(v)
			if err != nil {
				return err
			}
			if d < least || d > most {
				return fmt.Errorf("%q is not from %s to %s", v, formatDuration(least), formatDuration(most))
			}
			*field(p) = d
			return nil
		},
		get:  func(p *Profile) string { return formatDuration(*field(p)) },
		json: func(p *Profile) any { return field(p).String() },
	}
}

// keywordNamed returns the keyword of that name in any case, or nil.
func keywordNamed(name string) *keyword {
	for i := range keywords {
		if strings.EqualFold(keywords[i].name, name) {
			return &keywords[i]
		}
	}
	return nil
}

// unknown is the error for a keyword that is none. It quotes letters only:
// "Sequence:7000/udp" is one word, and so is the second line of a sequence that
// somebody has wrapped.
func unknown(name string) error {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) }) {
		return errors.New("a line begins with a keyword, such as HostName, and a blank")
	}
	best, least := "", 3
	for _, k := range append([]keyword{{name: "Host"}}, keywords...) {
		if d := distance(strings.ToLower(name), strings.ToLower(k.name)); d < least {
			best, least = k.name, d
		}
	}
	if best == "" {
		return fmt.Errorf("unknown keyword %q", name)
	}
	return fmt.Errorf("unknown keyword %q; did you mean %s?", name, best)
}

// distance is the Levenshtein distance of a and b in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
