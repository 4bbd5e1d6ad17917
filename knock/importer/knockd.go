package importer

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The directives of knockd 0.8, in lower case. knockdAliases maps other names to these.
var (
	knockdOptions    = []string{"logfile", "pidfile", "interface"}
	knockdDirectives = []string{"sequence", "one_time_sequences", "seq_timeout", "tcpflags", "target",
		"start_command", "start_command_6", "cmd_timeout", "stop_command", "stop_command_6"}
	knockdAliases = map[string]string{"timeout": "seq_timeout", "command": "start_command", "command_6": "start_command_6"}
)

// useSyslog is the only directive without a value.
const useSyslog = "usesyslog"

// The limits are those of knockd 0.8.
const (
	maxKnockdLine     = 4095 // in bytes; knockd reads the rest of a longer line as another line
	defaultSeqTimeout = 25   // in seconds
	defaultCmdTimeout = 10   // in seconds
)

// The limits of settings in a profile.
const (
	minTime         = time.Second // of KnockTimeout and OpenFor
	maxKnockTimeout = 5 * time.Minute
	maxOpenFor      = 24 * time.Hour
)

var knockdKnock = lazy(`(?i)^([0-9]+)(?: *: *(tcp|udp))?$`)

// isKnockdLine reports whether a line is one of knockd's directives.
func isKnockdLine(line string) bool {
	v, hasValue := cutKnockdLine(line)
	if !hasValue {
		return v.variable == useSyslog
	}
	return slices.Contains(knockdOptions, v.variable) || slices.Contains(knockdDirectives, v.variable)
}

// cutKnockdLine splits "NAME = TEXT". The case of NAME does not matter.
func cutKnockdLine(line string) (v value, hasValue bool) {
	name, text, hasValue := strings.Cut(line, "=")
	name = strings.ToLower(strings.TrimSpace(name))
	return value{variable: cmp.Or(knockdAliases[name], name), text: strings.TrimSpace(text)}, hasValue
}

// convertKnockd converts the knockd.conf of a server. A section becomes a profile that sends
// its sequence. The ports come from the command that the section runs.
//
// A section that only closes ports, such as [closeSSH] in Debian's file, is converted only if
// it is chosen by name. The profile that opens 22/tcp, or else the first one, gets the name in
// o, or that of the host. The other names are this name, a hyphen and the name of the section.
//
// knockd does not start if any line is wrong, so an error in any section matters.
func convertKnockd(f *source, data []byte, o Options) ([]Import, error) {
	if err := readKnockd(f, data); err != nil {
		return nil, err
	}
	effects := make(map[*section]effect)
	var chosen, closing []*section
	for _, s := range f.sections {
		e := commandEffect(s.command().text)
		effects[s] = e
		switch {
		case s.err != nil:
			return nil, s.err
		case s.name == "options":
		case s.name == o.Section || o.Section == "" && !e.onlyCloses():
			chosen = append(chosen, s)
		case e.onlyCloses():
			closing = append(closing, s)
		}
	}
	if o.Section != "" && chosen == nil {
		return nil, fmt.Errorf("%s: the file has no section %q", f.name, o.Section)
	}
	if i := slices.IndexFunc(chosen, func(s *section) bool { return slices.Contains(effects[s].opened, "22/tcp") }); i > 0 {
		chosen = slices.Concat(chosen[i:i+1], chosen[:i], chosen[i+1:])
	}
	taken := false // whether a profile has the name that is not followed by that of a section
	imports, err := f.convertAll("section", chosen, func(s *section) {
		name, plain := cmp.Or(o.Name, o.Host), !taken && (o.Name != "" || !effects[s].onlyCloses())
		if !plain {
			name += "-" + s.name
		}
		s.setHostName(value{}, "host", o.Host)
		s.setName(name)
		s.convertKnockd(effects[s])
		taken = taken || plain && s.err == nil
	})
	for _, s := range closing {
		s.warnAboutClosing(chosen, effects, o.Section == "")
	}
	return imports, err
}

// readKnockd divides a file into sections.
func readKnockd(f *source, data []byte) error {
	return f.readLines(data, "knockd", maxKnockdLine, func(line string, n int) error {
		line = strings.TrimSpace(line)
		switch s := f.last(); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			name := strings.TrimSuffix(line[1:], "]")
			if name == "" || line != "["+name+"]" || strings.ContainsAny(name, "[]") {
				return f.fault(n, "write the first line of a section as [NAME]")
			}
			return f.begin("section", name, name, n)
		case s == nil:
			return f.fault(n, "expected [NAME] before the first line")
		default:
			s.addKnockdLine(line, n)
		}
		return nil
	})
}

// addKnockdLine reads a line of a section, below [NAME].
func (s *section) addKnockdLine(line string, n int) {
	v, hasValue := cutKnockdLine(line)
	v.line = n
	allowed := knockdDirectives
	if s.name == "options" {
		allowed = knockdOptions
	}
	switch {
	case v.variable == useSyslog && !hasValue: // allowed in every section
	case !hasValue || !slices.Contains(allowed, v.variable):
		s.err = cmp.Or(s.err, s.file.fault(n, "knockd does not start with this line; expected a directive such as %s = VALUE", allowed[0]))
	default:
		s.add(v)
	}
}

// command returns the command that a sequence runs. Without a command for IPv4, it is that for
// IPv6.
func (s *section) command() value {
	if v := s.values["start_command"]; v.text != "" {
		return v
	}
	return s.values["start_command_6"]
}

