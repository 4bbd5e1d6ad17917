package profile

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// unit is a unit of a duration, and units is all of them, the longest first.
type unit struct {
	name   string
	length time.Duration
}

var units = []unit{
	{"w", 7 * 24 * time.Hour},
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"m", time.Minute},
	{"s", time.Second},
	{"ms", time.Millisecond},
	{"us", time.Microsecond},
}

// ParseDuration reads a time as sshd_config(5) has it under TIME FORMATS, and
// "ms" and "us" besides: "10" (seconds), "250ms", "1h30m", "30d", in any case.
// An empty, negative, fractional or blank-ridden one is an error, and so is one
// that a [time.Duration] cannot hold, about 292 years.
func ParseDuration(s string) (time.Duration, error) {
	var sum time.Duration
	rest := strings.ToLower(s)
	for first := true; first || rest != ""; first = false {
		number, name := "", ""
		number, rest = cutAny(rest, "0123456789")
		name, rest = cutAny(rest, "abcdefghijklmnopqrstuvwxyz")
		i := slices.IndexFunc(units, func(u unit) bool { return u.name == cmp.Or(name, "s") })
		if number == "" || i < 0 {
			return 0, fmt.Errorf("%q is not a time such as 10, 250ms or 1h30m", s)
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n > int64((math.MaxInt64-sum)/units[i].length) {
			return 0, fmt.Errorf("time %q is too long", s)
		}
		sum += time.Duration(n) * units[i].length
	}
	return sum, nil
}

// cutAny cuts the characters of a set off the start of s.
func cutAny(s, set string) (start, rest string) {
	rest = strings.TrimLeft(s, set)
	return s[:len(s)-len(rest)], rest
}

// formatDuration writes whole microseconds as [ParseDuration] reads them, and a
// minus before a negative time.
func formatDuration(d time.Duration) string {
	var b strings.Builder
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	for _, u := range units[1:] { // no weeks
		if d >= u.length {
			fmt.Fprintf(&b, "%d%s", d/u.length, u.name)
			d %= u.length
		}
	}
	return sign + cmp.Or(b.String(), "0s")
}
