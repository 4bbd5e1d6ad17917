package profile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/portknock/portknock/knock"
)

// drawnPorts are the ports from which knocks are drawn by default.
var drawnPorts = knock.PortRange{First: 20000, Last: 59999}

// drawnKnocks is the number of knocks in a new Sequence. An attacker needs years to guess three
// ports in the right order. More knocks would mean more packets that can be lost.
const drawnKnocks = 3

// Draft returns the profile that a Host block with these settings describes. In contrast to
// [Block], settings may be missing. Draft reports only settings that contradict each other.
func Draft(host string, given []Setting) (*Profile, error) {
	if err := CheckHost(host); err != nil {
		return nil, err
	}
	p := settings(given).newProfile(settings(given).scheme())
	p.Name = strings.ToLower(host)
	p.setDefaults(given)
	if keyword, err := p.conflict(given); err != nil {
		return nil, fmt.Errorf("%s: %w", keyword, err)
	}
	return p, nil
}

// Secret is a setting that is secret, or that names the file of a key.
type Secret struct {
	Keyword string // Sequence, KeyFile or HMACKeyFile
	IsFile  bool   // the value is the path of a file with a key
	Path    string // path of the file that the profile has now; "" if it has none
}

// Secrets returns the settings for the secrets of the profile's scheme: a Sequence or the files
// of keys.
func (p *Profile) Secrets() (all []Secret) {
	s := schemeNamed(p.Scheme)
	if s.parseKey == nil {
		return []Secret{{Keyword: "Sequence"}}
	}
	for _, g := range s.groups {
		for _, k := range g.keywords {
			if k.path != nil {
				all = append(all, Secret{k.name, true, *k.path(p)})
			}
		}
	}
	return all
}

// DrawSequence returns a new random Sequence for the profile. It has as many knocks, with the
// same transports, as the profile's Sequence; without one, three TCP knocks, because a network
// that carries ssh carries TCP. The ports differ from each other and from those of the old
// Sequence, OpenPorts, IgnorePorts and Port. A scan of all ports does not send the Sequence,
// unless it has fewer than three knocks.
func (p *Profile) DrawSequence() (knock.Sequence, error) {
	seq := slices.Clone(p.Sequence)
	if len(seq) == 0 {
		seq = make(knock.Sequence, drawnKnocks)
	}
	all := func(knock.Step) bool { return true }
	for range 100 {
		var taken []uint16
		for _, step := range p.Sequence {
			taken = append(taken, step.Port)
		}
		for i := range seq {
			step, err := p.drawStep(seq[i].Transport, append(taken, p.Port))
			if err != nil {
				return nil, err
			}
			seq[i] = step
			taken = append(taken, step.Port)
		}
		if len(seq) < drawnKnocks || !seq.SweepFinds(all) {
			return seq, nil
		}
	}
	return nil, errNoPorts
}

var errNoPorts = errors.New("OpenPorts and IgnorePorts leave too few ports for the knocks")

// drawStep returns a knock to a random port that is not taken.
func (p *Profile) drawStep(transport knock.Transport, taken []uint16) (knock.Step, error) {
	var free []knock.Step
	for port := int(drawnPorts.First); port <= int(drawnPorts.Last); port++ {
		step := knock.Step{Transport: transport, Port: uint16(port)}
		contains := func(r knock.PortRange) bool { return r.Contains(step) }
		if !slices.Contains(taken, step.Port) && !slices.ContainsFunc(p.OpenPorts, contains) && !slices.ContainsFunc(p.IgnorePorts, contains) {
			free = append(free, step)
		}
	}
	if len(free) == 0 {
		return knock.Step{}, errNoPorts
	}
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(free))))
	if err != nil {
		return knock.Step{}, err
	}
	return free[n.Int64()], nil
}
