package profile

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0":             0,
		"10":            10 * time.Second,
		"010":           10 * time.Second,
		"90s":           90 * time.Second,
		"90S":           90 * time.Second,
		"1h30m":         90 * time.Minute,
		"1H30M":         90 * time.Minute,
		"1h30":          time.Hour + 30*time.Second,
		"30d":           30 * 24 * time.Hour,
		"1w":            7 * 24 * time.Hour,
		"1w2d3h4m5s":    (9*24+3)*time.Hour + 4*time.Minute + 5*time.Second,
		"250ms":         250 * time.Millisecond,
		"500us":         500 * time.Microsecond,
		"1m1ms":         time.Minute + time.Millisecond,
		"1m1m":          2 * time.Minute,
		"9223372036":    9223372036 * time.Second,
		"15250w":        15250 * 7 * 24 * time.Hour,
		"00000000001us": time.Microsecond,
	} {
		if got, err := ParseDuration(s); got != want || err != nil {
			t.Errorf("%q: got %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", " ", "5 s", " 5", "5 ", "-5", "+5", "s", "5x", "1.5s", "5ss", "1h-5m", "٣", "5µs", "5ns", "inf", "5m s"} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, got)
		}
	}
	for _, s := range []string{"9223372037", "15251w", "99999999999999999999", "9223372036854775808us", "9223372036s1s"} {
		if got, err := ParseDuration(s); err == nil || got != 0 {
			t.Errorf("%q: got %v, want 0 and an error", s, got)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s":      0,
		"500us":   500 * time.Microsecond,
		"10s":     10 * time.Second,
		"1h30m":   90 * time.Minute,
		"1s500ms": 1500 * time.Millisecond,
		"1d":      24 * time.Hour,
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"10", "250ms", "1h30m", "1w2d3h4m5s", "500us", "5 s", "-5", "9223372037", "1m1ms"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if d < 0 {
			t.Fatalf("%q: got %v, which is negative", s, d)
		}
		if again, err := ParseDuration(formatDuration(d)); again != d || err != nil {
			t.Fatalf("%q is %v, but formatted as %s it is %v, %v", s, d, formatDuration(d), again, err)
		}
	})
}
