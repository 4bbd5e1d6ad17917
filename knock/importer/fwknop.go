package importer

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/portknock/portknock/knock/profile"
)

// The limits are in bytes. They and the rest of this file follow what the client of
// fwknop 2.6.10 does with its .fwknoprc, because its manual differs.
const (
	maxLine      = 1022 // fwknop reads the rest of a longer line as another line
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

// isFwknopLine reports whether a line sets one of fwknop's variables.
func isFwknopLine(line string) bool {
	words := strings.Fields(line)
	return len(words) > 1 && kinds[strings.TrimSuffix(words[0], ":")] != nil && words[1][0] != '='
}

// convertFwknop converts the .fwknoprc of fwknop's client. It accepts the form that fwknop
// itself saves: comments, [NAME], and one variable with its value on each line. For example,
// "SPA_SERVER_PORT 62201x" is an error, because it is not a plain number.
//
// The stanza [default] applies to all others. convertFwknop converts [default] itself only
// if it is chosen by name or is the only stanza. The profile of [default] gets the name of
// its server. As with fwknop, an error in a stanza that is not converted does not matter,
// except in [default].
func convertFwknop(f *source, data []byte, o Options) ([]Import, error) {
	if err := readFwknop(f, data); err != nil {
		return nil, err
	}
	chosen, defaults := f.sections, cmp.Or(f.named["default"], new(section))
	switch asked := f.named[strings.ToLower(o.Section)]; {
	case defaults.err != nil:
		return nil, defaults.err
	case o.Section != "" && asked == nil:
		return nil, fmt.Errorf("%s: the file has no stanza %q", f.name, o.Section)
	case o.Section != "":
		chosen = []*section{asked}
	case len(chosen) > 1:
		chosen = slices.DeleteFunc(slices.Clone(chosen), func(s *section) bool { return s == defaults })
		server, ok := defaults.values["SPA_SERVER"]
		defaults.warn(ok, server, "applies to the other stanzas and is not imported; to import it, give its name")
	}
	return f.convertAll("stanza", chosen, func(s *section) {
		s.inherit(defaults)
		s.convertStanza(o.Name)
	})
}

// readFwknop divides a file into stanzas.
func readFwknop(f *source, data []byte) error {
	return f.readLines(data, "fwknop", maxLine, func(line string, n int) error {
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case strings.HasPrefix(strings.TrimLeft(line, " \t"), "["):
			return beginStanza(f, line, n)
		case f.last() == nil:
			return f.fault(n, "fwknop ignores a line before the first stanza; move it below [default]")
		default:
			f.last().addFwknopLine(line, n)
		}
		return nil
	})
}

// beginStanza adds the stanza that a line begins.
func beginStanza(f *source, line string, n int) error {
	title := strings.TrimRight(trailingComment().ReplaceAllLiteralString(line, ""), " \t")
	name := strings.Trim(title, "[] \t")
	notAllowed := func(c rune) bool { return c == '[' || c == ']' || !unicode.IsPrint(c) }
	if name == "" || title != "["+name+"]" || strings.ContainsFunc(name, notAllowed) {
		return f.fault(n, "write the first line of a stanza as [NAME]")
	}
	return f.begin("stanza", name, strings.ToLower(name), n)
}

// addFwknopLine reads a line of a stanza, below [NAME]. Its errors never quote the whole line,
// because the line may contain a key.
func (s *section) addFwknopLine(line string, n int) {
	words := plainLine().FindStringSubmatch(trailingComment().ReplaceAllLiteralString(line, ""))
	if words == nil {
		s.err = cmp.Or(s.err, s.file.fault(n,
			"expected VARIABLE VALUE, without spaces in the value, such as SPA_SERVER vps.example"))
		return
	}
	v := value{words[1], words[2], n}
	known := kinds[v.variable]
	k := cmp.Or(known, word) // an unknown variable is refused before its kind matters
	s.refuse(known == nil, v, "fwknop does not know this variable")
	s.refuse(strings.ContainsAny(v.text, "#;"), v, "fwknop ends a value at # or ; (put a space before a comment, or use base64)")
	s.refuse(strings.ContainsAny(v.text[:1], "=:"), v, "remove the %q; fwknop reads it as a part of the value", v.text[:1])
	s.refuse(k.pattern != nil && !k.pattern().MatchString(v.text), v, "%q is not %s", v.text, k.expected)
	s.add(v)
}

// inherit copies the values of [default] that the stanza does not have. For some
// variables, fwknop keeps a part of the value of [default] although the stanza sets the
// variable again. inherit refuses these stanzas.
func (s *section) inherit(defaults *section) {
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

// lower returns the text of a variable in lower case. It returns "" if the stanza does
// not have the variable.
func (s *section) lower(variable string) string { return strings.ToLower(s.values[variable].text) }

// isYes reports whether the text of a variable is Y or y.
func (s *section) isYes(variable string) bool { return s.lower(variable) == "y" }

// convertStanza makes the stanza's Import. The profile gets the name, or that of the stanza if
// name is "".
func (s *section) convertStanza(name string) {
	v, proto := s.values, s.lower("SPA_SERVER_PROTO")
	server := v["SPA_SERVER"]
	s.leaveOut(s.isYes("USE_GPG"), v["USE_GPG"], "GnuPG is not supported")
	s.leaveOut(s.lower("ENCRYPTION_MODE") == "asymmetric", v["ENCRYPTION_MODE"], "GnuPG is not supported")
	s.leaveOut(proto == "icmp" || proto == "tcpraw", v["SPA_SERVER_PROTO"], "%s needs root and is not supported", proto)
	s.leaveOut(server.text == "", value{}, "it has no SPA_SERVER")
	s.setHostName(server, "SPA_SERVER", server.text)
	s.set(value{}, "Scheme", "fwknop")
	if name == "" && strings.EqualFold(s.name, "default") {
		name = server.text
	}
	s.setName(name, s.name)
	s.addOpenPorts()
	s.addKeys()
	s.addAllowIP()
	s.addOtherVariables()
	s.finish()
}

// addOpenPorts adds the settings for the ports to open and for the forwarding of a
// port. A NAT_PORT replaces the port of ACCESS.
func (s *section) addOpenPorts() {
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
func (s *section) addKeys() {
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
func (s *section) key(variable string, most int, keyword, suffix string) (from value, key []byte) {
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
func (s *section) addAllowIP() {
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
func (s *section) addOtherVariables() {
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
