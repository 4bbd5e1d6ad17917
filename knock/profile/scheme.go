package profile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
	"github.com/portknock/portknock/knock/typo"
)

// scheme is a row in the table of schemes. It contains what distinguishes one scheme
// from the others. A new scheme is a row and a file.
type scheme struct {
	name  string
	facts Facts

	// groups are the settings that apply to the scheme, in the order in which they are
	// shown. init puts commonSettings before them. Other schemes may share a group. A
	// group without keywords has defaults or requirements of this scheme only.
	groups []*group

	// parseKey returns the key in the text of a file or in the output of a command. It is
	// nil if the scheme has no key.
	parseKey func(text []byte) (knock.Key, error)

	// check returns the first contradiction that only this scheme has, and the keyword to
	// blame. It must also work for the settings of a single block. Therefore it does not
	// rely on a setting that is missing. check may be nil.
	check func(p *Profile, given settings) (keyword string, err error)

	// server returns the server's half of the profile. It uses the key if the scheme has
	// one.
	server func(p *Profile, k knock.Key) (Server, error)

	// picker returns the client's half of the profile, made from the server's half. If
	// picker is nil, the client follows the server's Schedule.
	picker func(ctx context.Context, p *Profile, server Server) (knock.Picker, error)
}

// These variables are the table of schemes, and the groups and keywords in it.
var (
	schemes  []scheme
	groups   []*group
	keywords []keyword // keywords of all settings, in the order in which they are shown
)

// init fills the tables. Initializers of the variables cannot do this, because functions
// in the tables read the tables.
func init() {
	schemes = []scheme{staticScheme, rotatingScheme, tokenScheme, md5HourlyScheme, fwknopScheme}
	for i := range schemes {
		s := &schemes[i]
		s.groups = slices.Concat([]*group{commonSettings}, s.groups)
		position := len(groups) // a new group goes before the groups that follow it in the scheme
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

// schemeNamed returns the scheme of that name. For an unknown name it returns a scheme
// that has no name and to which all settings apply.
func schemeNamed(name string) *scheme {
	if i := slices.IndexFunc(schemes, func(s scheme) bool { return s.name == name }); i >= 0 {
		return &schemes[i]
	}
	return &scheme{groups: groups}
}

// parseScheme returns the name of a scheme as the table spells it.
func parseScheme(s string) (string, error) {
	name := strings.ToLower(s)
	if schemeNamed(name).name != "" {
		return name, nil
	}
	var names []string
	for _, s := range schemes {
		names = append(names, s.name)
	}
	hint := cmp.Or(typo.Hint(name, names...), "; the schemes are "+strings.Join(names, ", "))
	return "", fmt.Errorf("unknown scheme %q%s", name, hint)
}

// Facts are the properties of a scheme that a caller may have to know.
type Facts struct {
	SingleUse   bool // whether the server accepts each packet only once
	IPv4Only    bool // whether the server opens ports for IPv4 only
	DerivesKeys bool // whether the scheme supports DeriveHostKey
}

// Facts returns the properties of the profile's scheme.
func (p *Profile) Facts() Facts { return schemeNamed(p.Scheme).facts }

// Server is what a server has to know of a profile: the Schedule, or for fwknop the
// keys.
type Server struct {
	Schedule    knock.Schedule    // sequences that open the ports; nil for fwknop
	SPA         *spa.Keys         // keys of fwknop; nil for other schemes
	KnockPorts  []knock.PortRange // ports to which knocks go, right or wrong; all ports if nil
	Fingerprint string            // fingerprint of the key; "" if there is none
}

// Server returns what a server has to know of the profile. It reads the KeyFile or runs
// the KeyCommand. A profile of the scheme static has neither. The KeyCommand may take as
// long as the Limit of the Runner, by default 30 seconds. For fwknop, Server also reads
// the HMACKeyFile, if the profile has it.
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
	// A secret that the scheme cannot use is an error at any time. Report it now, not in
	// the first round.
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

// Picker returns what a client sends. It reads the keys, as [Profile.Server] does. For
// fwknop it also runs the AllowIPCommand, if the profile has it.
func (p *Profile) Picker(ctx context.Context) (knock.Picker, error) {
	server, err := p.Server(ctx)
	if err != nil {
		return nil, err
	}
	if picker := schemeNamed(p.Scheme).picker; picker != nil {
		return picker(ctx, p, server)
	}
	return p.client(server), nil
}

// client returns the Client that follows the server's Schedule.
func (p *Profile) client(server Server) knock.Client {
	return knock.Client{
		Schedule: server.Schedule, Skew: p.Skew, KnockDelay: p.KnockDelay, KnockTimeout: p.KnockTimeout, Repeat: p.Repeat == 2,
	}
}

// complete returns an error if the profile cannot work, for example because a setting
// is missing. It checks everything that it can check without the key.
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

// rejectSequence is the check of schemes that do not use a Sequence.
func rejectSequence(p *Profile, _ settings) (keyword string, err error) {
	if len(p.Sequence) > 0 {
		return "Sequence", fmt.Errorf("is only used with Scheme static, not with %s", p.Scheme)
	}
	return "", nil
}

// staticScheme sends the Sequence of the profile.
var staticScheme = scheme{
	name: "static",
	groups: []*group{repeatSettings, {complete: func(p *Profile) error {
		if len(p.Sequence) == 0 {
			return errors.New("static needs a Sequence")
		}
		return nil
	}}},
	server: func(p *Profile, _ knock.Key) (Server, error) { return Server{Schedule: p.Sequence}, nil },
	// The server may be knockd with a file that a user has written.
	picker: func(_ context.Context, p *Profile, server Server) (knock.Picker, error) {
		c := p.client(server)
		c.Redial = !c.Repeat
		return c, nil
	},
}
