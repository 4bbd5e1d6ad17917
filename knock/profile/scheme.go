package profile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
)

// scheme is a row of the table of schemes: what one does differently from the
// others. A new scheme is a row and a file.
type scheme struct {
	name  string
	facts Facts

	// groups is the settings that apply, in the order in which they are shown, after
	// commonSettings. Others may share a group. One without keywords has the scheme's
	// own defaults, or what it needs.
	groups []*group

	// parseKey makes a key of a file's text. It is nil if the scheme has no key.
	parseKey func(text []byte) (knock.Key, error)

	// check returns the first contradiction that is one for this scheme only, and the
	// keyword to blame. It serves a block alone too, so it does not rely on what is
	// not given. It may be nil.
	check func(p *Profile, given settings) (keyword string, err error)

	// server makes the server's half with the key, if there is one.
	server func(p *Profile, k knock.Key) (Server, error)

	// picker makes the client's half. If it is nil, the client follows the
	// server's Schedule.
	picker func(ctx context.Context, p *Profile, k knock.Key) (knock.Picker, error)
}

// schemes is the table. Its groups and their keywords follow from it.
var (
	schemes  []scheme
	groups   []*group
	keywords []keyword // all settings there are, in the order in which they are shown
)

// init fills in the tables, since their functions look things up in them.
func init() {
	schemes = []scheme{staticScheme, rotatingScheme, tokenScheme, md5HourlyScheme, fwknopScheme}
	for i := range schemes {
		s := &schemes[i]
		s.groups = slices.Concat([]*group{commonSettings}, s.groups)
		at := len(groups) // a group that is new goes before those that follow it in the scheme
		for _, g := range slices.Backward(s.groups) {
			if n := slices.Index(groups, g); n >= 0 {
				at = n
			} else {
				groups = slices.Insert(groups, at, g)
			}
		}
	}
	for _, g := range groups {
		for i := range g.keywords {
			g.keywords[i].of = g
		}
		keywords = append(keywords, g.keywords...)
	}
}

// schemeNamed returns the scheme of that name, or nil.
func schemeNamed(name string) *scheme {
	if i := slices.IndexFunc(schemes, func(s scheme) bool { return s.name == name }); i >= 0 {
		return &schemes[i]
	}
	return nil
}

// parseScheme returns a scheme's name as the table has it.
func parseScheme(s string) (string, error) {
	name := strings.ToLower(s)
	if schemeNamed(name) != nil {
		return name, nil
	}
	var names []string
	for _, s := range schemes {
		names = append(names, s.name)
	}
	return "", fmt.Errorf("there is no scheme %q, only %s", name, strings.Join(names, ", "))
}

// groups returns the settings that apply to the profile: all, while its scheme is
// unknown.
func (p *Profile) groups() []*group {
	if s := schemeNamed(p.Scheme); s != nil {
		return s.groups
	}
	return groups
}

// Facts is what a caller may have to know of a scheme.
type Facts struct {
	SingleUse   bool // the server accepts each packet once
	IPv4Only    bool // the server opens ports for IPv4 only
	DerivesKeys bool // DeriveHostKey applies
}

// Facts returns the facts of the profile's scheme.
func (p *Profile) Facts() Facts {
	if s := schemeNamed(p.Scheme); s != nil {
		return s.facts
	}
	return Facts{}
}

// Server is what a server has to know of a profile: the Schedule, or for fwknop the
// keys.
type Server struct {
	Schedule    knock.Schedule    // which sequences open; nil for fwknop
	SPA         *spa.Keys         // for fwknop; nil for others
	KnockPorts  []knock.PortRange // where knocks go; nil if they may go to any port
	Fingerprint string            // of the key; "" if there is none
}

// Server returns the server's half of the profile. It reads the KeyFile, or has the
// Runner run the KeyCommand, which may take 30 seconds. For fwknop it reads the
// HMACKeyFile too.
func (p *Profile) Server(ctx context.Context) (Server, error) {
	s, k, err := p.open(ctx)
	if err != nil {
		return Server{}, err
	}
	return p.serve(s, k)
}

// serve makes the server's half. What is wrong with a secret is wrong at all times:
// better said now than by a round of knocks.
func (p *Profile) serve(s *scheme, k knock.Key) (Server, error) {
	server, err := s.server(p, k)
	if err == nil && server.Schedule != nil {
		if _, _, err = server.Schedule.At(time.Unix(0, 0)); err != nil && s.parseKey != nil {
			err = p.keyFault(err)
		}
	}
	return server, err
}

// Picker returns the client's half of the profile. It reads what Server reads, and
// for fwknop it runs the AllowIPCommand too.
func (p *Profile) Picker(ctx context.Context) (knock.Picker, error) {
	s, k, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	if s.picker != nil {
		return s.picker(ctx, p, k)
	}
	server, err := p.serve(s, k)
	if err != nil {
		return nil, err
	}
	return knock.Client{Schedule: server.Schedule, Skew: p.Skew, KnockDelay: p.KnockDelay, KnockTimeout: p.KnockTimeout}, nil
}

// open returns the profile's scheme, and reads its key.
func (p *Profile) open(ctx context.Context) (s *scheme, k knock.Key, err error) {
	if err := p.complete(); err != nil {
		return nil, knock.Key{}, err
	}
	s = schemeNamed(p.Scheme)
	if s.parseKey != nil {
		k, err = p.key(ctx, s.parseKey)
	}
	return s, k, err
}

// complete reports what the profile lacks, as far as can be told without the key.
func (p *Profile) complete() error {
	if _, err := parseScheme(p.Scheme); err != nil {
		return err
	}
	for _, g := range p.groups() {
		if g.complete != nil {
			if err := g.complete(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// drawsItsOwn is a check for schemes without a Sequence.
func drawsItsOwn(p *Profile, _ settings) (keyword string, err error) {
	if len(p.Sequence) > 0 {
		return "Sequence", fmt.Errorf("%s draws its own", p.Scheme)
	}
	return "", nil
}

// staticScheme sends the sequence of the profile.
var staticScheme = scheme{
	name: "static",
	groups: []*group{{complete: func(p *Profile) error {
		if len(p.Sequence) == 0 {
			return errors.New("static needs a Sequence")
		}
		return nil
	}}},
	server: func(p *Profile, _ knock.Key) (Server, error) { return Server{Schedule: knock.Static(p.Sequence)}, nil },
}
