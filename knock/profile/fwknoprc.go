package profile

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// What fwknop's client reads of its .fwknoprc, and how, was found out by asking
// fwknop 2.6.10. It is not what the manual says. Where fwknop goes on in silence
// and differently than one would think, so does this reader, but with a warning.

// rcChunk is as much as fwknop reads of a line at once, its end included: what
// is beyond is a line of its own.
const rcChunk = 1023

// cSpace are the blanks of C's isspace.
const cSpace = " \t\n\v\f\r"

// rcFile is a .fwknoprc, parted into stanzas. What is in them has not been
// looked at: faults in a stanza that is not asked for are none to fwknop.
type rcFile struct {
	name     string
	defaults *rcStanza   // those called "default"; nil if none is
	stanzas  []*rcStanza // all others
	warnings []string

	named  map[string]*rcStanza // all, by their names in lower case
	warned map[string]bool      // what is among the warnings
}

// rcStanza is all that stands under one name.
type rcStanza struct {
	name  string
	line  int // of the first that is called so
	lines []rcLine
}

type rcLine struct {
	number int
	text   string
}

// rcValue is what a stanza gives to a variable.
type rcValue struct {
	variable string
	text     string
	line     int
}

// rcValues holds the last value of each variable, under the name of what it sets:
// several set the same.
type rcValues map[string]rcValue

func (r *rcFile) warn(line int, format string, args ...any) {
	if w := fault(r.name, line, format, args...).Error(); !r.warned[w] {
		r.warned[w] = true
		r.warnings = append(r.warnings, w)
	}
}

// String returns the name as it stands in the file, fit for a terminal.
func (s *rcStanza) String() string {
	q := strconv.Quote(s.name)
	return "[" + q[1:len(q)-1] + "]"
}

// parseRC parts a file into lines and stanzas.
func parseRC(name string, data []byte) (*rcFile, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxFile)
	}
	r := &rcFile{name: name, named: make(map[string]*rcStanza), warned: make(map[string]bool)}
	var stanza *rcStanza
	for number, begins := 1, true; len(data) > 0; {
		chunk := data[:min(len(data), rcChunk)]
		if i := bytes.IndexByte(chunk, '\n'); i >= 0 {
			chunk = chunk[:i+1]
		}
		data = data[len(chunk):]
		ends := chunk[len(chunk)-1] == '\n'
		text, _, _ := strings.Cut(string(chunk), "\x00") // the end of C's strings
		if !begins && strings.Trim(text, cSpace) != "" {
			r.warn(number, "a line of more than %d bytes: fwknop takes the rest for another line", rcChunk)
		}
		switch title, ok := rcTitle(text); {
		case text == "" || strings.ContainsRune("#;\r\n", rune(text[0])):
		case ok:
			stanza = r.stanza(title, number)
		case stanza == nil:
			r.warn(number, "stands before the first stanza, where fwknop ignores it")
		default:
			stanza.lines = append(stanza.lines, rcLine{number, text})
		}
		if begins = ends; ends {
			number++
		}
	}
	return r, nil
}

// rcTitle returns the name of the stanza that a line begins.
func rcTitle(text string) (string, bool) {
	text, ok := strings.CutPrefix(strings.TrimLeft(text, cSpace), "[")
	title, _, closed := strings.Cut(text, "]")
	return title, ok && closed
}

// stanza returns the stanza of that name: a second one of a name goes on with
// the first.
func (r *rcFile) stanza(name string, line int) *rcStanza {
	key := strings.ToLower(name)
	if s := r.named[key]; s != nil {
		return s
	}
	s := &rcStanza{name: name, line: line}
	r.named[key] = s
	if key == "default" {
		r.defaults = s
	} else {
		r.stanzas = append(r.stanzas, s)
	}
	return s
}

// values reads the variables of a stanza, which come after those of [default],
// wherever that stands.
func (r *rcFile) values(defaults rcValues, s *rcStanza) (rcValues, error) {
	if s == r.defaults && defaults != nil {
		return defaults, nil
	}
	vs := make(rcValues)
	maps.Copy(vs, defaults)
	for _, line := range s.lines {
		v, err := r.variable(line)
		if err == nil {
			err = r.set(vs, v)
		}
		if err != nil {
			return nil, fault(r.name, line.number, "%w", err)
		}
	}
	return vs, nil
}

