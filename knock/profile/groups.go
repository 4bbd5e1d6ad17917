package profile

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
)

// group has settings that belong together, and the functions that handle them.
// A scheme uses only some groups. Therefore a setting under "Host *" for one scheme does
// not apply to a scheme that does not use its group. Each function may be nil.
type group struct {
	keywords []keyword // keywords in the order in which they are shown

	// object is the name of the JSON object that contains the settings. The names of the
	// settings in this object leave out prefix. Both are "" if the settings are directly in
	// the JSON object of the profile.
	object, prefix string

	// defaults gives each setting of the group that given does not contain its default.
	defaults func(p *Profile, given settings)

	// check returns the first contradiction and the keyword to blame. It must work for
	// every profile, and also for the settings of a single block. Therefore it does not
	// rely on a setting that is missing.
	check func(p *Profile) (keyword string, err error)

	// complete returns an error if a finished profile cannot work, for example because a
	// setting is missing.
	complete func(p *Profile) error
}

// commonSettings are the settings of every scheme.
var commonSettings = &group{
	keywords: []keyword{
		value("HostName", parseHostName, func(p *Profile) *string { return &p.HostName }, escape).
			inJSON(func(p *Profile) any { return p.HostName }),
		number("Port", "a port", 1, 65535, func(p *Profile) *uint16 { return &p.Port }),
		value("AddressFamily", parseFamily, func(p *Profile) *string { return &p.AddressFamily }, strings.Clone),
		value("BindAddress", parseAddress, func(p *Profile) *netip.Addr { return &p.BindAddress }, zeroAs("", netip.Addr.String)),
		text("BindInterface", checkInterface, func(p *Profile) *string { return &p.BindInterface }),
		value("Scheme", parseScheme, func(p *Profile) *string { return &p.Scheme }, strings.Clone),
		{
			name: "Sequence", list: true, secret: true,
			set: func(p *Profile, v string) (err error) {
				p.Sequence, err = knock.ParseSequence(v)
				return err
			},
			get: func(p *Profile) string { return p.Sequence.String() },
		},
		duration("KnockDelay", within(0, 10*time.Second, time.Microsecond), func(p *Profile) *time.Duration { return &p.KnockDelay }),
		duration("ConnectTimeout", within(time.Microsecond, time.Hour, time.Microsecond),
			func(p *Profile) *time.Duration { return &p.ConnectTimeout }),
		ports("OpenPorts", "", func(p *Profile) *[]knock.PortRange { return &p.OpenPorts }),
		duration("OpenFor", within(time.Second, 24*time.Hour, time.Microsecond), func(p *Profile) *time.Duration { return &p.OpenFor }),
		duration("KnockTimeout", within(time.Second, 5*time.Minute, time.Microsecond),
			func(p *Profile) *time.Duration { return &p.KnockTimeout }),
		ports("IgnorePorts", "none", func(p *Profile) *[]knock.PortRange { return &p.IgnorePorts }),
	},
	defaults: func(p *Profile, given settings) {
		setDefault(&p.AddressFamily, "any")
		if !given.has("KnockDelay") { // 0 is a valid KnockDelay
			p.KnockDelay = 200 * time.Microsecond
		}
		setDefault(&p.ConnectTimeout, DefaultConnectTimeout)
		setDefault(&p.OpenFor, 30*time.Second)
		setDefault(&p.KnockTimeout, 5*time.Second)
		if p.OpenPorts == nil {
			port := cmp.Or(p.Port, 22)
			p.OpenPorts = []knock.PortRange{{Transport: knock.TCP, First: port, Last: port}}
		}
		if p.IgnorePorts == nil { // the word "none" gives an empty list, not nil
			p.IgnorePorts = []knock.PortRange{
				{Transport: knock.TCP, First: 80, Last: 80},
				{Transport: knock.TCP, First: 443, Last: 443},
				{Transport: knock.UDP, First: 443, Last: 443},
			}
		}
	},
	check: func(p *Profile) (keyword string, err error) {
		if bind := p.BindAddress; bind.IsValid() {
			if p.BindInterface != "" {
				return "BindInterface", errors.New("cannot be combined with BindAddress")
			}
			if bind.Is4() && p.AddressFamily == "inet6" || bind.Is6() && p.AddressFamily == "inet" {
				return "BindAddress", fmt.Errorf("%s does not belong to AddressFamily %s", bind, p.AddressFamily)
			}
		}
		if p.KnockTimeout > 0 && p.KnockDelay >= p.KnockTimeout {
			delay, timeout := formatDuration(p.KnockDelay), formatDuration(p.KnockTimeout)
			return "KnockDelay", fmt.Errorf("%s must be less than KnockTimeout (%s)", delay, timeout)
		}
		for i, step := range p.Sequence {
			if slices.ContainsFunc(p.OpenPorts, func(r knock.PortRange) bool { return r.Contains(step) }) {
				return "Sequence", fmt.Errorf("knock %d of %d goes to a guarded port (one of the OpenPorts)",
					i+1, len(p.Sequence))
			}
		}
		return "", nil
	},
}

