package importer

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/portknock/portknock/knock/profile"
)

// How fwknop's client reads its .fwknoprc was found out by asking fwknop 2.6.10.
// Its manual differs. The limits are fwknop's, in bytes.
const (
	maxFile      = 4 << 20 // ours
	maxLine      = 1022    // the rest of a longer line is another line to fwknop
	maxUser      = 29
	maxKey       = 32
	maxLegacyKey = 16
	maxHMACKey   = 128
)

// kind is how the value of a variable must look, or what becomes of it.
type kind int

const (
	word kind = iota + 1
	number
	offset
	yesNo
	misread // fwknop takes the value for that of another variable
	without // no setting stands for it
)

// fwknopKinds are the variables that fwknop knows. SERVER_RESOLVE_IPV4 needs no
// setting: portknock reaches every fwknopd by IPv4.
var fwknopKinds = kinds(map[kind]string{
	word: `SPA_SERVER SPA_SERVER_PROTO ACCESS ALLOW_IP RESOLVE_URL NAT_ACCESS SPOOF_USER DIGEST_TYPE ENCRYPTION_MODE
		KEY KEY_BASE64 HMAC_KEY HMAC_KEY_BASE64 HMAC_DIGEST_TYPE`,
	number:  `SPA_SERVER_PORT FW_TIMEOUT NAT_PORT`,
	offset:  `TIME_OFFSET`,
	yesNo:   `RAND_PORT NAT_LOCAL USE_HMAC USE_GPG RESOLVE_IP_HTTP RESOLVE_IP_HTTPS RESOLVE_HTTP_ONLY SERVER_RESOLVE_IPV4`,
	misread: `GPG_SIGNING_PW GPG_SIGNING_PW_BASE64 HMAC_KEY_FILE`,
	without: `KEY_FILE NAT_RAND_PORT SPA_SOURCE_PORT SPOOF_SOURCE_IP HTTP_USER_AGENT USE_WGET_USER_AGENT WGET_CMD
		USE_GPG_AGENT GPG_RECIPIENT GPG_SIGNER GPG_HOMEDIR GPG_EXE GPG_NO_SIGNING_PW NO_SAVE_ARGS VERBOSE`,
})

func kinds(names map[kind]string) map[string]kind {
	all := make(map[string]kind)
	for k, list := range names {
		for _, name := range strings.Fields(list) {
			all[name] = k
		}
	}
	return all
}

// fwknopKeywords are the keywords of variables whose values carry over as they are.
var fwknopKeywords = map[string]string{
	"SPA_SERVER_PORT":  "SPAPort",
	"SPA_SERVER_PROTO": "SPAProtocol",
	"FW_TIMEOUT":       "SPATimeout",
	"TIME_OFFSET":      "TimeOffset",
	"DIGEST_TYPE":      "SPADigest",
	"ENCRYPTION_MODE":  "SPAMode",
	"SPOOF_USER":       "SPAUser",
	"HMAC_DIGEST_TYPE": "HMACDigest",
}

// rcFile is a .fwknoprc.
type rcFile struct {
	name     string
	stanzas  []*stanza
	named    map[string]*stanza // by their names in lower case
	warnings []string
}

// stanza is a line [NAME] and the lines below it.
type stanza struct {
	name  string
	line  int
	lines []value // as they stand in the file: the whole line is the text
}

// value is what a stanza gives to a variable.
type value struct {
	variable string
	text     string
	line     int // 0 if the stanza does not have the variable
}

// Fwknop reads the .fwknoprc of fwknop's client: the stanza of that name, or all
// if the name is "". [default] applies to all others. It is imported itself only
// if it is asked for or alone, and its profile is called like its server.
//
// The reader takes what fwknop itself saves: comments, [NAME], and a variable and
// its value on each line. A line that fwknop does not read as it looks is an
// error, and so is a value that no setting takes. A stanza that no profile can
// stand for is left out with a warning. If no stanza is left, that is an error.
//
// Warnings and errors begin "NAME:LINE: " and never hold any part of a key. There
// may be warnings beside an error.
func Fwknop(name string, data []byte, stanza string) (imports []Import, warnings []string, err error) {
	r, err := readFwknop(name, data)
	if err != nil {
		return nil, nil, err
	}
	imports, err = r.imports(stanza)
	return imports, r.warnings, err
}

func (r *rcFile) fault(line int, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", r.name, line, fmt.Errorf(format, args...))
}

