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
// [File.Lookup] makes the [Profile] of one host, and [Profile.Schedule] what to
// knock. No error holds any part of a sequence.
package profile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// Profile is what the file says of one host, defaults filled in.
type Profile struct {
	Name          string            // what to call it: lower case, see [File.Lookup]
	HostName      string            // where to knock and connect; "" if the file gives none
	Port          uint16            // 0 if the file gives none
	AddressFamily string            // "any", "inet" or "inet6"
	BindAddress   netip.Addr        // the local address; the zero Addr if none is given
	BindInterface string            // the local interface; "" if none is given
	Scheme        string            // one of [Schemes]
	Sequence      knock.Sequence    // what the scheme static sends
	KnockDelay    time.Duration     // the pause between knocks, and before the SYN
	OpenPorts     []knock.PortRange // what the server opens
	OpenFor       time.Duration     // how long a knocker may start connections
	KnockTimeout  time.Duration     // the most between two knocks
	IgnorePorts   []knock.PortRange // ports that do not reset a sequence; may be empty

	// ConnectTimeout is the time from the start to the connection, all rounds
	// of knocks together.
	ConnectTimeout time.Duration
}

// Schemes names the schemes there are: the cases of [Profile.Schedule].
var Schemes = []string{"static"}

// Schedule returns what opens the host's ports, and when.
func (p *Profile) Schedule() (knock.Schedule, error) {
	switch p.Scheme {
	case "static":
		if len(p.Sequence) == 0 {
			return nil, errors.New("static needs a Sequence")
		}
		return knock.Static(p.Sequence), nil
	}
	return nil, checkScheme(p.Scheme)
}

func checkScheme(name string) error {
	if slices.Contains(Schemes, name) {
		return nil
	}
	return fmt.Errorf("there is no scheme %q, only %s", name, strings.Join(Schemes, ", "))
}

// setDefaults fills in what the file left out.
func (p *Profile) setDefaults(given settings) {
	setDefault(&p.AddressFamily, "any")
	setDefault(&p.Scheme, "static")
	if !given.have("KnockDelay") { // 0 is a value
		p.KnockDelay = 200 * time.Microsecond
	}
	setDefault(&p.ConnectTimeout, 10*time.Second)
	setDefault(&p.OpenFor, 30*time.Second)
	setDefault(&p.KnockTimeout, 5*time.Second)
	if p.OpenPorts == nil {
		port := p.Port
		setDefault(&port, 22)
		p.OpenPorts = []knock.PortRange{{Transport: knock.TCP, First: port, Last: port}}
	}
	if p.IgnorePorts == nil { // "none" is empty, not nil
		p.IgnorePorts = []knock.PortRange{
			{Transport: knock.TCP, First: 80, Last: 80},
			{Transport: knock.TCP, First: 443, Last: 443},
			{Transport: knock.UDP, First: 443, Last: 443},
		}
	}
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// conflict returns the first contradiction between settings, and the keyword
// to blame. What is still at its zero value is not looked at, so that it serves
// a lone block as well as a finished profile.
func (p *Profile) conflict() (keyword string, err error) {
	if p.BindAddress.IsValid() {
		if p.BindInterface != "" {
			return "BindInterface", errors.New("cannot be combined with BindAddress")
		}
		if p.BindAddress.Is4() && p.AddressFamily == "inet6" || p.BindAddress.Is6() && p.AddressFamily == "inet" {
			return "BindAddress", fmt.Errorf("%s is not of the AddressFamily %s", p.BindAddress, p.AddressFamily)
		}
	}
	if p.KnockTimeout > 0 && p.KnockDelay >= p.KnockTimeout {
		return "KnockDelay", fmt.Errorf("%s is not below the KnockTimeout, %s", formatDuration(p.KnockDelay), formatDuration(p.KnockTimeout))
	}
	for i, step := range p.Sequence {
		for _, open := range p.OpenPorts {
			if open.Contains(step) {
				return "Sequence", fmt.Errorf("knock %d of %d is one of the OpenPorts, and a guarded port cannot be a knock", i+1, len(p.Sequence))
			}
		}
	}
	return "", nil
}

// Settings returns the profile as settings, in the order of the documentation,
// without those that have no value. They hold the sequence.
func (p *Profile) Settings() []Setting {
	var out []Setting
	for _, k := range keywords {
		if v := k.get(p); v != "" {
			out = append(out, Setting{Keyword: k.name, Value: v})
		}
	}
	return out
}

// WriteTo writes the profile as a Host block that [Parse] reads back. It holds
// the sequence.
func (p *Profile) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Host %s\n", p.Name)
	for _, s := range p.Settings() {
		v := s.Value
		if !keywordNamed(s.Keyword).list && strings.ContainsAny(v, " #") {
			v = `"` + v + `"`
		}
		fmt.Fprintf(&b, "    %s %s\n", s.Keyword, v)
	}
	return b.WriteTo(w)
}

// MarshalJSON writes durations as Go writes them ("500µs"), and knocks and
// ports as a profile does ("7000/udp"). It holds the sequence.
func (p *Profile) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Name           string     `json:"name"`
		HostName       string     `json:"hostName,omitempty"`
		Port           uint16     `json:"port,omitempty"`
		AddressFamily  string     `json:"addressFamily"`
		BindAddress    netip.Addr `json:"bindAddress,omitzero"`
		BindInterface  string     `json:"bindInterface,omitempty"`
		Scheme         string     `json:"scheme"`
		Sequence       string     `json:"sequence,omitempty"`
		KnockDelay     string     `json:"knockDelay"`
		ConnectTimeout string     `json:"connectTimeout"`
		OpenPorts      []string   `json:"openPorts"`
		OpenFor        string     `json:"openFor"`
		KnockTimeout   string     `json:"knockTimeout"`
		IgnorePorts    []string   `json:"ignorePorts"`
	}{
		p.Name, p.HostName, p.Port, p.AddressFamily, p.BindAddress, p.BindInterface,
		p.Scheme, p.Sequence.String(), p.KnockDelay.String(), p.ConnectTimeout.String(),
		portWords(p.OpenPorts), p.OpenFor.String(), p.KnockTimeout.String(), portWords(p.IgnorePorts),
	})
}

func portWords(ranges []knock.PortRange) []string {
	words := make([]string, len(ranges))
	for i, r := range ranges {
		words[i] = r.String()
	}
	return words
}
