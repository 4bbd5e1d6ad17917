package profile

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// units is the units of a duration, the longest first. Of two that begin alike
// the longer name stands first.
var units = []struct {
	name   string
	length time.Duration
}{
	{"w", 7 * 24 * time.Hour},
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"ms", time.Millisecond},
	{"m", time.Minute},
	{"s", time.Second},
	{"us", time.Microsecond},
}

// ParseDuration reads a time as sshd_config(5) has it under TIME FORMATS, and
// "ms" and "us" besides: "10" (seconds), "250ms", "1h30m", "30d", in any case.
// An empty, negative, fractional or blank-ridden one is an error, and so is one
// that a [time.Duration] cannot hold, about 292 years.
func ParseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a time such as 10, 250ms or 1h30m", s)
	rest := strings.ToLower(s)
	if rest == "" {
		return 0, bad
	}
	var sum int64
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if digits == 0 {
			return 0, bad
		}
		number := rest[:digits]
		rest = rest[digits:]
		unit := int64(time.Second)
		if rest != "" {
			known := false
			for _, u := range units {
				if known = strings.HasPrefix(rest, u.name); known {
					unit, rest = int64(u.length), rest[len(u.name):]
					break
				}
			}
			if !known {
				return 0, bad
			}
		}
		var n int64
		for _, c := range number {
			if n = 10*n + int64(c-'0'); n > (math.MaxInt64-sum)/unit {
				return 0, fmt.Errorf("%q is too long a time", s)
			}
		}
		sum += n * unit
	}
	return time.Duration(sum), nil
}

// formatDuration writes whole microseconds as [ParseDuration] reads them.
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, name := range []string{"d", "h", "m", "s", "ms", "us"} {
		for _, u := range units {
			if u.name == name && d >= u.length {
				fmt.Fprintf(&b, "%d%s", d/u.length, name)
				d %= u.length
			}
		}
	}
	return b.String()
}
