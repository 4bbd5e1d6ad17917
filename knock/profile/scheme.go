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

	// picker makes the client's half of the server's. If it is nil, the client
	// follows the server's Schedule.
	picker func(ctx context.Context, p *Profile, server Server) (knock.Picker, error)
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
		position := len(groups) // a group that is new goes before those that follow it in the scheme
		for _, g := range slices.Backward(s.groups) {
			if n := slices.Index(groups, g); n >= 0 {
				position = n
			} else {
				groups = slices.Insert(groups, position, g)
			}
		}
	}
	for _, g := range groups {
		for i := range g.keywords {
			g.keywords[i].group = g
		}
		keywords = append(keywords, g.keywords...)
	}
}

// schemeNamed returns the scheme of that name. While it is unknown, it has no name,
// and all settings apply.
func schemeNamed(name string) *scheme {
	if i := slices.IndexFunc(schemes, func(s scheme) bool { return s.name == name }); i >= 0 {
		return &schemes[i]
	}
	return &scheme{groups: groups}
}

// parseScheme returns a scheme's name as the table has it.
func parseScheme(s string) (string, error) {
	name := strings.ToLower(s)
	if schemeNamed(name).name != "" {
		return name, nil
	}
	var names []string
	for _, s := range schemes {
		names = append(names, s.name)
	}
	return "", fmt.Errorf("unknown scheme %q; the schemes are %s", name, strings.Join(names, ", "))
}

// Facts is what a caller may have to know of a scheme.
type Facts struct {
	SingleUse   bool // the server accepts each packet once
	IPv4Only    bool // the server opens ports for IPv4 only
	DerivesKeys bool // DeriveHostKey applies
}

// Facts returns the facts of the profile's scheme.
func (p *Profile) Facts() Facts { return schemeNamed(p.Scheme).facts }

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
func (p *Profile) Server(ctx context.Context) (server Server, err error) {
	if err := p.complete(); err != nil {
		return Server{}, err
	}
	s, k := schemeNamed(p.Scheme), knock.Key{}
	if s.parseKey != nil {
		if k, err = p.key(ctx, s.parseKey); err != nil {
			return Server{}, err
		}
	}
	if server, err = s.server(p, k); err != nil || server.Schedule == nil {
		return server, err
	}
	// What is wrong with a secret is wrong at all times: better said now than by a
	// round of knocks.
	_, _, err = server.Schedule.At(time.Unix(0, 0))
	switch {
	case err == nil:
	case p.KeyFile != "":
		err = fmt.Errorf("%s: %w", p.KeyFile, err)
	case len(p.KeyCommand) > 0:
		err = fmt.Errorf("KeyCommand %s: %w", p.KeyCommand[0], err)
	}
	return server, err
}

// Picker returns the client's half of the profile. It reads what Server reads, and
// for fwknop it runs the AllowIPCommand too.
func (p *Profile) Picker(ctx context.Context) (knock.Picker, error) {
	server, err := p.Server(ctx)
	if err != nil {
		return nil, err
	}
	if picker := schemeNamed(p.Scheme).picker; picker != nil {
		return picker(ctx, p, server)
	}
	return knock.Client{Schedule: server.Schedule, Skew: p.Skew, KnockDelay: p.KnockDelay, KnockTimeout: p.KnockTimeout}, nil
}

// complete reports what the profile lacks, as far as can be told without the key.
func (p *Profile) complete() error {
	if _, err := parseScheme(p.Scheme); err != nil {
		return err
	}
	for _, g := range schemeNamed(p.Scheme).groups {
		if g.complete != nil {
			if err := g.complete(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// drawsItsOwn is a check for schemes without a Sequence.
func rejectSequence(p *Profile, _ settings) (keyword string, err error) {
	if len(p.Sequence) > 0 {
		return "Sequence", fmt.Errorf("is only used with Scheme static, not with %s", p.Scheme)
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
	server: func(p *Profile, _ knock.Key) (Server, error) { return Server{Schedule: p.Sequence}, nil },
}
