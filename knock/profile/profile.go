// Package profile reads the file that says how to knock at which host.
//
// The file has the syntax of ssh_config(5): Host lines with patterns, below
// each the settings of the hosts that match.
//
//	Host vps 203.0.113.7
//	    HostName 203.0.113.7
//	    Sequence 7000/udp 8000/tcp 9000/udp
//
//	Host *
//	    ConnectTimeout 20
//
// As in ssh_config the first value obtained for a keyword is used, so that
// defaults come last. Unlike in ssh_config a keyword nobody knows, a keyword
// twice in one block, Match and Include are errors, and every block is checked,
// not only the one asked for: a misspelt setting that is passed over in silence
// is a door that stays shut for no visible reason.
//
// [Find] says where the file is, [Load] and [Parse] read it into a [File],
// [File.Lookup] makes the [Profile] of one host, [Profile.Picker] what a client
// knocks, and [Profile.Server] what a server has to know. Only these two read a key
// or run a command for one. No error holds any part of a sequence or a key.
package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/secret"
)

// Profile is what the file says of one host, defaults filled in.
type Profile struct {
	Name          string            // what to call it: lower case, see [File.Lookup]
	HostName      string            // where to knock and connect; "" if the file gives none
	Port          uint16            // 0 if the file gives none
	AddressFamily string            // "any", "inet" or "inet6"
	BindAddress   netip.Addr        // the local address; the zero Addr if none is given
	BindInterface string            // the local interface; "" if none is given
	Scheme        string            // its name, such as "static"
	Sequence      knock.Sequence    // what the scheme static sends; nil for others
	KnockDelay    time.Duration     // the pause between knocks, and before the SYN
	OpenPorts     []knock.PortRange // what the server opens
	OpenFor       time.Duration     // how long a knocker may start connections
	KnockTimeout  time.Duration     // the most between two knocks
	IgnorePorts   []knock.PortRange // ports that do not reset a sequence; may be empty

	// ConnectTimeout is the time from the start to the connection, all rounds
	// of knocks together; [DefaultConnectTimeout] if the file gives none.
	ConnectTimeout time.Duration

	// What a scheme with a key needs; zero for static.
	KeyFile    string   // where the key is, an absolute path; or else
	KeyCommand []string // the program that prints it, and its arguments

	// What a scheme needs that goes by a key and the time; zero for others.
	DeriveHostKey bool          // use the key that [knock.Key.Derive] gives for Name
	Period        time.Duration // how long a sequence is the current one
	Skew          time.Duration // by how much two clocks may differ
	ValidUntil    time.Time     // when the server's rules end, in UTC; the zero Time if the file does not say

	// Where sequences are drawn by the key; zero for others.
	PortRange knock.PortRange // what is drawn from; its Transport is the Protocol
	Knocks    int             // how many are drawn

	// What the scheme token needs; zero for others.
	TokenPort       uint16 // where tokens go, by udp
	TokensPerWindow int    // how many addresses can use one each

	SPA SPA // of the scheme fwknop; zero for others

	// Runner runs the KeyCommand and the AllowIPCommand. The file does not set
	// it: the zero Runner discards their messages and keeps them off the terminal.
	Runner secret.Runner
}

// DefaultConnectTimeout is the ConnectTimeout of a profile that sets none. It is
// below 10 s, a common ConnectTimeout of ssh: portknock then ends the search first,
// and says why the port is closed.
const DefaultConnectTimeout = 9 * time.Second

// setDefaults fills in what the file left out.
func (p *Profile) setDefaults(given settings) {
	setDefault(&p.Scheme, staticScheme.name)
	for _, g := range schemeNamed(p.Scheme).groups {
		if g.defaults != nil {
			g.defaults(p, given)
		}
	}
}

// conflict returns the first contradiction between settings, and the keyword
// to blame. What is still at its zero value is not looked at, so that it serves
// a lone block as well as a finished profile. Given is what the file sets.
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

// WriteTo writes the profile as a Host block that [Parse] reads back, its settings
// in the order of the documentation. It holds the sequence, but never a key.
func (p *Profile) WriteTo(w io.Writer) (int64, error) {
	var given settings
	for _, k := range keywords {
		if v := k.word(p); v != "" {
			given = append(given, Setting{Keyword: k.name, Value: v})
		}
	}
	var b bytes.Buffer
	writeBlock(&b, p.Name, given)
	return b.WriteTo(w)
}

// writeBlock writes a Host block.
func writeBlock(b *bytes.Buffer, name string, settings []Setting) {
	fmt.Fprintf(b, "Host %s\n", name)
	for _, s := range settings {
		v := s.Value
		if !keywordNamed(s.Keyword).list {
			v = quoteWord(v)
		}
		fmt.Fprintf(b, "    %s %s\n", s.Keyword, v)
	}
}

// MarshalJSON writes durations as Go writes them ("500µs"), and knocks and
// ports as a profile does ("7000/udp"). It holds the sequence, but never a key.
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

// jsonObject is an object of fields, in this order.
func jsonObject(fields []string) json.RawMessage {
	return json.RawMessage("{" + strings.Join(fields, ",") + "}")
}

func jsonField(name string, value any) string {
	v, _ := json.Marshal(value) // texts, numbers, lists and objects of them, which cannot fail
	return fmt.Sprintf("%q:%s", name, v)
}

// jsonName writes a keyword as JSON names it: hostName, allowIP, natAccess.
func jsonName(keyword string) string {
	capitals := len(keyword) - len(strings.TrimLeftFunc(keyword, unicode.IsUpper))
	if capitals > 1 && capitals < len(keyword) {
		capitals-- // the last one begins the next word
	}
	return strings.ToLower(keyword[:capitals]) + keyword[capitals:]
}
