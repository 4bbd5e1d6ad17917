package profile

import (
	"fmt"

	"github.com/portknock/portknock/knock"
)

// tokenScheme sends one packet that the server's kernel verifies.
var tokenScheme = scheme{
	name:     "token",
	facts:    Facts{FollowsClock: true, DerivesKeys: true},
	uses:     ofKey | ofClock | ofToken,
	parseKey: parseKey,
	defaults: func(p *Profile, given settings) {
		p.defaultClock(given)
		setDefault(&p.TokenPort, 62202)
		setDefault(&p.TokensPerWindow, 8)
	},
	check: drawsItsOwn,
	server: func(p *Profile, k knock.Key) (Server, error) {
		s := knock.Token{Key: k, Port: p.TokenPort, Period: p.Period, Tokens: p.TokensPerWindow}
		return Server{Schedule: s, Fingerprint: k.Fingerprint()}, nil
	},
}

// checkToken is a check for where tokens go.
func (p *Profile) checkToken() (keyword string, err error) {
	token := knock.Step{Transport: knock.UDP, Port: p.TokenPort}
	for _, open := range p.OpenPorts {
		if p.TokenPort > 0 && open.Contains(token) {
			return "OpenPorts", fmt.Errorf("%v includes the TokenPort, %d, and a guarded port takes no tokens", open, p.TokenPort)
		}
	}
	return "", nil
}
