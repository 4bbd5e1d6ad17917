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
	uses  group // the settings that apply, besides those of every scheme

	// parseKey makes a key of a file's text. It is nil if the scheme has no key.
	parseKey func(text []byte) (knock.Key, error)

	// defaults fills in what given leaves out. It may be nil.
	defaults func(p *Profile, given settings)

	// check returns the first contradiction and the keyword to blame. It serves a
	// block alone too, so it does not rely on what is not given. It may be nil.
	check func(p *Profile, given settings) (keyword string, err error)

	// complete reports what a finished profile lacks. It may be nil.
	complete func(p *Profile) error

	// server makes the server's half with the key, if there is one.
	server func(p *Profile, k knock.Key) (Server, error)

	// picker makes the client's half. If it is nil, the client follows the
	// server's Schedule.
	picker func(ctx context.Context, p *Profile, k knock.Key) (knock.Picker, error)
}

// schemes is the table, and Schemes the names in it.
var (
	schemes []scheme
	Schemes []string
)

// init fills in the table, since its functions look things up in it.
func init() {
	schemes = []scheme{staticScheme, rotatingScheme, tokenScheme, md5HourlyScheme, fwknopScheme}
	for _, s := range schemes {
		Schemes = append(Schemes, s.name)
	}
}

// group is settings that some schemes use and others do not. What stands under
// "Host *" for one scheme does not apply to another.
type group uint8

const (
	ofKey   group = 1 << iota // where a key is
	ofClock                   // windows of time
	ofDraw                    // ports that are drawn
	ofToken                   // where a token goes, and how many there are
	ofSPA                     // packets of fwknop
)

// applies reports whether a keyword applies to the scheme. Everything applies
// while it is not known which scheme it is.
func (s *scheme) applies(k *keyword) bool { return s == nil || k.of == 0 || s.uses&k.of != 0 }

// schemeNamed returns the scheme of that name, or nil.
func schemeNamed(name string) *scheme {
	if i := slices.IndexFunc(schemes, func(s scheme) bool { return s.name == name }); i >= 0 {
		return &schemes[i]
	}
	return nil
}

func checkScheme(name string) error {
	if schemeNamed(name) != nil {
		return nil
	}
	return fmt.Errorf("there is no scheme %q, only %s", name, strings.Join(Schemes, ", "))
}

// Facts is what a caller may have to know of a scheme.
type Facts struct {
	FollowsClock bool // what opens changes with the time
	SingleUse    bool // the server accepts each packet once
	IPv4Only     bool // the server opens ports for IPv4 only
	DerivesKeys  bool // DeriveHostKey applies
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

// complete reports what the scheme lacks, as far as can be told without the key.
func (p *Profile) complete() error {
	if err := checkScheme(p.Scheme); err != nil {
		return err
	}
	s := schemeNamed(p.Scheme)
	if s.parseKey != nil && p.KeyFile == "" && len(p.KeyCommand) == 0 {
		return fmt.Errorf("%s needs a KeyFile or a KeyCommand", p.Scheme)
	}
	if s.complete != nil {
		return s.complete(p)
	}
	return nil
}

// defaultClock fills in the windows of a scheme that follows the clock.
func (p *Profile) defaultClock(given settings) {
	setDefault(&p.Period, time.Hour)
	if !given.have("Skew") { // 0 is a value
		p.Skew = 2 * time.Minute
	}
}

// checkClock is a check for schemes that follow the clock.
func (p *Profile) checkClock() (keyword string, err error) {
	if p.Period > 0 && p.Skew >= p.Period-p.Skew {
		// Of the two, the one that cannot be a default.
		if p.Period != time.Hour {
			return "Period", fmt.Errorf("%s is not above twice the Skew, %s", formatDuration(p.Period), formatDuration(p.Skew))
		}
		return "Skew", fmt.Errorf("twice %s is not below the Period, %s", formatDuration(p.Skew), formatDuration(p.Period))
	}
	return "", nil
}

// defaultDraw fills in what a scheme draws from.
func (p *Profile) defaultDraw() {
	if p.PortRange.First == 0 {
		p.PortRange.First, p.PortRange.Last = 20000, 59999
	}
	setDefault(&p.Knocks, 5)
}

// checkDraw is a check for schemes that draw ports.
func (p *Profile) checkDraw() (keyword string, err error) {
	if size := int(p.PortRange.Last) - int(p.PortRange.First) + 1; p.PortRange.First > 0 && size < p.Knocks {
		return "PortRange", fmt.Errorf("%d ports are not enough for %d different knocks", size, p.Knocks)
	}
	return "", nil
}

// completeDraw is what schemes that draw ports need.
func (p *Profile) completeDraw() error {
	for _, open := range p.OpenPorts {
		if r := p.PortRange; open.Transport == r.Transport && open.First <= r.Last && r.First <= open.Last {
			return fmt.Errorf("PortRange and Protocol include %v of the OpenPorts, and a guarded port cannot be a knock", open)
		}
	}
	return nil
}

// drawn returns the server's half of a scheme that draws ports.
func (p *Profile) drawn(s knock.Schedule, fingerprint string) Server {
	return Server{Schedule: s, KnockPorts: []knock.PortRange{p.PortRange}, Fingerprint: fingerprint}
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
	complete: func(p *Profile) error {
		if len(p.Sequence) == 0 {
			return errors.New("static needs a Sequence")
		}
		return nil
	},
	server: func(p *Profile, _ knock.Key) (Server, error) { return Server{Schedule: p.Sequence}, nil },
}
