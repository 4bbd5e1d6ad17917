// Package profile reads the profile file, which says how to knock at each host.
//
// The file has the syntax of ssh_config(5). A Host line contains patterns. The lines
// below it contain the settings of the hosts that match these patterns.
//
//	Host vps 203.0.113.7
//	    HostName 203.0.113.7
//	    Sequence 41380/udp 5917/tcp 23046/udp
//
//	Host *
//	    ConnectTimeout 20
//
// As in ssh_config, the package uses the first value obtained for a keyword, so
// defaults come last. An unknown keyword is an error. Unlike in ssh_config, a keyword
// that occurs twice in one block is an error too. Match and Include are errors, because
// the package does not support them.
//
// The package checks every block, not only those of the requested host. If it ignored a
// misspelled setting, a port could stay closed for no visible reason.
//
// [Find] returns the path of the file. [Load] and [Parse] read the file into a [File].
// [File.Lookup] returns the [Profile] of one host. [Profile.Picker] returns what a
// client sends. [Profile.Server] returns what a server has to know. Only
// [Profile.Picker], [Profile.Server] and [LoadKey] read a key or run a command for
// one. No error contains any part of a sequence or a key.
package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/secret"
)

// Profile has the settings for one host. A setting that the file does not give has its
// default.
type Profile struct {
	Name          string            // name of the profile, in lower case; see [File.Lookup]
	HostName      string            // host to knock at and connect to; "" if the file gives none
	Port          uint16            // port to connect to; 0 if the file gives none
	AddressFamily string            // "any", "inet" or "inet6"
	BindAddress   netip.Addr        // local address; the zero Addr if the file gives none
	BindInterface string            // local interface; "" if the file gives none
	Scheme        string            // name of the scheme, such as "static"
	Sequence      knock.Sequence    // sequence of the scheme static; nil for other schemes
	KnockDelay    time.Duration     // pause after each knock, before the next knock or the SYN
	OpenPorts     []knock.PortRange // guarded ports, which the server opens after the knocks
	OpenFor       time.Duration     // how long an admitted address may start connections
	KnockTimeout  time.Duration     // longest time that the server allows between two knocks
	IgnorePorts   []knock.PortRange // ports to which a packet does not count as a wrong knock; may be empty

	// Repeat is 2 if the client sends each knock several times, as [knock.Client] does with
	// Repeat, and 1 if not. It is 0, which means 1, if the file gives none. With the scheme
	// token it is then 2. The scheme fwknop has no Repeat.
	Repeat int

	// ConnectTimeout limits the time from the start to the connection, including all
	// rounds. It is [DefaultConnectTimeout] if the file gives none.
	ConnectTimeout time.Duration

	// KeyFile and KeyCommand say where the key is. Both are zero for the scheme static. A
	// profile of another scheme has one of them.
	KeyFile    string   // absolute path of the file with the key; "" if there is a KeyCommand
	KeyCommand []string // program and arguments; it prints the key; nil if there is a KeyFile

	// DeriveHostKey is a setting of the schemes rotating and token. Period, Skew and
	// ValidUntil are settings of the schemes rotating, token and md5-hourly. These fields
	// are zero for other schemes.
	DeriveHostKey bool          // use the key that [knock.Key.Derive] returns for Name
	Period        time.Duration // length of a window
	Skew          time.Duration // largest difference between the clocks of client and server
	ValidUntil    time.Time     // when the server's rules expire, in UTC; the zero Time if the file gives none

	// PortRange and Knocks are settings of the schemes rotating and md5-hourly, which draw
	// their sequences with a key. They are zero for other schemes.
	PortRange knock.PortRange // ports from which knocks are drawn; its Transport is the setting Protocol
	Knocks    int             // number of knocks in a drawn sequence

	// TokenPort and TokensPerWindow are settings of the scheme token. They are zero for
	// other schemes.
	TokenPort       uint16 // UDP port to which tokens go
	TokensPerWindow int    // number of tokens in a window; each admits one address

	SPA SPA // settings of the scheme fwknop; zero for other schemes

	// Runner runs the KeyCommand and the AllowIPCommand. The file does not set the
	// Runner. The zero Runner discards the messages of these commands and keeps the
	// commands off the terminal.
	Runner secret.Runner
}