// variable parts a line into variable and value as C's sscanf does with
// "%s %[^ ;\t\n\r#]". No error quotes the line: there may be a key in it.
func (r *rcFile) variable(line rcLine) (rcValue, error) {
	text := strings.TrimLeft(line.text, cSpace)
	end := strings.IndexAny(text, cSpace)
	if end < 0 {
		end = len(text)
	}
	name, rest := text[:end], strings.TrimLeft(text[end:], cSpace)
	end = strings.IndexAny(rest, " ;\t\n\r#")
	if end < 0 {
		end = len(rest)
	}
	value, rest := rest[:end], rest[end:]
	switch {
	case strings.HasPrefix(text, "#") || strings.HasPrefix(text, ";"):
		return rcValue{}, errors.New("to fwknop this is no comment: nothing may stand before the # or ;")
	case text == "":
		return rcValue{}, errors.New("only blanks, which fwknop refuses")
	case value == "":
		return rcValue{}, errors.New("a line is a variable, a blank and a value, such as SPA_SERVER vps.example")
	}
	name = strings.TrimSuffix(name, ":")
	if _, ok := rcVariables[name]; !ok {
		return rcValue{}, rcUnknown(name)
	}
	more := strings.TrimLeft(rest, cSpace)
	switch {
	case value == "=" || value[0] == ':':
		r.warn(line.number, "%s: fwknop takes the %q for the value, or for part of it; between the two belongs a blank only", name, value[:1])
	case rest != "" && strings.ContainsRune("#;", rune(rest[0])):
		r.warn(line.number, "%s: to fwknop the value ends before the %q", name, rest[:1])
	case more != "" && !strings.ContainsRune("#;", rune(more[0])):
		r.warn(line.number, "%s: to fwknop the value ends at the first blank", name)
	}
	return rcValue{name, value, line.number}, nil
}

// rcUnknown is the error for a variable that fwknop does not know. It quotes
// capitals only: a key may have got to the start of a line.
func rcUnknown(name string) error {
	switch upper := strings.ToUpper(name); {
	case name == "CLIENT_TIMEOUT":
		return errors.New("fwknop's sample file has CLIENT_TIMEOUT, but fwknop refuses it; it is called FW_TIMEOUT")
	case rcVariables[upper] != nil:
		return fmt.Errorf("variables are written in capitals: %s", upper)
	case name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "":
		return errors.New("a line begins with a variable, such as SPA_SERVER, and a blank")
	}
	best, least := "", 3
	for _, known := range slices.Sorted(maps.Keys(rcVariables)) {
		if d := distance(name, known); d < least {
			best, least = known, d
		}
	}
	if best == "" {
		return fmt.Errorf("unknown variable %q", name)
	}
	return fmt.Errorf("unknown variable %q; did you mean %s?", name, best)
}

// rcVariables is what fwknop knows, and what it checks at once; an error refuses
// the file.
var rcVariables = map[string]func(v string) error{
	"SPA_SERVER":       rcAny,
	"SPA_SERVER_PORT":  rcNumber(0, 65535),
	"SPA_SERVER_PROTO": rcOneOf("udp", "tcp", "http", "icmp", "udpraw", "tcpraw"),
	"SPA_SOURCE_PORT":  rcNumber(0, 65535),
	"RAND_PORT":        rcBool,
	"ACCESS":           rcAny,
	"ALLOW_IP":         rcAllowIP,
	"FW_TIMEOUT":       rcNumber(0, 65536),
	"TIME_OFFSET":      func(v string) error { _, err := rcOffset(v); return err },
	"DIGEST_TYPE":      rcOneOf(rcDigests...),
	"ENCRYPTION_MODE":  rcOneOf("cbc", "ecb", "cfb", "ofb", "ctr", "asymmetric", "legacy"),
	"SPOOF_USER":       rcAny,
	"SPOOF_SOURCE_IP":  rcAny,

	"KEY":              rcAny,
	"KEY_BASE64":       rcBase64,
	"KEY_FILE":         rcAny,
	"HMAC_KEY":         rcAny,
	"HMAC_KEY_BASE64":  rcBase64,
	"HMAC_KEY_FILE":    rcAny,
	"HMAC_DIGEST_TYPE": rcOneOf(rcDigests...),
	"USE_HMAC":         rcBool,

	"USE_GPG":               rcBool,
	"USE_GPG_AGENT":         rcBool,
	"GPG_RECIPIENT":         rcAny,
	"GPG_SIGNER":            rcAny,
	"GPG_HOMEDIR":           rcAny,
	"GPG_EXE":               rcAny,
	"GPG_SIGNING_PW":        rcAny,
	"GPG_SIGNING_PW_BASE64": rcBase64,
	"GPG_NO_SIGNING_PW":     rcBool,

	"NAT_ACCESS":    rcAny,
	"NAT_LOCAL":     rcBool,
	"NAT_PORT":      rcNumber(0, 65535),
	"NAT_RAND_PORT": rcBool,

	"RESOLVE_IP_HTTP":     rcBool,
	"RESOLVE_IP_HTTPS":    rcBool,
	"RESOLVE_HTTP_ONLY":   rcBool,
	"RESOLVE_URL":         rcAny,
	"SERVER_RESOLVE_IPV4": rcBool,
	"WGET_CMD":            rcAny,
	"USE_WGET_USER_AGENT": rcBool,
	"HTTP_USER_AGENT":     rcAny,
	"VERBOSE":             rcAny,
	"NO_SAVE_ARGS":        rcBool,
}

