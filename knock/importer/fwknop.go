package importer

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/portknock/portknock/knock/profile"
)

// The limits are in bytes. They and the rest of this file follow what the client of
// fwknop 2.6.10 does with its .fwknoprc, because its manual differs.
const (
	maxFile      = 4 << 20 // the importer's own limit, not fwknop's
	maxLine      = 1022    // fwknop reads the rest of a longer line as another line
	maxUser      = 29
	maxKey       = 32
	maxLegacyKey = 16
	maxHMACKey   = 128
)

// kind is a group of variables whose values must have the same form. If a value does
// not match the pattern, fwknop reads it differently from how a person reads it.
type kind struct {
	expected  string                // form of a value, for errors
	pattern   func() *regexp.Regexp // pattern of a value; nil if every value is allowed
	variables string                // variables; NAME=KEYWORD if setting KEYWORD takes the value unchanged
}

// These kinds contain all variables that fwknop knows. SERVER_RESOLVE_IPV4 does not
// need a setting, because portknock reaches every fwknopd by IPv4.
var (
	number = &kind{"a plain number such as 30", lazy(`^(0|[1-9][0-9]*)$`),
		`SPA_SERVER_PORT=SPAPort FW_TIMEOUT=SPATimeout NAT_PORT`}
	offset = &kind{"a plain time such as 90, -5m or 1h", lazy(`^-?(0|[1-9][0-9]*)[smhdSMHD]?$`), `TIME_OFFSET=TimeOffset`}
	yesNo  = &kind{"Y or N", lazy(`^[YyNn]$`),
		`RAND_PORT NAT_LOCAL USE_HMAC USE_GPG RESOLVE_IP_HTTP RESOLVE_IP_HTTPS RESOLVE_HTTP_ONLY SERVER_RESOLVE_IPV4`}
	word = &kind{variables: `SPA_SERVER SPA_SERVER_PROTO=SPAProtocol ACCESS ALLOW_IP RESOLVE_URL NAT_ACCESS SPOOF_USER=SPAUser
		DIGEST_TYPE=SPADigest ENCRYPTION_MODE=SPAMode KEY KEY_BASE64 HMAC_KEY HMAC_KEY_BASE64 HMAC_DIGEST_TYPE=HMACDigest`}
	// fwknop mistakes these variables for KEY, KEY_BASE64 or KEY_FILE.
	misread = &kind{variables: `GPG_SIGNING_PW GPG_SIGNING_PW_BASE64 HMAC_KEY_FILE`}
	// A profile has no settings for these variables.
	unsupported = &kind{variables: `KEY_FILE NAT_RAND_PORT SPA_SOURCE_PORT SPOOF_SOURCE_IP HTTP_USER_AGENT USE_WGET_USER_AGENT WGET_CMD
		USE_GPG_AGENT GPG_RECIPIENT GPG_SIGNER GPG_HOMEDIR GPG_EXE GPG_NO_SIGNING_PW NO_SAVE_ARGS VERBOSE`}
)

// kinds and keywords map each variable to its kind and to its keyword. The keyword is
// "" if no setting takes the value unchanged.
var kinds, keywords = byVariable(number, offset, yesNo, word, misread, unsupported)

// byVariable returns the maps kinds and keywords.
func byVariable(all ...*kind) (kinds map[string]*kind, keywords map[string]string) {
	kinds, keywords = make(map[string]*kind), make(map[string]string)
	for _, k := range all {
		for _, entry := range strings.Fields(k.variables) {
			variable, keyword, _ := strings.Cut(entry, "=")
			kinds[variable], keywords[variable] = k, keyword
		}
	}
	return kinds, keywords
}

const onePort = `(tcp|udp)/(0|[1-9][0-9]*)`

var (
	portPattern     = lazy(onePort)
	portsPattern    = lazy(`^` + onePort + `(,` + onePort + `)*$`)
	trailingComment = lazy(`[ \t][#;].*`) // a comment after a value
	plainLine       = lazy(`^[ \t]*([A-Z_]+(?:64|4)?):?[ \t]+([^ \t]+)[ \t]*$`)
	notInFileName   = lazy(`[^\pL\p{Nd}._-]`) // some systems refuse ":" or "%"
)

