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

// unit is a unit of time in a duration.
type unit struct {
	name   string
	length time.Duration
}

// units has all units, the longest first.
var units = []unit{
	{"w", 7 * 24 * time.Hour},
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"m", time.Minute},
	{"s", time.Second},
	{"ms", time.Millisecond},
	{"us", time.Microsecond},
}

// ParseDuration reads a duration, such as "10" (seconds), "250ms", "1h30m" or "30d". The
// format is that of sshd_config(5) under TIME FORMATS, with the additional units "ms" and
// "us". Case does not matter. An empty or negative duration is an error, and so is a
// duration with a fraction or a blank. A duration that [time.Duration] cannot hold, more
// than about 292 years, is an error too.
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

// cutAny splits s after the characters at its start that are in set.
func cutAny(s, set string) (start, rest string) {
	rest = strings.TrimLeft(s, set)
	return s[:len(s)-len(rest)], rest
}

// formatDuration writes a duration of whole microseconds as [ParseDuration] reads it. It
// writes a minus sign before a negative duration.
func formatDuration(d time.Duration) string {
	var b strings.Builder
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	for _, u := range units[1:] { // without weeks
		if d >= u.length {
			fmt.Fprintf(&b, "%d%s", d/u.length, u.name)
			d %= u.length
		}
	}
	return sign + cmp.Or(b.String(), "0s")
}