func (r *rcFile) warn(line int, format string, args ...any) {
	r.warnings = append(r.warnings, r.fault(line, format, args...).Error())
}

// readFwknop parts a file into stanzas. It does not look at the lines in them:
// fwknop finds no fault in a stanza that is not asked for.
func readFwknop(name string, data []byte) (*rcFile, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxFile)
	}
	r := &rcFile{name: name, named: make(map[string]*stanza)}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		control := strings.IndexFunc(line, func(c rune) bool { return c < ' ' && c != '\t' })
		switch {
		case len(line) > maxLine:
			return nil, r.fault(n, "longer than %d bytes, and fwknop reads the rest as another line: shorten it", maxLine)
		case control >= 0:
			return nil, r.fault(n, "remove the control character %U", line[control])
		case line == "" || line[0] == '#' || line[0] == ';':
		case strings.HasPrefix(strings.TrimLeft(line, " \t"), "["):
			if err := r.begin(line, n); err != nil {
				return nil, r.fault(n, "%w", err)
			}
		case len(r.stanzas) == 0:
			return nil, r.fault(n, "fwknop ignores a line before the first stanza: put it below [default]")
		default:
			last := r.stanzas[len(r.stanzas)-1]
			last.lines = append(last.lines, value{text: line, line: n})
		}
	}
	return r, nil
}

// begin adds the stanza that a line begins.
func (r *rcFile) begin(line string, n int) error {
	title := strings.TrimRight(uncomment(line), " \t")
	name := strings.Trim(title, "[] \t")
	odd := func(r rune) bool { return r == '[' || r == ']' || !unicode.IsPrint(r) }
	if name == "" || title != "["+name+"]" || strings.ContainsFunc(name, odd) {
		return errors.New("write the first line of a stanza as [NAME]")
	}
	key := strings.ToLower(name)
	if first := r.named[key]; first != nil {
		return fmt.Errorf("%s again: fwknop joins it to line %d, so write it there", title, first.line)
	}
	r.named[key] = &stanza{name: name, line: n}
	r.stanzas = append(r.stanzas, r.named[key])
	return nil
}

// uncomment removes a comment behind a value, which begins after a blank.
func uncomment(line string) string {
	for i, c := range line {
		if (c == '#' || c == ';') && i > 0 && (line[i-1] == ' ' || line[i-1] == '\t') {
			return line[:i]
		}
	}
	return line
}

