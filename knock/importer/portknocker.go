package importer

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portknock/portknock/knock/profile"
)

// portknockerVariables are the variables of dbolivar's python_port_knocker. It ignores others.
var portknockerVariables = []string{"ipaddr", "interval", "ports"}

// maxDelay is the longest KnockDelay of a profile.
const maxDelay = 10 * time.Second

var (
	plainDecimal     = lazy(`^[0-9]+(\.[0-9]+)?$`)
	portknockerKnock = lazy(`(?i)^([0-9]+):(tcp|udp)$`)
)

// isPortknockerLine reports whether a line sets one of the variables.
func isPortknockerLine(line string) bool {
	v, ok := cutPortknockerLine(line)
	return ok && slices.Contains(portknockerVariables, v.variable)
}

// cutPortknockerLine splits "NAME = TEXT" or "NAME: TEXT". The case of NAME does not matter.
func cutPortknockerLine(line string) (v value, ok bool) {
	i := strings.IndexAny(line, "=:")
	if i <= 0 {
		return value{}, false
	}
	return value{variable: strings.ToLower(strings.TrimSpace(line[:i])), text: strings.TrimSpace(line[i+1:])}, true
}

// convertPortknocker converts the portknocker.ini of dbolivar's python_port_knocker, which
// Python's configparser reads. The section [DEFAULT] applies to all others.
func convertPortknocker(f *source, data []byte, o Options) ([]Import, error) {
	if err := readPortknocker(f, data); err != nil {
		return nil, err
	}
	defaults := f.named["DEFAULT"]
	chosen := slices.DeleteFunc(slices.Clone(f.sections), func(s *section) bool { return s == defaults })
	if o.Section != "" {
		chosen = slices.DeleteFunc(chosen, func(s *section) bool { return s.name != o.Section })
		if len(chosen) == 0 {
			return nil, fmt.Errorf("%s: the file has no section %q", f.name, o.Section)
		}
	}
	return f.convertAll("section", chosen, func(s *section) { s.convertPortknocker(defaults, o.Name) })
}

// readPortknocker divides a file into sections.
func readPortknocker(f *source, data []byte) error {
	var last value // value of the line before; a line with a larger indent continues it
	indent := 0    // indent of the line that last began with
	return f.readLines(data, "portknocker", 0, func(line string, n int) error {
		text := strings.Trim(line, " \t")
		here := len(line) - len(strings.TrimLeft(line, " \t"))
		v, ok := cutPortknockerLine(text)
		v.line = n
		s := f.last()
		switch {
		case text == "" || text[0] == '#' || text[0] == ';':
		case last.line > 0 && here > indent:
			last.text += "\n" + text
			s.values[last.variable] = last
		case text[0] == '[':
			name := strings.TrimSuffix(text[1:], "]")
			if name == "" || text != "["+name+"]" || strings.ContainsAny(name, "[]") {
				return f.fault(n, "write the first line of a section as [NAME]")
			}
			last = value{}
			return f.begin("section", name, name, n)
		case s == nil:
			return f.fault(n, "expected [NAME] before the first line")
		case !ok:
			return f.fault(n, "expected NAME = VALUE, such as interval = 500")
		default:
			s.add(v)
			last, indent = v, here
		}
		return nil
	})
}

// convertPortknocker makes the section's Import. The profile gets the name, or that of the
// section if name is "". The defaults may be nil.
func (s *section) convertPortknocker(defaults *section, name string) {
	if defaults != nil {
		for variable, v := range defaults.values {
			if _, has := s.values[variable]; !has {
				s.values[variable] = v
			}
		}
		if s.err == nil {
			s.err = defaults.err
		}
	}
	var ignored []string
	for _, v := range s.sorted() {
		if !slices.Contains(portknockerVariables, v.variable) {
			ignored = append(ignored, fmt.Sprintf("%s (line %d)", v.variable, v.line))
			continue
		}
		s.refuse(strings.Contains(v.text, "%"), v, "portknocker interpolates a %%; write the value itself")
		s.refuse(strings.Contains(v.text, "\n"), v, "the value has several lines; write it in one line")
	}
	s.warn(ignored != nil, value{}, "has variables that are not imported: %s", strings.Join(ignored, ", "))
	for _, variable := range portknockerVariables {
		_, has := s.values[variable]
		s.leaveOut(!has, value{}, "it has no %s", variable)
	}
	addr := s.values["ipaddr"]
	a, err := netip.ParseAddr(addr.text)
	s.refuse(err != nil || !a.Is4(), addr, "%q is not an IPv4 address such as 192.0.2.1", addr.text)
	s.setHostName(addr, addr.variable, addr.text)
	s.setName(name, s.name)

	ports := strings.Split(s.values["ports"].text, " ") // two spaces are an error for portknocker too
	s.addSequence(s.values["ports"], ports, portknockerKnock().FindStringSubmatch)
	interval := s.values["interval"]
	ms, err := strconv.ParseFloat(interval.text, 64)
	s.refuse(err != nil || !plainDecimal().MatchString(interval.text) || ms <= 0 || ms > 1e9, interval,
		"%q is not a number of milliseconds such as 500", interval.text)
	if s.err == nil {
		s.addDelay(interval, max(time.Duration(ms*1000)*time.Microsecond, time.Microsecond), len(ports))
	}
	s.finish()
}

// addDelay adds the settings for the pause after each knock. portknocker also waits after the
// last knock, as portknock does.
func (s *section) addDelay(interval value, delay time.Duration, knocks int) {
	s.warn(delay > maxDelay, interval, "interval is longer than KnockDelay may be, which becomes %v", maxDelay)
	delay = min(delay, maxDelay)
	total := delay * time.Duration(knocks)
	s.set(interval, "KnockDelay", durationWord(delay))
	// The server allows at least this time, or portknocker would not open it.
	if delay > time.Second {
		s.set(interval, "KnockTimeout", durationWord(2*delay))
	}
	// A second try must fit too.
	if 2*total > profile.DefaultConnectTimeout {
		s.set(interval, "ConnectTimeout", durationWord(profile.DefaultConnectTimeout+2*total))
	}
	s.warn(true, interval, "interval becomes KnockDelay; each login waits %v, which most servers do not need", total)
}

// durationWord writes a duration as a profile reads it.
func durationWord(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%ds", d/time.Second)
	}
	if d%time.Millisecond == 0 {
		return fmt.Sprintf("%dms", d/time.Millisecond)
	}
	return fmt.Sprintf("%dus", d/time.Microsecond)
}