// DefaultConnectTimeout is the ConnectTimeout of a profile that sets none. It is less
// than 10 s, a common ConnectTimeout of ssh. Therefore portknock gives up before ssh
// does, and reports why the port is closed.
const DefaultConnectTimeout = 9 * time.Second

// setDefaults gives each setting that given does not contain its default.
func (p *Profile) setDefaults(given settings) {
	setDefault(&p.Scheme, staticScheme.name)
	for _, g := range schemeNamed(p.Scheme).groups {
		if g.defaults != nil {
			g.defaults(p, given)
		}
	}
}

// conflict returns the first contradiction between settings, and the keyword to blame.
// It ignores settings that are zero. Therefore it can check the settings of a single
// block as well as a finished profile. Given contains the settings without defaults.
func (p *Profile) conflict(given settings) (keyword string, err error) {
	for _, g := range groups {
		if g.check != nil {
			if keyword, err := g.check(p); err != nil {
				return keyword, err
			}
		}
	}
	if check := schemeNamed(p.Scheme).check; check != nil {
		return check(p, given)
	}
	return "", nil
}

// WriteTo writes the profile as a Host block that [Parse] can read, with the settings that
// apply to its scheme. The order of the settings is always the same. The block contains the
// sequence, but never a key.
func (p *Profile) WriteTo(w io.Writer) (int64, error) {
	var given settings
	groups := schemeNamed(p.Scheme).groups
	for _, k := range keywords {
		if v := k.word(p); v != "" && slices.Contains(groups, k.group) {
			given = append(given, Setting{Keyword: k.name, Value: v})
		}
	}
	var b bytes.Buffer
	writeBlock(&b, p.Name, given)
	return b.WriteTo(w)
}

// writeBlock writes a Host block for the host name, with these settings.
func writeBlock(b *bytes.Buffer, name string, settings []Setting) {
	fmt.Fprintf(b, "Host %s\n", name)
	for _, s := range settings {
		fmt.Fprintf(b, "    %s %s\n", s.Keyword, s.written())
	}
}

// MarshalJSON returns the profile as a JSON object. Durations are as Go formats them
// ("500µs"). Knocks and ports are as in a profile file ("7000/udp"). The object
// contains the sequence, but never a key.
func (p *Profile) MarshalJSON() ([]byte, error) {
	all := []string{jsonField("name", p.Name)}
	for _, g := range schemeNamed(p.Scheme).groups {
		var fields []string
		for _, k := range g.keywords {
			if v := k.jsonValue(p); v != nil {
				fields = append(fields, jsonField(jsonName(strings.TrimPrefix(k.name, g.prefix)), v))
			}
		}
		if g.object != "" {
			fields = []string{jsonField(g.object, jsonObject(fields))}
		}
		all = append(all, fields...)
	}
	return jsonObject(all), nil
}

// jsonObject returns a JSON object that contains these fields in this order.
func jsonObject(fields []string) json.RawMessage {
	return json.RawMessage("{" + strings.Join(fields, ",") + "}")
}

func jsonField(name string, value any) string {
	v, _ := json.Marshal(value) // no error: texts, numbers, booleans, and lists and objects of these
	return fmt.Sprintf("%q:%s", name, v)
}

// jsonName returns the JSON name of a keyword, such as hostName, allowIP or natAccess.
func jsonName(keyword string) string {
	capitals := len(keyword) - len(strings.TrimLeftFunc(keyword, unicode.IsUpper))
	if capitals > 1 && capitals < len(keyword) {
		capitals-- // the last capital starts the next word
	}
	return strings.ToLower(keyword[:capitals]) + keyword[capitals:]
}