// parseVariable reads one line of a stanza. No error quotes the line, which may
// hold a key.
func parseVariable(line string) (variable, text string, err error) {
	words := strings.FieldsFunc(uncomment(line), func(c rune) bool { return c == ' ' || c == '\t' })
	if len(words) != 2 {
		return "", "", errors.New("write a variable, a blank and a value without blanks, such as SPA_SERVER vps.example")
	}
	variable, text = strings.TrimSuffix(words[0], ":"), words[1]
	k := fwknopKinds[variable]
	switch {
	case k == 0 && strings.Trim(variable, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "":
		err = errors.New("a line begins with a variable in capitals, such as SPA_SERVER")
	case k == 0:
		err = fmt.Errorf("unknown variable %q", variable)
	case strings.ContainsAny(text, "#;"):
		err = fmt.Errorf("%s: fwknop ends a value at # and ;: put a blank before a comment, or write a key in base64", variable)
	case text[0] == '=' || text[0] == ':':
		err = fmt.Errorf("%s: remove the %q, which is part of the value for fwknop", variable, text[:1])
	case k == number && !isNumber(text):
		err = fmt.Errorf("%s: %q is not a plain number such as 30", variable, text)
	case k == offset && !isOffset(text):
		err = fmt.Errorf("%s: %q is not a plain time such as 90, -5m or 1h", variable, text)
	case k == yesNo && !strings.EqualFold(text, "Y") && !strings.EqualFold(text, "N"):
		err = fmt.Errorf("%s: write Y or N; for fwknop only Y means yes", variable)
	}
	return variable, text, err
}

func isNumber(s string) bool {
	return s == "0" || s != "" && s[0] != '0' && strings.Trim(s, "0123456789") == ""
}

// isOffset reports whether a time is plain: digits with one unit at most. Of two
// units fwknop reads the first.
func isOffset(s string) bool {
	s = strings.TrimPrefix(s, "-")
	if s != "" && strings.ContainsRune("smhdSMHD", rune(s[len(s)-1])) {
		s = s[:len(s)-1]
	}
	return isNumber(s)
}

// values reads a stanza. Its variables come before those of [default].
func (r *rcFile) values(defaults map[string]value, s *stanza) (map[string]value, error) {
	own := make(map[string]value)
	for _, line := range s.lines {
		variable, text, err := parseVariable(line.text)
		if err != nil {
			return nil, r.fault(line.line, "%w", err)
		}
		if first, twice := own[variable]; twice {
			return nil, r.fault(line.line, "%s again: line %d has it already; keep one", variable, first.line)
		}
		if d := defaults[variable]; d.line > 0 && d.stays(text) {
			return nil, r.fault(line.line, "%s: fwknop keeps what line %d has: remove one of them", variable, d.line)
		}
		own[variable] = value{variable, text, line.line}
	}
	all := maps.Clone(defaults)
	maps.Copy(all, own)
	return all, nil
}

// stays reports whether something of a value of [default] counts for fwknop although
// a stanza has another text.
func (v value) stays(text string) bool {
	switch {
	case fwknopKinds[v.variable] == yesNo:
		return strings.EqualFold(v.text, "Y") && strings.EqualFold(text, "N")
	case fwknopKinds[v.variable] == offset:
		return strings.HasPrefix(v.text, "-") // the minus
	}
	return strings.EqualFold(text, "resolve") && !strings.EqualFold(v.text, "resolve")
}

// imports converts the stanza of that name, or all.
func (r *rcFile) imports(name string) (imports []Import, err error) {
	defaults, byDefault := map[string]value{}, r.named["default"]
	if byDefault != nil {
		if defaults, err = r.values(defaults, byDefault); err != nil {
			return nil, err
		}
	}
	chosen := r.stanzas
	if name != "" {
		if chosen = nil; r.named[strings.ToLower(name)] != nil {
			chosen = []*stanza{r.named[strings.ToLower(name)]}
		}
	} else if len(chosen) > 1 && byDefault != nil {
		chosen = slices.DeleteFunc(slices.Clone(chosen), func(s *stanza) bool { return s == byDefault })
		if server, ok := defaults["SPA_SERVER"]; ok {
			r.warn(server.line, "[default] applies to the other stanzas and is not imported; import it by its name")
		}
	}
	switch {
	case len(chosen) == 0 && name != "":
		return nil, fmt.Errorf("%s: no stanza %q in it", r.name, name)
	case len(chosen) == 0:
		return nil, fmt.Errorf("%s: no stanza in it", r.name)
	}
	found := map[string]string{} // the first profile of each server
	for _, s := range chosen {
		c := &conversion{file: r, stanza: s, values: defaults}
		if s != byDefault {
			if c.values, err = r.values(defaults, s); err != nil {
				return nil, err
			}
		}
		if c.convert(); c.err == errLeftOut {
			continue
		}
		if c.err != nil {
			return nil, c.err
		}
		server := strings.ToLower(c.values["SPA_SERVER"].text)
		if first, ok := found[server]; ok {
			r.warn(s.line, "[%s] has the SPA_SERVER of %s, which is the profile that ssh's %%h finds: name the profile %[1]s to use it", s.name, first)
		} else {
			found[server] = c.made.Name
		}
		imports = append(imports, c.made)
	}
	if len(imports) == 0 {
		return nil, fmt.Errorf("%s: no stanza that can be imported", r.name)
	}
	return imports, nil
}

// errLeftOut means that no profile can stand for a stanza; there is a warning.
var errLeftOut = errors.New("left out")

// conversion makes an Import of a stanza. Its first error counts, and all that
// follows is without effect.
type conversion struct {
	made     Import
	file     *rcFile
	stanza   *stanza
	values   map[string]value
	settings []profile.Setting
	last     value // the variable that was asked for last: errors are about it
	err      error
}

// get returns the text of a variable, "" if the stanza does not have it.
func (c *conversion) get(variable string) string {
	c.last = c.values[variable]
	return c.last.text
}

func (c *conversion) yes(variable string) bool { return strings.EqualFold(c.get(variable), "Y") }

// line returns where the variable that was asked for last is, or the stanza.
func (c *conversion) line() int { return cmp.Or(c.last.line, c.stanza.line) }

func (c *conversion) warn(format string, args ...any) {
	if c.err == nil {
		c.file.warn(c.line(), "[%s] %w", c.stanza.name, fmt.Errorf(format, args...))
	}
}

func (c *conversion) leaveOut(format string, args ...any) {
	c.warn("is left out: %w", fmt.Errorf(format, args...))
	c.err = cmp.Or(c.err, errLeftOut)
}

func (c *conversion) fail(format string, args ...any) {
	if c.err == nil {
		c.err = c.file.fault(c.line(), "%s: %w", cmp.Or(c.last.variable, "["+c.stanza.name+"]"), fmt.Errorf(format, args...))
	}
}

// set adds a setting.
func (c *conversion) set(keyword string, words ...string) {
	s, err := profile.NewSetting(keyword, words...)
	if err != nil {
		c.fail("%w", err)
	}
	c.settings = append(c.settings, s)
}

// convert fills in the Import.
func (c *conversion) convert() {
	if c.yes("USE_GPG") || strings.EqualFold(c.get("ENCRYPTION_MODE"), "asymmetric") {
		c.leaveOut("GnuPG is not supported")
	}
	if proto := strings.ToLower(c.get("SPA_SERVER_PROTO")); proto == "icmp" || proto == "tcpraw" {
		c.leaveOut("%s needs root, and is not supported", proto)
	}
	server := c.get("SPA_SERVER")
	if server == "" {
		c.leaveOut("it has no SPA_SERVER")
	}
	c.set("HostName", strings.ReplaceAll(server, "%", "%%"))
	c.set("Scheme", "fwknop")
	c.last = value{}
	if c.made.Name = c.stanza.name; strings.EqualFold(c.made.Name, "default") {
		c.made.Name = server
	}
	if err := profile.CheckHost(c.made.Name); err != nil {
		c.leaveOut("%w", err)
	}
	random := c.yes("RAND_PORT")
	if random {
		c.set("SPAPort", "random")
	}
	c.ports()
	c.keys()
	c.allow()
	var left []string
	for _, v := range slices.SortedFunc(maps.Values(c.values), func(a, b value) int { return a.line - b.line }) {
		text := c.get(v.variable)
		switch k, keyword := fwknopKinds[v.variable], fwknopKeywords[v.variable]; {
		case k == misread:
			c.fail("fwknop takes it for KEY, KEY_BASE64 or KEY_FILE: remove it, or call it so")
		case k == without, strings.EqualFold(text, "udpraw"): // udp looks the same to the server
			left = append(left, fmt.Sprintf("%s (line %d)", v.variable, v.line))
		case keyword == "", keyword == "SPAPort" && random:
		case keyword == "SPAUser" && len(text) > maxUser:
			c.fail("fwknop cuts a name after %d bytes: shorten it", maxUser)
		case keyword == "SPAUser":
			c.set(keyword, text)
		default:
			c.set(keyword, strings.ToLower(text))
		}
	}
	c.last = value{}
	if left != nil {
		c.warn("has what no setting stands for: %s", strings.Join(left, ", "))
	}
	if c.err != nil {
		return
	}
	var err error
	if c.made.Block, err = profile.Block(c.made.Name, c.settings); err != nil {
		c.leaveOut("%w", err)
	}
}

// ports says what to open, and where a server forwards the port to. What NAT_PORT
// gives is asked for instead of the port of ACCESS.
func (c *conversion) ports() {
	access := c.get("ACCESS")
	if access == "" {
		c.warn("has no ACCESS, which fwknop wants on its command line then; OpenPorts is 22/tcp")
	}
	var ports []string
	for word := range strings.SplitSeq(cmp.Or(access, "tcp/22"), ",") {
		protocol, port, _ := strings.Cut(word, "/")
		if !isNumber(port) || protocol != "tcp" && protocol != "udp" {
			c.fail("%q is not ports such as tcp/22,udp/53", access)
		}
		ports = append(ports, port+"/"+protocol)
	}
	forwarded, protocol, _ := strings.Cut(ports[0], "/")
	if c.values["NAT_PORT"].line > 0 {
		ports[0] = c.get("NAT_PORT") + "/" + protocol
		if len(ports) > 1 {
			c.fail("fwknop refuses it with several ports in ACCESS")
		}
	}
	c.set("OpenPorts", ports...)

	local := c.yes("NAT_LOCAL")
	to := c.get("NAT_ACCESS")
	if to == "" && local {
		to = c.get("SPA_SERVER")
	}
	if to == "" {
		return
	}
	host, port, ok := strings.Cut(strings.Replace(to, ":", ",", 1), ",")
	if a, err := netip.ParseAddr(host); err != nil || !a.Is4() {
		c.leaveOut("NAT to %q, which is not an IPv4 address, is not supported", host)
	}
	if !ok {
		port = forwarded
	}
	c.set("NATAccess", host+","+port)
	if local {
		c.set("NATLocal", "yes")
	}
}

// keys takes the key and the HMAC key.
func (c *conversion) keys() {
	legacy, most := strings.EqualFold(c.get("ENCRYPTION_MODE"), "legacy"), maxKey
	if legacy {
		most = maxLegacyKey
	}
	key := c.key("KEY", most)
	if len(key) == 0 {
		c.leaveOut("it has neither KEY nor KEY_BASE64, and no other key is read")
	}
	c.keyFile("KeyFile", ".key", key)
	hmac := c.key("HMAC_KEY", maxHMACKey)
	switch {
	case len(hmac) == 0:
		if c.yes("USE_HMAC") {
			c.leaveOut("it has neither HMAC_KEY nor HMAC_KEY_BASE64, and no other HMAC key is read")
		}
		return
	case legacy:
		c.fail("fwknop refuses an HMAC key with ENCRYPTION_MODE legacy")
	case bytes.Equal(key, hmac):
		c.fail("fwknop refuses an HMAC key that is the key")
	case strings.EqualFold(c.get("USE_HMAC"), "N"):
		c.fail("fwknop uses an HMAC key that it has: remove the key or this")
	}
	c.keyFile("HMACKeyFile", ".hmac", hmac)
}

// key returns the key of a variable, or of the same variable in base64; none if the
// stanza has neither.
func (c *conversion) key(variable string, most int) []byte {
	plain, coded := c.values[variable], c.values[variable+"_BASE64"]
	c.last = cmp.Or(coded, plain)
	key := []byte(plain.text)
	if coded.line > 0 {
		if plain.line > 0 {
			c.fail("fwknop takes the %s of line %d: keep one of them", variable, plain.line)
		}
		var err error
		if key, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(coded.text, "=")); err != nil || len(key) == 0 {
			c.fail("not base64: is it all there?")
		}
	}
	if len(key) > most {
		c.fail("fwknop takes %d bytes of a key at most, and these are %d", most, len(key))
	}
	return key
}