// rcNumbers are the variables among them with a plain number.
var rcNumbers = []string{"SPA_SERVER_PORT", "SPA_SOURCE_PORT", "FW_TIMEOUT", "NAT_PORT"}

var rcDigests = []string{"md5", "sha1", "sha256", "sha384", "sha512", "sha3_256", "sha3_512"}

// set gives a variable its value.
func (r *rcFile) set(vs rcValues, v rcValue) error {
	if err := rcVariables[v.variable](v.text); err == errRCNotYes {
		if strings.EqualFold(v.text, "yes") || v.text == "1" || strings.EqualFold(v.text, "true") {
			r.warn(v.line, "%s: to fwknop only Y means yes", v.variable)
		}
		if _, yes := vs[v.variable]; yes {
			r.warn(v.line, "%s: fwknop does not take an earlier Y back", v.variable)
		}
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: %w", v.variable, err)
	}
	sets := v.variable
	switch v.variable {
	case "ALLOW_IP":
		if strings.EqualFold(v.text, "resolve") { // and an address before or after it still counts
			sets = "RESOLVE"
		}
	case "RESOLVE_IP_HTTP", "RESOLVE_IP_HTTPS":
		sets = "RESOLVE"
	case "GPG_SIGNING_PW", "GPG_SIGNING_PW_BASE64":
		sets = strings.Replace(v.variable, "GPG_SIGNING_PW", "KEY", 1)
		r.warn(v.line, "%s: fwknop takes it for the %s", v.variable, sets)
	case "HMAC_KEY_FILE":
		sets = "KEY_FILE"
		r.warn(v.line, "%s: fwknop takes it for the %s", v.variable, sets)
	}
	if n, exact, _ := cNumber(v.text); !exact && slices.Contains(rcNumbers, v.variable) {
		r.warn(v.line, "%s: fwknop reads %q as %d", v.variable, v.text, n)
	}
	vs[sets] = v
	return nil
}

func rcAny(string) error { return nil }

// errRCNotYes is no fault: the variable stays as it is.
var errRCNotYes = errors.New("not yes")

func rcBool(v string) error {
	if v != "Y" && v != "y" {
		return errRCNotYes
	}
	return nil
}

func rcOneOf(words ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(words, strings.ToLower(v)) {
			return fmt.Errorf("%q is none of %s", v, strings.Join(words, ", "))
		}
		return nil
	}
}

func rcNumber(least, most int) func(string) error {
	return func(v string) error {
		if n, _, err := cNumber(v); err != nil || n < least || n > most {
			return fmt.Errorf("%q is not a number from %d to %d", v, least, most)
		}
		return nil
	}
}

// cNumber reads a number as C's strtol does: as far as there are digits, and 0
// if there are none.
func cNumber(v string) (n int, exact bool, err error) {
	end := len(v) - len(strings.TrimLeft(v, "+-"))
	for end < len(v) && v[end] >= '0' && v[end] <= '9' {
		end++
	}
	n, err = strconv.Atoi(v[:end])
	if errors.Is(err, strconv.ErrRange) {
		return 0, false, err
	}
	return n, err == nil && end == len(v), nil
}

// rcOffset reads a TIME_OFFSET, in seconds. fwknop takes all digits there are
// before the first letter of a unit, and steps over what else there is.
func rcOffset(v string) (seconds int, err error) {
	size, minus := strings.CutPrefix(v, "-")
	digits, unit := "", 1
	for _, c := range []byte(strings.ToLower(size)) {
		if c >= '0' && c <= '9' {
			digits += string(c)
			continue
		}
		if unit = map[byte]int{'s': 1, 'm': 60, 'h': 3600, 'd': 86400}[c]; unit > 0 {
			break
		}
		unit = 1
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil || n > 65536 || n*uint64(unit) > 1<<31-1 {
		return 0, fmt.Errorf("%q is not a time such as 90s, -5m or 1h", v)
	}
	seconds = int(n) * unit
	if minus {
		seconds = -seconds
	}
	return seconds, nil
}

func rcAllowIP(v string) error {
	if strings.EqualFold(v, "source") || strings.EqualFold(v, "resolve") {
		return nil
	}
	if a, err := netip.ParseAddr(v); err != nil || !a.Is4() {
		return fmt.Errorf("%q is neither an IPv4 address nor source nor resolve", v)
	}
	return nil
}

func rcBase64(v string) error {
	odd := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("+/=", r))
	}
	if strings.ContainsFunc(v, odd) {
		return errors.New("not base64")
	}
	return nil
}