// lazy returns a function that compiles an expression at its first call. A login starts
// the command, which links this package, but does not import anything.
func lazy(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// rcFile is a .fwknoprc.
type rcFile struct {
	name     string
	stanzas  []*stanza
	named    map[string]*stanza // stanzas by name, in lower case
	warnings []string
}

// stanza is a line [NAME] and the lines below it. Only the first error of a stanza
// counts: after the error, no call has an effect. As with fwknop, the error matters only
// if the stanza is imported.
type stanza struct {
	file     *rcFile
	name     string
	line     int
	values   map[string]value
	settings []profile.Setting
	result   Import
	err      error
}

// value is a line that sets a variable.
type value struct {
	variable string
	text     string
	line     int // 0 if the stanza does not have the variable
}

// errLeftOut means that a stanza cannot become a profile. A warning says why.
var errLeftOut = errors.New("left out")

// Fwknop converts the .fwknoprc of fwknop's client. It converts the stanza stanzaName,
// or all stanzas if stanzaName is "". The stanza [default] applies to all others.
// Fwknop converts [default] itself only if it is chosen by name or is the only stanza.
// The profile of [default] gets the name of its server.
//
// Fwknop accepts the form that fwknop itself saves: comments, [NAME], and one variable
// with its value on each line. It returns an error for a line that fwknop reads
// differently from how it looks, and for a value that no setting accepts. For example,
// "SPA_SERVER_PORT 62201x" is an error, because it is not a plain number. Fwknop
// checks the variables of [default] and of the stanzas that it converts.
//
// A stanza may be correct but have no equivalent profile. Fwknop leaves out such a stanza,
// with a warning: for example a stanza with "USE_GPG Y", because portknock does not
// support GnuPG. If no stanza remains, Fwknop returns an error.
//
// Warnings and errors begin with "FILE:LINE: ", or "FILE: " without a line, and never
// contain any part of a key. Fwknop may return warnings together with an error.
func Fwknop(file string, data []byte, stanzaName string) (imports []Import, warnings []string, err error) {
	r := &rcFile{name: file, named: make(map[string]*stanza)}
	if err = r.read(data); err == nil {
		imports, err = r.convertStanzas(stanzaName)
	}
	return imports, r.warnings, err
}

// fault returns an error for a line.
func (r *rcFile) fault(line int, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", r.name, line, fmt.Errorf(format, args...))
}

// read divides a file into stanzas.
func (r *rcFile) read(data []byte) error {
	if len(data) > maxFile {
		return fmt.Errorf("%s: the file is larger than %d bytes", r.name, maxFile)
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		n++
		control := strings.IndexFunc(line, func(c rune) bool { return c < ' ' && c != '\t' })
		switch {
		case len(line) > maxLine:
			return r.fault(n, "longer than %d bytes, and fwknop reads the rest as another line; shorten it", maxLine)
		case control >= 0:
			return r.fault(n, "remove the control character %U", line[control])
		case line == "" || line[0] == '#' || line[0] == ';':
		case strings.HasPrefix(strings.TrimLeft(line, " \t"), "["):
			if err := r.beginStanza(line, n); err != nil {
				return err
			}
		case len(r.stanzas) == 0:
			return r.fault(n, "fwknop ignores a line before the first stanza; move it below [default]")
		default:
			r.stanzas[len(r.stanzas)-1].addLine(line, n)
		}
	}
	return nil
}

// beginStanza adds the stanza that a line begins.
func (r *rcFile) beginStanza(line string, n int) error {
	title := strings.TrimRight(trailingComment().ReplaceAllLiteralString(line, ""), " \t")
	name := strings.Trim(title, "[] \t")
	notAllowed := func(c rune) bool { return c == '[' || c == ']' || !unicode.IsPrint(c) }
	switch first := r.named[strings.ToLower(name)]; {
	case name == "" || title != "["+name+"]" || strings.ContainsFunc(name, notAllowed):
		return r.fault(n, "write the first line of a stanza as [NAME]")
	case first != nil:
		return r.fault(n, "stanza %s appears twice; move its lines into the stanza at line %d", title, first.line)
	}
	s := &stanza{file: r, name: name, line: n, values: make(map[string]value)}
	r.named[strings.ToLower(name)] = s
	r.stanzas = append(r.stanzas, s)
	return nil
}

// convertStanzas converts the stanza with the name, or all stanzas if the name is "".
func (r *rcFile) convertStanzas(name string) (imports []Import, err error) {
	chosen, defaults := r.stanzas, cmp.Or(r.named["default"], new(stanza))
	switch asked := r.named[strings.ToLower(name)]; {
	case defaults.err != nil:
		return nil, defaults.err
	case name != "" && asked == nil:
		return nil, fmt.Errorf("%s: the file has no stanza %q", r.name, name)
	case name != "":
		chosen = []*stanza{asked}
	case len(chosen) > 1:
		chosen = slices.DeleteFunc(slices.Clone(chosen), func(s *stanza) bool { return s == defaults })
		server, ok := defaults.values["SPA_SERVER"]
		defaults.warn(ok, server, "applies to the other stanzas and is not imported; to import it, give its name")
	}
	found := map[string]string{} // name of the first profile for each server
	for _, s := range chosen {
		s.inherit(defaults)
		if s.convert(); s.err == errLeftOut {
			continue
		}
		if s.err != nil {
			return nil, s.err
		}
		server := s.lower("SPA_SERVER")
		first := cmp.Or(found[server], s.result.Name)
		s.warn(first != s.result.Name, value{},
			"has the same SPA_SERVER as profile %s, which ssh's %%h finds; to use it, name profile %s", first, s.name)
		found[server] = first
		imports = append(imports, s.result)
	}
	if len(imports) == 0 {
		return nil, fmt.Errorf("%s: the file has no stanza that can be imported", r.name)
	}
	return imports, nil
}

// warn adds a warning if due is true. The warning is about a value, or about the whole
// stanza if from is the zero value.
func (s *stanza) warn(due bool, from value, format string, args ...any) {
	if due && s.err == nil {
		warning := s.file.fault(cmp.Or(from.line, s.line), "[%s] %w", s.name, fmt.Errorf(format, args...))
		s.file.warnings = append(s.file.warnings, warning.Error())
	}
}

// leaveOut is like warn, and also leaves out the stanza if due is true.
func (s *stanza) leaveOut(due bool, from value, format string, args ...any) {
	s.warn(due, from, "is left out: "+format, args...)
	if due && s.err == nil {
		s.err = errLeftOut
	}
}

// refuse sets the stanza's error, about a value, if due is true.
func (s *stanza) refuse(due bool, from value, format string, args ...any) {
	if due && s.err == nil {
		s.err = s.file.fault(from.line, from.variable+": "+format, args...)
	}
}

// addLine reads a line of a stanza, below [NAME]. Its errors never quote the whole line,
// because the line may contain a key.
func (s *stanza) addLine(line string, n int) {
	words := plainLine().FindStringSubmatch(trailingComment().ReplaceAllLiteralString(line, ""))
	if words == nil {
		s.err = cmp.Or(s.err, s.file.fault(n,
			"expected VARIABLE VALUE, without spaces in the value, such as SPA_SERVER vps.example"))
		return
	}
	v := value{words[1], words[2], n}
	known := kinds[v.variable]
	k := cmp.Or(known, word) // an unknown variable is refused before its kind matters
	first, twice := s.values[v.variable]
	s.refuse(known == nil, v, "fwknop does not know this variable")
	s.refuse(strings.ContainsAny(v.text, "#;"), v, "fwknop ends a value at # or ; (put a space before a comment, or use base64)")
	s.refuse(strings.ContainsAny(v.text[:1], "=:"), v, "remove the %q; fwknop reads it as a part of the value", v.text[:1])
	s.refuse(k.pattern != nil && !k.pattern().MatchString(v.text), v, "%q is not %s", v.text, k.expected)
	s.refuse(twice, v, "line %d sets it already; keep one of them", first.line)
	s.values[v.variable] = v
}

// inherit copies the values of [default] that the stanza does not have. For some
// variables, fwknop keeps a part of the value of [default] although the stanza sets the
// variable again. inherit refuses these stanzas.
func (s *stanza) inherit(defaults *stanza) {
	for _, fromDefault := range defaults.sorted() {
		v, has := s.values[fromDefault.variable]
		if !has {
			s.values[fromDefault.variable] = fromDefault
		}
		defaultText, stanzaText := strings.ToLower(fromDefault.text), strings.ToLower(v.text)
		kept := stanzaText == "resolve" && defaultText != "resolve"
		switch kinds[fromDefault.variable] {
		case yesNo:
			kept = defaultText == "y" && stanzaText == "n"
		case offset:
			kept = defaultText[0] == '-' // fwknop keeps the minus
		}
		s.refuse(has && v != fromDefault && kept, v, "fwknop keeps the value of line %d; remove one of them", fromDefault.line)
	}
}

// sorted returns the values in the order of the file.
func (s *stanza) sorted() []value {
	return slices.SortedFunc(maps.Values(s.values), func(a, b value) int { return a.line - b.line })
}

// lower returns the text of a variable in lower case. It returns "" if the stanza does
// not have the variable.
func (s *stanza) lower(variable string) string { return strings.ToLower(s.values[variable].text) }

// isYes reports whether the text of a variable is Y or y.
func (s *stanza) isYes(variable string) bool { return s.lower(variable) == "y" }

// set adds the setting that a value becomes. It refuses a text with a double quote,
// because a profile file would drop the quotes.
func (s *stanza) set(from value, keyword, text string) {
	s.refuse(strings.Contains(text, `"`), from, "%q cannot be written into a profile", from.text)
	if s.err == nil {
		var setting profile.Setting
		source := fmt.Sprintf("%s:%d: %s", s.file.name, from.line, from.variable)
		setting, s.err = profile.ParseSetting(source, keyword+" "+text)
		s.settings = append(s.settings, setting)
	}
}

// convert makes the stanza's Import.
func (s *stanza) convert() {
	v, proto := s.values, s.lower("SPA_SERVER_PROTO")
	server := v["SPA_SERVER"]
	s.leaveOut(s.isYes("USE_GPG"), v["USE_GPG"], "GnuPG is not supported")
	s.leaveOut(s.lower("ENCRYPTION_MODE") == "asymmetric", v["ENCRYPTION_MODE"], "GnuPG is not supported")
	s.leaveOut(proto == "icmp" || proto == "tcpraw", v["SPA_SERVER_PROTO"], "%s needs root and is not supported", proto)
	s.leaveOut(server.text == "", value{}, "it has no SPA_SERVER")
	s.set(server, "HostName", strings.ReplaceAll(server.text, "%", "%%"))
	s.set(value{}, "Scheme", "fwknop")
	if s.result.Name = s.name; strings.EqualFold(s.name, "default") {
		s.result.Name = server.text
	}
	err := profile.CheckHost(s.result.Name)
	s.leaveOut(err != nil, value{}, "%w", err)
	s.addOpenPorts()
	s.addKeys()
	s.addAllowIP()
	s.addOtherVariables()
	if s.err == nil {
		s.result.Block, err = profile.Block(s.result.Name, s.settings)
		s.leaveOut(err != nil, value{}, "%w", err)
	}
}

// addOpenPorts adds the settings for the ports to open and for the forwarding of a
// port. A NAT_PORT replaces the port of ACCESS.
func (s *stanza) addOpenPorts() {
	access, natPort := s.values["ACCESS"], s.values["NAT_PORT"]
	s.warn(access.text == "", access, "has no ACCESS (fwknop reads it from its command line); OpenPorts becomes 22/tcp")
	access.text = cmp.Or(access.text, "tcp/22")
	s.refuse(!portsPattern().MatchString(access.text), access, "%q is not a list of ports such as tcp/22,udp/53", access.text)
	s.refuse(natPort.line > 0 && strings.Contains(access.text, ","), natPort, "fwknop does not allow it with several ports in ACCESS")
	open := strings.Split(portPattern().ReplaceAllString(access.text, "$2/$1"), ",")
	forwarded, protocol, _ := strings.Cut(open[0], "/")
	if natPort.line > 0 {
		open[0] = natPort.text + "/" + protocol
	}
	s.set(cmp.Or(natPort, access), "OpenPorts", strings.Join(open, " "))

	forwardTo := s.values["NAT_ACCESS"]
	if s.isYes("NAT_LOCAL") {
		forwardTo = cmp.Or(forwardTo, s.values["SPA_SERVER"])
		s.set(s.values["NAT_LOCAL"], "NATLocal", "yes")
	}
	if forwardTo.line > 0 {
		host, port, ok := strings.Cut(strings.Replace(forwardTo.text, ":", ",", 1), ",")
		if !ok {
			port = forwarded
		}
		address, _ := netip.ParseAddr(host)
		s.leaveOut(!address.Is4(), forwardTo, "NAT to %q is not supported: it is not an IPv4 address", host)
		s.set(forwardTo, "NATAccess", host+","+port)
	}
}

// addKeys adds the key and the HMAC key.
func (s *stanza) addKeys() {
	from, key := s.key("KEY", maxKey, "KeyFile", ".key")
	legacy, useHMAC := s.lower("ENCRYPTION_MODE") == "legacy", s.values["USE_HMAC"]
	s.refuse(legacy && len(key) > maxLegacyKey, from, tooLong, maxLegacyKey, len(key))
	s.leaveOut(key == nil, value{}, "it has no KEY or KEY_BASE64; other keys are not read")
	from, hmac := s.key("HMAC_KEY", maxHMACKey, "HMACKeyFile", ".hmac")
	if hmac == nil {
		s.leaveOut(s.isYes("USE_HMAC"), useHMAC, "it has no HMAC_KEY or HMAC_KEY_BASE64; other HMAC keys are not read")
		return
	}
	s.refuse(legacy, from, "fwknop does not allow an HMAC key with ENCRYPTION_MODE legacy")
	s.refuse(bytes.Equal(key, hmac), from, "fwknop does not allow an HMAC key that is the same as the key")
	s.refuse(s.lower("USE_HMAC") == "n", useHMAC, "fwknop uses the HMAC key in spite of this; remove the HMAC key or this line")
}

const tooLong = "fwknop allows at most %d bytes in a key; this one has %d"

// key returns the key of a variable, or of the same variable in base64. It also returns
// the value that has the key. It adds the setting for the key, and a key file that
// stands beside the profile file and has the name of the profile.
func (s *stanza) key(variable string, most int, keyword, suffix string) (from value, key []byte) {
	plain, coded := s.values[variable], s.values[variable+"_BASE64"]
	from = cmp.Or(coded, plain)
	if from.line == 0 {
		return from, nil
	}
	key = []byte(from.text)
	if from == coded {
		s.refuse(plain.line > 0, from, "fwknop uses the %s of line %d; keep one of them", variable, plain.line)
		var err error
		key, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(coded.text, "="))
		s.refuse(err != nil, from, "not valid base64; it may be incomplete")
	}
	s.refuse(len(key) > most, from, tooLong, most, len(key))
	file := notInFileName().ReplaceAllStringFunc(strings.ToLower(s.result.Name), func(c string) string { return fmt.Sprintf("_%x", []rune(c)[0]) })
	// The file holds the key in base64, because the key may have any bytes and may end
	// with a newline.
	text := "base64:" + base64.StdEncoding.EncodeToString(key) + "\n"
	s.result.Keys = append(s.result.Keys, Key{file + suffix, []byte(text)})
	s.settings = append(s.settings, profile.Setting{Keyword: keyword, Value: file + suffix})
	return from, key
}