func setDefault[T comparable](v *T, def T) { *v = cmp.Or(*v, def) }

// parseHostName checks a HostName. It returns the HostName unexpanded, because the host
// is not known yet.
func parseHostName(s string) (string, error) {
	host, err := expand(s, "h")
	return s, cmp.Or(err, CheckHost(host))
}

func escape(hostName string) string { return strings.ReplaceAll(hostName, "%", "%%") }

func parseFamily(s string) (string, error) {
	family := strings.ToLower(s)
	if !slices.Contains([]string{"any", "inet", "inet6"}, family) {
		return "", fmt.Errorf("%q is not one of any, inet, inet6", s)
	}
	return family, nil
}

func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", s)
	}
	return a.Unmap(), nil
}

func checkInterface(name string) error {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r == '"' || !unicode.IsPrint(r) }) {
		return fmt.Errorf("%q is not the name of a network interface", name)
	}
	return nil
}

// repeatSettings are the settings of the schemes whose knocks can be sent several times.
var repeatSettings = &group{
	keywords: []keyword{number("Repeat", "a number", 1, 2, func(p *Profile) *int { return &p.Repeat })},
}

// clockSettings are the settings for the windows of a scheme that follows the clock.
var clockSettings = &group{
	keywords: []keyword{
		duration("Period", within(time.Second, 366*24*time.Hour, time.Second), func(p *Profile) *time.Duration { return &p.Period }),
		duration("Skew", within(0, 183*24*time.Hour, time.Second), func(p *Profile) *time.Duration { return &p.Skew }),
		value("ValidUntil", parseTime, func(p *Profile) *time.Time { return &p.ValidUntil }, zeroAs("", timeWord)),
	},
	defaults: func(p *Profile, given settings) {
		setDefault(&p.Period, time.Hour)
		if !given.has("Skew") { // 0 is a valid Skew
			p.Skew = 2 * time.Minute
		}
	},
	check: func(p *Profile) (keyword string, err error) {
		switch {
		case p.Period == 0 || p.Skew < p.Period-p.Skew:
			return "", nil
		case p.Period != time.Hour: // a user has set Period, because it is not the default: blame Period
			return "Period", fmt.Errorf("%s must be more than twice Skew (%s)", formatDuration(p.Period), formatDuration(p.Skew))
		}
		return "Skew", fmt.Errorf("%s must be less than half of Period (%s)", formatDuration(p.Skew), formatDuration(p.Period))
	},
}

// parseTime reads a time, such as 2027-11-21T07:00:00Z, or a day. For a day it returns the
// beginning of the day in UTC. It accepts only times that the same format can write.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t, err = time.Parse(time.DateOnly, s)
	}
	if err != nil || t.Nanosecond() != 0 {
		return time.Time{}, fmt.Errorf("%q is not a time such as 2027-11-21T07:00:00Z or a day such as 2027-11-21", s)
	}
	if t = t.UTC(); t.Year() < 1970 || t.Year() > 9999 {
		return time.Time{}, fmt.Errorf("%q is outside the years 1970 to 9999", s)
	}
	return t, nil
}

func timeWord(t time.Time) string { return t.Format(time.RFC3339) }

// minKnocks is the smallest useful number of knocks to draw. A single knock is useless,
// because a scan of all ports sends it.
const minKnocks = 2

// drawSettings are the settings of schemes that draw their knocks from a range of ports.
var drawSettings = &group{
	keywords: []keyword{
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
		number("Knocks", "a number", minKnocks, knock.MaxSteps, func(p *Profile) *int { return &p.Knocks }),
		value("Protocol", knock.ParseTransport, func(p *Profile) *knock.Transport { return &p.PortRange.Transport }, knock.Transport.String),
	},
	defaults: func(p *Profile, _ settings) {
		if p.PortRange.First == 0 {
			p.PortRange.First, p.PortRange.Last = drawnPorts.First, drawnPorts.Last
		}
		setDefault(&p.Knocks, 5)
	},
	check: func(p *Profile) (keyword string, err error) {
		if size := int(p.PortRange.Last) - int(p.PortRange.First) + 1; p.PortRange.First > 0 && size < p.Knocks {
			return "PortRange", fmt.Errorf("%d ports are too few for %d different knocks", size, p.Knocks)
		}
		return "", nil
	},
	complete: func(p *Profile) error {
		for _, open := range p.OpenPorts {
			if r := p.PortRange; open.Transport == r.Transport && open.First <= r.Last && r.First <= open.Last {
				return fmt.Errorf("PortRange and Protocol include OpenPorts %v; a guarded port cannot be a knock", open)
			}
		}
		return nil
	},
}
