package profile

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
)

// Import is a profile out of another program's file.
type Import struct {
	Name     string // as a Host line takes it
	Settings []Setting
	Keys     []ImportedKey
}

// ImportedKey is a key that an [Import] refers to, as a KeyFile or an HMACKeyFile.
type ImportedKey struct {
	File string // its name, in the folder of the profile file
	Key  knock.Key
}

// Text returns what to write into the file.
func (k ImportedKey) Text() []byte {
	// Not as it stands: it may be of any bytes, and end with a newline.
	return []byte("base64:" + base64.StdEncoding.EncodeToString(k.Key.Bytes()) + "\n")
}

// ImportFwknop reads a .fwknoprc as the client of fwknop 2.6.10 does, of which it
// takes the stanza of that name, or all if that is "". [default] is one only if it
// is asked for or alone, and then called like its server. A stanza that no profile
// can stand for is left out, with a warning; that nothing is left is an error. So
// is whatever fwknop would refuse, in a stanza that is asked for or in [default].
//
// Warnings and errors begin "NAME:LINE: " and hold nothing of a key. There may be
// warnings beside an error.
func ImportFwknop(name string, data []byte, stanza string) (imports []Import, warnings []string, err error) {
	r, err := parseRC(name, data)
	if err != nil {
		return nil, nil, err
	}
	var defaults rcValues
	if r.defaults != nil {
		if defaults, err = r.values(nil, r.defaults); err != nil {
			return nil, r.warnings, err
		}
	}
	stanzas, err := r.choose(stanza)
	if err != nil {
		return nil, r.warnings, err
	}
	if stanza == "" && len(r.stanzas) > 0 && defaults.have("SPA_SERVER") {
		r.warn(r.defaults.line, "%s only underlies the other stanzas; -n default imports it alone", r.defaults)
	}
	found := map[string]string{} // by its server, the first profile
	for _, s := range stanzas {
		vs, err := r.values(defaults, s)
		if err != nil {
			return nil, r.warnings, err
		}
		i := &importer{rcFile: r, stanza: s, rcValues: vs}
		err = i.convert()
		_, unfit := errors.AsType[errUnfit](err)
		switch {
		case unfit:
			r.warn(i.line, "%s is left out: %w", s, err)
		case err != nil:
			return nil, r.warnings, fault(name, i.line, "%w", err)
		default:
			server := strings.ToLower(vs["SPA_SERVER"].text)
			if first, ok := found[server]; ok {
				r.warn(s.line, "%s has the same SPA_SERVER as %s, which is what ssh's %%h finds: for this one say portknock --profile %s", s, first, i.Name)
			} else {
				found[server] = i.Name
			}
			imports = append(imports, i.Import)
		}
	}
	if len(imports) == 0 {
		return nil, r.warnings, fmt.Errorf("%s: no stanza that can be imported", name)
	}
	return imports, r.warnings, nil
}

// choose returns the stanzas that are asked for.
func (r *rcFile) choose(name string) ([]*rcStanza, error) {
	switch s := r.named[strings.ToLower(name)]; {
	case name != "" && s == nil:
		return nil, fmt.Errorf("%s: no stanza %s", r.name, &rcStanza{name: name})
	case name != "":
		return []*rcStanza{s}, nil
	case len(r.named) == 0:
		return nil, fmt.Errorf("%s: no stanza in it", r.name)
	case len(r.stanzas) == 0:
		return []*rcStanza{r.defaults}, nil
	}
	return r.stanzas, nil
}

// errUnfit says why no profile can stand for a stanza.
type errUnfit string

func (e errUnfit) Error() string { return string(e) }

func (vs rcValues) have(name string) bool {
	_, ok := vs[name]
	return ok
}

// importer makes a profile of a stanza.
type importer struct {
	*rcFile
	stanza *rcStanza
	rcValues
	Import
	line int // to blame for what comes next
}

// at turns to a variable, and to its stanza if it has none.
func (i *importer) at(variable string) rcValue {
	v, ok := i.rcValues[variable]
	i.line = v.line
	if !ok {
		i.line = i.stanza.line
	}
	return v
}

// add appends a setting, as far as it can be checked alone.
func (i *importer) add(keyword string, words ...string) error {
	for _, w := range words {
		if _, err := clean(w); err != nil || strings.Contains(w, `"`) {
			return fmt.Errorf("%q cannot be written into a profile", w)
		}
	}
	s, err := newSetting(token{keyword: keyword, words: words})
	if err != nil {
		return err
	}
	i.Settings = append(i.Settings, s)
	return nil
}