// addAllowIP adds the setting for the address to open the ports for.
func (s *stanza) addAllowIP() {
	allowIP, url := s.values["ALLOW_IP"], s.values["RESOLVE_URL"]
	resolve := s.isYes("RESOLVE_IP_HTTPS") || s.isYes("RESOLVE_IP_HTTP")
	switch text := strings.ToLower(allowIP.text); {
	case text == "resolve", text == "" && resolve:
		address, scheme := cmp.Or(url.text, "www.cipherdyne.org/cgi-bin/myip"), "https://"
		if s.isYes("RESOLVE_HTTP_ONLY") {
			scheme = "http://"
		}
		// The scheme also keeps curl from reading the address as an option.
		if !strings.HasPrefix(address, "https://") && !strings.HasPrefix(address, "http://") {
			address = scheme + address
		}
		s.warn(true, url, "asks a web page (AllowIPCommand curl), which must print only the address")
		s.set(url, "AllowIPCommand", "curl -4 -fsS "+address)
	case text == "", text == "0.0.0.0":
		// fwknop does not save its option -s, so the text may be empty.
		s.warn(text == "", allowIP, "has no ALLOW_IP (fwknop reads it from its command line); AllowIP becomes source")
		s.set(allowIP, "AllowIP", "source")
	default:
		s.refuse(resolve, allowIP, "prevents resolving; remove it, or RESOLVE_IP_HTTP and RESOLVE_IP_HTTPS")
		s.set(allowIP, "AllowIP", text)
	}
}

// addOtherVariables adds the settings for values that stay unchanged. It warns about
// variables without a matching setting.
func (s *stanza) addOtherVariables() {
	if random := s.values["RAND_PORT"]; s.isYes("RAND_PORT") {
		s.values["SPA_SERVER_PORT"] = value{"SPA_SERVER_PORT", "random", random.line}
	}
	var ignored []string
	for _, v := range s.sorted() {
		k, keyword, text := kinds[v.variable], keywords[v.variable], strings.ToLower(v.text)
		s.refuse(k == misread, v, "fwknop reads it as KEY, KEY_BASE64 or KEY_FILE; remove it or use that name")
		s.refuse(keyword == "SPAUser" && len(v.text) > maxUser, v, "fwknop cuts the name after %d bytes; shorten it", maxUser)
		switch {
		case k == unsupported, keyword == "SPAProtocol" && text == "udpraw": // same packet as udp for the server
			ignored = append(ignored, fmt.Sprintf("%s (line %d)", v.variable, v.line))
		case keyword == "SPAUser":
			s.set(v, keyword, v.text)
		case keyword != "":
			s.set(v, keyword, text)
		}
	}
	s.warn(ignored != nil, value{}, "has variables that are not imported: %s", strings.Join(ignored, ", "))
}
