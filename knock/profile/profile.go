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
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
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
}

// DefaultConnectTimeout is the ConnectTimeout of a profile that sets none. It is
// below 10 s, a common ConnectTimeout of ssh: portknock then ends the search first,
// and says why the port is closed.
const DefaultConnectTimeout = 9 * time.Second

// Schemes names the schemes there are: the cases of [Profile.Server].
var Schemes = []string{"static", "rotating", "token", "md5-hourly", "fwknop"}

// keyed reports whether the scheme goes by a key and the time.
func (p *Profile) keyed() bool { return p.draws() || p.Scheme == "token" }

// draws reports whether the scheme draws the ports of a sequence.
func (p *Profile) draws() bool { return p.Scheme == "rotating" || p.Scheme == "md5-hourly" }

// secret reports whether the scheme needs a key.
func (p *Profile) secret() bool { return p.keyed() || p.Scheme == "fwknop" }

// Server is what a server has to know of a profile: the Schedule, or for fwknop the
// keys.
type Server struct {
	Schedule    knock.Schedule    // which sequences open; nil for fwknop
	SPA         *spa.Keys         // for fwknop; nil for others
	KnockPorts  []knock.PortRange // where knocks go; nil if they may go to any port
	Fingerprint string            // of the key; "" if there is none
}

// Server returns the server's half of the profile. It reads the KeyFile, or runs
// the KeyCommand, which may take 30 seconds and speak to the user. For fwknop it
// reads the HMACKeyFile too.
func (p *Profile) Server(ctx context.Context) (Server, error) {
	if err := p.complete(); err != nil {
		return Server{}, err
	}
	if p.Scheme == "static" {
		return Server{Schedule: knock.Static(p.Sequence)}, nil
	}
	k, err := p.key(ctx)
	if err != nil {
		return Server{}, err
	}
	server := Server{Fingerprint: k.Fingerprint()}
	if p.PortRange.First > 0 {
		server.KnockPorts = []knock.PortRange{p.PortRange}
	}
	switch p.Scheme {
	case "rotating":
		server.Schedule = knock.Rotating{Key: k, Ports: p.PortRange, Knocks: p.Knocks, Period: p.Period}
	case "token":
		server.Schedule = knock.Token{Key: k, Port: p.TokenPort, Period: p.Period, Tokens: p.TokensPerWindow}
	case "md5-hourly":
		server.Schedule = knock.MD5Hourly{Secret: k, Ports: p.PortRange, Knocks: p.Knocks}
		server.Fingerprint = "" // a secret of few letters could be guessed from it
	case "fwknop":
		request, err := p.request(k)
		if err != nil {
			return Server{}, err
		}
		server.SPA = &request.Keys
		return server, nil
	}
	// What is wrong with the secret is wrong at all times: better said now than
	// by a round of knocks.
	if _, _, err := server.Schedule.At(time.Unix(0, 0)); err != nil {
		return Server{}, p.keyFault(err)
	}
	return server, nil
}

// Picker returns the client's half of the profile. It reads what Server reads, and
// for fwknop it runs the AllowIPCommand too.
func (p *Profile) Picker(ctx context.Context) (knock.Picker, error) {
	if p.Scheme == "fwknop" {
		return p.requestFrom(ctx)
	}
	server, err := p.Server(ctx)
	if err != nil {
		return nil, err
	}
	return knock.Client{Schedule: server.Schedule, Skew: p.Skew, KnockDelay: p.KnockDelay, KnockTimeout: p.KnockTimeout}, nil
}

// complete reports what the scheme lacks, as far as can be told without the key.
func (p *Profile) complete() error {
	switch {
	case p.Scheme == "static" && len(p.Sequence) == 0:
		return errors.New("static needs a Sequence")
	case p.secret() && p.KeyFile == "" && len(p.KeyCommand) == 0:
		return fmt.Errorf("%s needs a KeyFile or a KeyCommand", p.Scheme)
	case p.SPA.NATLocal && !p.SPA.NATAccess.IsValid():
		return errors.New("NATLocal needs a NATAccess")
	}
	for _, open := range p.OpenPorts {
		if r := p.PortRange; p.draws() && open.Transport == r.Transport && open.First <= r.Last && r.First <= open.Last {
			return fmt.Errorf("PortRange and Protocol include %v of the OpenPorts, and a guarded port cannot be a knock", open)
		}
	}
	return checkScheme(p.Scheme)
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
	setDefault(&p.ConnectTimeout, DefaultConnectTimeout)
	setDefault(&p.OpenFor, 30*time.Second)
	setDefault(&p.KnockTimeout, 5*time.Second)
	if p.draws() {
		if p.PortRange.First == 0 {
			p.PortRange.First, p.PortRange.Last = 20000, 59999
		}
		if !given.have("Protocol") && p.Scheme != "md5-hourly" { // which is tcp, the zero value
			p.PortRange.Transport = knock.UDP
		}
		setDefault(&p.Knocks, 5)
	} else { // what stands under Host * for other schemes does not apply
		p.PortRange, p.Knocks = knock.PortRange{}, 0
	}
	if p.Scheme == "token" {
		setDefault(&p.TokenPort, 62202)
		setDefault(&p.TokensPerWindow, 8)
	} else {
		p.TokenPort, p.TokensPerWindow = 0, 0
	}
	if p.keyed() {
		setDefault(&p.Period, time.Hour)
		if !given.have("Skew") { // 0 is a value
			p.Skew = 2 * time.Minute
		}
	} else {
		p.Period, p.Skew, p.ValidUntil = 0, 0, time.Time{}
	}
	if p.Scheme == "fwknop" {
		p.SPA.setDefaults(given)
	} else {
		p.SPA = SPA{}
	}
	if !p.secret() {
		p.KeyFile, p.KeyCommand, p.DeriveHostKey = "", nil, false
	}
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
	token := knock.Step{Transport: knock.UDP, Port: p.TokenPort}
	for _, open := range p.OpenPorts {
		if p.TokenPort > 0 && open.Contains(token) {
			return "OpenPorts", fmt.Errorf("%v includes the TokenPort, %d, and a guarded port takes no tokens", open, p.TokenPort)
		}
	}
	if keyword, err := p.keyConflict(); err != nil {
		return keyword, err
	}
	return p.spaConflict()
}