// convert fills in the Import.
func (i *importer) convert() error {
	for _, step := range []func() error{
		i.unfit, i.server, i.ports, i.keys, i.packet, i.allow, i.nat, i.hmac, i.contradiction,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	i.leftovers()
	slices.SortStableFunc(i.Settings, func(a, b Setting) int {
		place := func(s Setting) int {
			return slices.IndexFunc(keywords, func(k keyword) bool { return k.name == s.Keyword })
		}
		return place(a) - place(b)
	})
	return nil
}

// unfit tells stanzas for which there is no profile.
func (i *importer) unfit() error {
	if i.have("USE_GPG") {
		i.at("USE_GPG")
		return errUnfit("GnuPG is not supported")
	}
	switch mode := strings.ToLower(i.at("ENCRYPTION_MODE").text); {
	case mode == "asymmetric":
		return errUnfit("GnuPG is not supported")
	case mode == "legacy" && (i.have("HMAC_KEY") || i.have("HMAC_KEY_BASE64") || i.have("USE_HMAC")):
		return errors.New("ENCRYPTION_MODE: legacy has no HMAC, and fwknop refuses both together")
	}
	switch proto := strings.ToLower(i.at("SPA_SERVER_PROTO").text); proto {
	case "icmp", "tcpraw":
		return errUnfit(proto + " needs root, and is not supported")
	}
	return nil
}

// server says what to call the profile and where its server is.
func (i *importer) server() error {
	server := i.at("SPA_SERVER")
	if server.text == "" {
		return errUnfit("it has no SPA_SERVER")
	}
	name := i.stanza.name
	if i.stanza == i.defaults {
		name = server.text
	}
	i.line = i.stanza.line
	if p, err := parsePattern(name); err != nil || !p.literal() {
		return errUnfit("a profile cannot be called so")
	}
	i.Name = name
	i.at("SPA_SERVER")
	if err := i.add("HostName", strings.ReplaceAll(server.text, "%", "%%")); err != nil {
		return fmt.Errorf("SPA_SERVER: %w", err)
	}
	if i.have("SERVER_RESOLVE_IPV4") {
		if err := i.add("AddressFamily", "inet"); err != nil {
			return err
		}
	}
	return i.add("Scheme", "fwknop")
}

// accessPorts returns what ACCESS asks for; without one, ssh's port.
func (i *importer) accessPorts() ([]knock.PortRange, error) {
	access := i.at("ACCESS")
	if access.text == "" {
		return []knock.PortRange{{First: 22, Last: 22}}, nil
	}
	var ports []knock.PortRange
	for word := range strings.SplitSeq(access.text, ",") {
		protocol, number, _ := strings.Cut(word, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || protocol != "tcp" && protocol != "udp" {
			return nil, fmt.Errorf("ACCESS: %q is not ports such as tcp/22,udp/53", access.text)
		}
		p := knock.PortRange{First: uint16(n), Last: uint16(n)}
		if protocol == "udp" {
			p.Transport = knock.UDP
		}
		if !slices.Contains(ports, p) {
			ports = append(ports, p)
		}
	}
	return ports, nil
}

// ports says what to open.
func (i *importer) ports() error {
	ports, err := i.accessPorts()
	if err != nil {
		return err
	}
	if !i.have("ACCESS") {
		i.warn(i.line, "%s has no ACCESS, which fwknop wants on its command line then; OpenPorts is %v", i.stanza, ports[0])
	}
	// What NAT_PORT gives stands in the packet instead.
	if n, _, _ := cNumber(i.at("NAT_PORT").text); n > 0 {
		if len(ports) > 1 {
			return errors.New("NAT_PORT: fwknop refuses it with several ports in ACCESS")
		}
		ports[0].First, ports[0].Last = uint16(n), uint16(n)
	}
	return i.add("OpenPorts", portWords(ports)...)
}

// The lengths in bytes that fwknop makes use of.
const (
	rcUserMax      = 29 // of a name in the file
	rcKeyMax       = 32
	rcLegacyKeyMax = 16
	rcHMACKeyMax   = 128
)

// keys takes the key and the HMAC key.
func (i *importer) keys() error {
	key, err := i.key("KEY")
	switch {
	case err != nil:
		return err
	case key == nil && i.have("KEY_FILE"):
		i.at("KEY_FILE")
		return errUnfit("its key is in a KEY_FILE, which is not read; give it as KEY or KEY_BASE64")
	case key == nil:
		return errUnfit("it has neither KEY nor KEY_BASE64, and fwknop asks for the key")
	}
	if strings.EqualFold(i.rcValues["ENCRYPTION_MODE"].text, "legacy") {
		key = key[:min(len(key), rcLegacyKeyMax)] // as fwknop does
	}
	if len(key) > rcKeyMax {
		return fmt.Errorf("a key of %d bytes is longer than %d, and fwknop refuses it", len(key), rcKeyMax)
	}
	hmac, err := i.key("HMAC_KEY")
	if err != nil {
		return err
	}
	if hmac == nil {
		if i.have("USE_HMAC") {
			i.at("USE_HMAC")
			return errUnfit("it has neither HMAC_KEY nor HMAC_KEY_BASE64, and fwknop asks for the HMAC key")
		}
		return i.keyFile("KeyFile", ".key", key)
	}
	if string(key) == string(hmac) {
		return errors.New("key and HMAC key are the same, and fwknop refuses that")
	}
	if len(hmac) > rcHMACKeyMax {
		if !i.have("HMAC_KEY") {
			return fmt.Errorf("an HMAC key of %d bytes is longer than %d, and fwknop refuses it", len(hmac), rcHMACKeyMax)
		}
		i.warn(i.line, "HMAC_KEY: of %d bytes, fwknop uses the first %d only", len(hmac), rcHMACKeyMax)
		hmac = hmac[:rcHMACKeyMax]
	}
	if err := i.keyFile("KeyFile", ".key", key); err != nil {
		return err
	}
	return i.keyFile("HMACKeyFile", ".hmac", hmac)
}

// key returns a variable's key, nil if there is none. One that is given as it
// stands outranks one in base64.
func (i *importer) key(variable string) ([]byte, error) {
	if i.have(variable) {
		return []byte(i.at(variable).text), nil
	}
	v := i.at(variable + "_BASE64")
	if v.text == "" {
		return nil, nil
	}
	digits, more, _ := strings.Cut(v.text, "=")
	if strings.Trim(more, "=") != "" {
		i.warn(v.line, "%s: to fwknop the value ends at the first \"=\"", v.variable)
	}
	if len(digits)%4 == 1 { // six bits that are no byte
		i.warn(v.line, "%s: fwknop ignores the last character: is it all there?", v.variable)
		digits = digits[:len(digits)-1]
	}
	key, err := base64.RawStdEncoding.DecodeString(digits)
	if err != nil || len(key) == 0 {
		return nil, fmt.Errorf("%s: no key in it", v.variable)
	}
	return key, nil
}

// keyFile refers to a file beside the profile file that is called like the
// profile.
func (i *importer) keyFile(keyword, suffix string, key []byte) error {
	var file strings.Builder
	for _, r := range strings.ToLower(i.Name) {
		if unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune(".-_", r) {
			file.WriteRune(r)
		} else {
			fmt.Fprintf(&file, "_%x", r) // ":" and "%" of an address are no part of a file's name everywhere
		}
	}
	file.WriteString(suffix)
	i.Keys = append(i.Keys, ImportedKey{file.String(), knock.KeyFrom(key)})
	return i.add(keyword, file.String())
}

// packet says what the packet is like and how it travels.
func (i *importer) packet() error {
	port := i.at("SPA_SERVER_PORT")
	switch n, _, _ := cNumber(port.text); {
	case i.have("RAND_PORT"):
		if err := i.add("SPAPort", "random"); err != nil {
			return err
		}
	case port.text == "":
	case n == 0:
		return errUnfit("its SPA_SERVER_PORT is 0")
	default:
		if err := i.add("SPAPort", strconv.Itoa(n)); err != nil {
			return err
		}
	}
	if v := i.at("SPA_SERVER_PROTO"); v.text != "" {
		proto := strings.ToLower(v.text)
		if proto == "udpraw" {
			i.warn(v.line, "SPA_SERVER_PROTO: udpraw becomes udp, which looks the same to the server")
			proto = "udp"
		}
		if err := i.add("SPAProtocol", proto); err != nil {
			return err
		}
	}
	if n, _, _ := cNumber(i.at("FW_TIMEOUT").text); n > 0 {
		if err := i.add("SPATimeout", strconv.Itoa(n)); err != nil {
			return err
		}
	}
	if v := i.at("TIME_OFFSET"); v.text != "" {
		seconds, err := rcOffset(v.text)
		if err == nil && seconds != 0 {
			err = i.add("TimeOffset", strconv.Itoa(seconds))
		}
		if err != nil {
			return fmt.Errorf("TIME_OFFSET: %w", err)
		}
	}
	for variable, keyword := range map[string]string{"DIGEST_TYPE": "SPADigest", "ENCRYPTION_MODE": "SPAMode"} {
		if v := i.at(variable); v.text != "" {
			if err := i.add(keyword, strings.ToLower(v.text)); err != nil {
				return err
			}
		}
	}
	if v := i.at("SPOOF_USER"); v.text != "" {
		if err := i.add("SPAUser", v.text[:min(len(v.text), rcUserMax)]); err != nil {
			return fmt.Errorf("SPOOF_USER: %w", err)
		}
	}
	return nil
}

// allow says for whom to open.
func (i *importer) allow() error {
	resolve, url := i.rcValues["RESOLVE"], i.rcValues["RESOLVE_URL"]
	switch v := i.at("ALLOW_IP"); {
	case strings.EqualFold(v.text, "source") || v.text == "0.0.0.0":
		return i.add("AllowIP", "source")
	case v.text != "":
		return i.add("AllowIP", v.text)
	case resolve.text == "":
		// fwknop does not save its option -s.
		i.warn(i.line, "%s has no ALLOW_IP, which fwknop wants on its command line then; AllowIP is source", i.stanza)
		return i.add("AllowIP", "source")
	}
	scheme, address := "https://", "www.cipherdyne.org/cgi-bin/myip"
	i.line = resolve.line
	if i.have("RESOLVE_HTTP_ONLY") {
		scheme = "http://"
	}
	if url.text != "" {
		i.line, address = url.line, url.text
	}
	// With a scheme it cannot be an option to curl either.
	if !strings.HasPrefix(address, "https://") && !strings.HasPrefix(address, "http://") {
		address = scheme + address
	}
	i.warn(i.line, "%s asks a web page for the address, which becomes AllowIPCommand curl: it must answer with the address alone", i.stanza)
	return i.add("AllowIPCommand", "curl", "-4", "-fsS", address)
}

// nat says where the server forwards the port to.
func (i *importer) nat() error {
	v, host, port := i.at("NAT_ACCESS"), "", ""
	switch {
	case v.text != "":
		if at := strings.IndexAny(v.text, ",:"); at >= 0 {
			host, port = v.text[:at], v.text[at+1:]
			if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
				return fmt.Errorf("NAT_ACCESS: %q is not an address and a port such as 10.0.0.5,22", v.text)
			}
		} else {
			host = v.text
		}
	case i.have("NAT_LOCAL"):
		v = i.at("NAT_LOCAL")
		host = i.rcValues["SPA_SERVER"].text
	default:
		return nil
	}
	if a, err := netip.ParseAddr(host); err != nil || !a.Is4() {
		return errUnfit(fmt.Sprintf("NAT to %q, which is not an IPv4 address, is not supported", host))
	}
	if port == "" {
		line := i.line
		ports, err := i.accessPorts()
		if err != nil {
			return err
		}
		i.line, port = line, strconv.Itoa(int(ports[0].First))
	}
	if err := i.add("NATAccess", host+","+port); err != nil {
		return fmt.Errorf("%s: %w", v.variable, err)
	}
	if i.have("NAT_LOCAL") {
		return i.add("NATLocal", "yes")
	}
	return nil
}

// contradiction tells settings that no profile can have together, and those of
// which no packet can be made.
func (i *importer) contradiction() error {
	i.line = i.stanza.line
	p := settings(i.Settings).fill()
	p.Name = i.Name
	p.setDefaults(i.Settings)
	if keyword, err := p.conflict(); err != nil {
		return errUnfit(fmt.Sprintf("%s: %v", keyword, err))
	}
	var keys [2]knock.Key // the second is that of the HMAC, or none
	for n, k := range i.Keys {
		keys[n] = k.Key
	}
	if _, err := p.requestWith(keys[0], keys[1]).Packet(time.Now()); err != nil {
		return errUnfit(err.Error())
	}
	return nil
}

// hmac says which HMAC it is, if there is any.
func (i *importer) hmac() error {
	if v := i.at("HMAC_DIGEST_TYPE"); v.text != "" && (i.have("HMAC_KEY") || i.have("HMAC_KEY_BASE64")) {
		return i.add("HMACDigest", strings.ToLower(v.text))
	}
	return nil
}

// leftovers warns of what no setting stands for.
func (i *importer) leftovers() {
	why := map[string]string{
		"NAT_RAND_PORT":       ": the server is asked for the port of ACCESS",
		"SPA_SOURCE_PORT":     ": the system chooses the port that packets come from",
		"SPOOF_SOURCE_IP":     ": packets come from this machine's address",
		"HTTP_USER_AGENT":     "",
		"WGET_CMD":            "",
		"USE_WGET_USER_AGENT": "",
		"KEY_FILE":            ": KEY or KEY_BASE64 outranks it",
		"USE_GPG_AGENT":       "",
		"GPG_RECIPIENT":       "",
		"GPG_SIGNER":          "",
		"GPG_HOMEDIR":         "",
		"GPG_EXE":             "",
		"GPG_NO_SIGNING_PW":   "",
	}
	left := slices.Collect(maps.Keys(i.rcValues))
	slices.SortFunc(left, func(a, b string) int { return i.rcValues[a].line - i.rcValues[b].line })
	for _, sets := range left {
		if reason, ok := why[sets]; ok {
			v := i.rcValues[sets]
			i.warn(v.line, "%s does not carry over%s", v.variable, reason)
		}
	}
}