// warnAboutClosing warns about a section that closes what one of the chosen sections opens.
// leftOut means that the section is not chosen only because it closes ports.
func (s *section) warnAboutClosing(chosen []*section, effects map[*section]effect, leftOut bool) {
	s.warn(leftOut, value{}, "only closes ports, so it is not imported; to import it, give its name")
	for _, other := range chosen {
		s.warn(overlap(effects[other].opened, effects[s].closed) && overlap(s.knockWords(), other.knockWords()), s.values["sequence"],
			"shares knocks with [%s], so a lost knock delays a login; give it other ports", other.name)
	}
}

// knockWords returns the knocks of the sequence, such as "7000" or "7000:udp". It does not check
// them.
func (s *section) knockWords() []string {
	text := strings.NewReplacer(" ", "", "\t", "", ":tcp", "").Replace(strings.ToLower(s.values["sequence"].text))
	return strings.Split(text, ",")
}

// overlap reports whether a word is in both lists.
func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(word string) bool { return slices.Contains(b, word) })
}

// convertKnockd makes the section's Import. The effect is that of its command.
func (s *section) convertKnockd(e effect) {
	sequence, command := s.values["sequence"], s.command()
	once := s.values["one_time_sequences"]
	s.leaveOut(once.line > 0, once, "sequences that serve only once are not supported")
	s.leaveOut(command.text == "", value{}, "it has no start_command")
	s.refuse(sequence.line == 0, value{variable: "[" + s.name + "]", line: s.line}, "knockd does not start without a sequence in this section")
	words := strings.Split(sequence.text, ",")
	for i := range words {
		words[i] = strings.TrimSpace(words[i])
	}
	s.addSequence(sequence, words, knockdKnock().FindStringSubmatch)
	s.checkFlags(slices.ContainsFunc(words, func(w string) bool { return !strings.HasSuffix(strings.ToLower(w), "udp") }))
	target := s.values["target"]
	_, err := netip.ParseAddr(target.text)
	s.refuse(target.line > 0 && err != nil, target, "%q is not an IP address", target.text)
	s.warn(target.line > 0, target, "knockd counts only knocks that arrive at %s; check the HostName", target.text)
	s.addTimes(len(words), e)
	s.addPorts(command, e)
	// knockd opens nothing to knocks that arrive twice.
	s.set(value{}, "Repeat", "1")
	s.finish()
}

// checkFlags leaves out a section that does not react to a SYN, if a knock is one.
func (s *section) checkFlags(hasTCP bool) {
	flags := s.values["tcpflags"]
	if flags.line == 0 {
		return
	}
	for _, flag := range strings.Split(strings.ToLower(flags.text), ",") {
		name, not := strings.CutPrefix(flag, "!")
		s.refuse(!slices.Contains([]string{"fin", "syn", "rst", "psh", "ack", "urg"}, name), flags,
			"knockd does not know the flag %q; expected flags such as syn,!ack without spaces", flag)
		s.leaveOut(hasTCP && (name == "syn") == not, flags, "a TCP knock is a SYN, which does not match tcpflags %s", flags.text)
	}
}

// addTimes adds KnockTimeout, and OpenFor if a command closes the ports again.
func (s *section) addTimes(knocks int, e effect) {
	seqTimeout, most := s.values["seq_timeout"], s.seconds("seq_timeout", defaultSeqTimeout)
	s.leaveOut(most == 0 && knocks > 1, seqTimeout, "no sequence can be complete within seq_timeout 0")
	// knockd counts whole seconds from the first knock, so the last second may be missing. The
	// firewalls that emit-rules writes for count whole seconds too.
	between := (most - time.Second) / time.Duration(max(knocks-1, 1))
	between = min(max(between.Truncate(time.Second), minTime), maxKnockTimeout)
	s.set(seqTimeout, "KnockTimeout", durationWord(between))
	s.warn(seqTimeout.line > 0 && knocks > 1, seqTimeout,
		"seq_timeout becomes KnockTimeout %v, because knockd counts from the first knock", between)

	stop := cmp.Or(s.values["stop_command"], s.values["stop_command_6"])
	if stop.text == "" {
		s.warn(e.stays, s.command(), "each login adds a rule that stays; add stop_command and cmd_timeout")
		return
	}
	open := s.seconds("cmd_timeout", defaultCmdTimeout)
	openFor := min(max(open, minTime), maxOpenFor)
	s.warn(open != openFor, s.values["cmd_timeout"], "cmd_timeout %s becomes OpenFor %s", s.values["cmd_timeout"].text, durationWord(openFor))
	s.set(s.values["cmd_timeout"], "OpenFor", durationWord(openFor))
}

// seconds returns the time that a directive sets. Without the directive, it is byDefault, in
// seconds.
func (s *section) seconds(directive string, byDefault int) time.Duration {
	v, has := s.values[directive]
	if !has {
		return time.Duration(byDefault) * time.Second
	}
	n, err := strconv.ParseUint(v.text, 10, 31)
	s.refuse(err != nil || !number.pattern().MatchString(v.text), v, "%q is not a plain number of seconds such as 5", v.text)
	return time.Duration(n) * time.Second
}

// addPorts adds the settings for the ports that the command opens. Port is the first TCP port.
func (s *section) addPorts(command value, e effect) {
	if len(e.opened) == 0 {
		s.warn(!e.onlyCloses(), command, "no port found in the command; without a Port, the guarded port is 22/tcp")
		return
	}
	s.warn(len(e.opened) > 1, command, "the command opens several ports: %s", strings.Join(e.opened, " "))
	tcp := slices.IndexFunc(e.opened, func(port string) bool { return plainTCPPort().MatchString(port) })
	if tcp >= 0 {
		s.set(command, "Port", strings.TrimSuffix(e.opened[tcp], "/tcp"))
	}
	if len(e.opened) > 1 || tcp < 0 { // otherwise OpenPorts follows from Port
		s.set(command, "OpenPorts", strings.Join(e.opened, " "))
	}
}