// keyConflict is conflict for the schemes with a key.
func (p *Profile) keyConflict() (keyword string, err error) {
	if p.KeyFile != "" && len(p.KeyCommand) > 0 {
		return "KeyCommand", errors.New("cannot be combined with KeyFile")
	}
	if p.Scheme == "fwknop" && len(p.Sequence) > 0 {
		return "Sequence", errors.New("fwknop has none")
	}
	if p.Scheme != "" && p.Scheme != "static" && len(p.Sequence) > 0 {
		return "Sequence", fmt.Errorf("%s draws its own", p.Scheme)
	}
	if p.Period > 0 && p.Skew >= p.Period-p.Skew {
		// Of the two, the one that cannot be a default.
		if p.Period != time.Hour {
			return "Period", fmt.Errorf("%s is not above twice the Skew, %s", formatDuration(p.Period), formatDuration(p.Skew))
		}
		return "Skew", fmt.Errorf("twice %s is not below the Period, %s", formatDuration(p.Skew), formatDuration(p.Period))
	}
	if size := int(p.PortRange.Last) - int(p.PortRange.First) + 1; p.PortRange.First > 0 && size < p.Knocks {
		return "PortRange", fmt.Errorf("%d ports are not enough for %d different knocks", size, p.Knocks)
	}
	if p.Scheme == "md5-hourly" {
		switch {
		case p.Period > 0 && p.Period != time.Hour:
			return "Period", errors.New("md5-hourly has one of an hour")
		case p.PortRange.Transport == knock.UDP:
			return "Protocol", errors.New("md5-hourly knocks by tcp")
		case p.DeriveHostKey:
			return "DeriveHostKey", errors.New("md5-hourly uses the secret as it stands")
		}
	}
	return "", nil
}

// WriteTo writes the profile as a Host block that [Parse] reads back, its settings
// in the order of the documentation. It holds the sequence, but never a key.
func (p *Profile) WriteTo(w io.Writer) (int64, error) {
	var given settings
	for _, k := range keywords {
		if v := k.get(p); v != "" {
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
		KeyFile        string     `json:"keyFile,omitempty"`
		KeyCommand     []string   `json:"keyCommand,omitempty"`
		DeriveHostKey  bool       `json:"deriveHostKey,omitempty"`
		PortRange      string     `json:"portRange,omitempty"`
		Knocks         int        `json:"knocks,omitempty"`
		Protocol       string     `json:"protocol,omitempty"`
		TokenPort      uint16     `json:"tokenPort,omitempty"`
		Tokens         int        `json:"tokensPerWindow,omitempty"`
		Period         string     `json:"period,omitempty"`
		Skew           string     `json:"skew,omitempty"`
		ValidUntil     time.Time  `json:"validUntil,omitzero"`
		SPA            *spaJSON   `json:"fwknop,omitempty"`
	}{
		p.Name, p.HostName, p.Port, p.AddressFamily, p.BindAddress, p.BindInterface,
		p.Scheme, p.Sequence.String(), p.KnockDelay.String(), p.ConnectTimeout.String(),
		portWords(p.OpenPorts), p.OpenFor.String(), p.KnockTimeout.String(), portWords(p.IgnorePorts),
		p.KeyFile, p.KeyCommand, p.DeriveHostKey, p.rangeWord(), p.Knocks, p.protocolWord(),
		p.TokenPort, p.TokensPerWindow,
		p.ifKeyed(p.Period.String()), p.ifKeyed(p.Skew.String()), p.ValidUntil, p.spaJSON(),
	})
}

// rangeWord and protocolWord write the two halves of PortRange.
func (p *Profile) rangeWord() string {
	r := p.PortRange
	r.Transport = knock.TCP
	return p.ifDrawn(strings.TrimSuffix(r.String(), "/tcp"))
}

func (p *Profile) protocolWord() string { return p.ifDrawn(p.PortRange.Transport.String()) }

func (p *Profile) ifKeyed(s string) string {
	if p.keyed() {
		return s
	}
	return ""
}

func (p *Profile) ifDrawn(s string) string {
	if p.draws() {
		return s
	}
	return ""
}

func portWords(ranges []knock.PortRange) []string {
	words := make([]string, len(ranges))
	for i, r := range ranges {
		words[i] = r.String()
	}
	return words
}