// keyFile refers to a file beside the profile file that is called like the
// profile.
func (c *conversion) keyFile(keyword, suffix string, key []byte) {
	var file strings.Builder
	for _, r := range strings.ToLower(c.made.Name) {
		if unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune(".-_", r) {
			file.WriteRune(r)
		} else {
			fmt.Fprintf(&file, "_%x", r) // not every system has ":" and "%" in the names of files
		}
	}
	file.WriteString(suffix)
	// Not as it stands: it may be of any bytes, and end with a newline.
	text := "base64:" + base64.StdEncoding.EncodeToString(key) + "\n"
	c.made.Keys = append(c.made.Keys, Key{file.String(), []byte(text)})
	c.set(keyword, file.String())
}

// allow says for whom to open.
func (c *conversion) allow() {
	resolve := c.yes("RESOLVE_IP_HTTPS") || c.yes("RESOLVE_IP_HTTP")
	v := strings.ToLower(c.get("ALLOW_IP"))
	switch {
	case v == "" && !resolve:
		// fwknop does not save its option -s.
		c.warn("has no ALLOW_IP, which fwknop wants on its command line then; AllowIP is source")
		v = "source"
	case v == "0.0.0.0":
		v = "source"
	case v != "" && v != "resolve" && resolve:
		c.fail("with it fwknop does not resolve: remove it, or RESOLVE_IP_HTTP and RESOLVE_IP_HTTPS")
	}
	if v != "" && v != "resolve" {
		c.set("AllowIP", v)
		return
	}
	scheme := "https://"
	if c.yes("RESOLVE_HTTP_ONLY") {
		scheme = "http://"
	}
	address := cmp.Or(c.get("RESOLVE_URL"), "www.cipherdyne.org/cgi-bin/myip")
	// With a scheme it cannot be an option to curl either.
	if !strings.HasPrefix(address, "https://") && !strings.HasPrefix(address, "http://") {
		address = scheme + address
	}
	c.warn("asks a web page for the address, which becomes AllowIPCommand curl: it must answer with the address alone")
	c.set("AllowIPCommand", "curl", "-4", "-fsS", address)
}
