package profile

import (
	"fmt"

	"github.com/portknock/portknock/knock"
)

// tokenScheme sends one packet, a token, which the server's kernel verifies.
var tokenScheme = scheme{
	name:     "token",
	facts:    Facts{DerivesKeys: true},
	groups:   []*group{keySettings, tokenSettings, clockSettings, repeatSettings},
	parseKey: parseKey,
	check:    rejectSequence,
	server: func(p *Profile, k knock.Key) (Server, error) {
		s := knock.Token{Key: k, Port: p.TokenPort, Period: p.Period, Tokens: p.TokensPerWindow}
		return Server{Schedule: s, Fingerprint: k.Fingerprint()}, nil
	},
}

// tokenSettings are the settings for the port and the number of tokens.
var tokenSettings = &group{
	keywords: []keyword{
		number("TokenPort", "a port", 1, 65535, func(p *Profile) *uint16 { return &p.TokenPort }),
		number("TokensPerWindow", "a number", 1, knock.MaxTokens, func(p *Profile) *int { return &p.TokensPerWindow }),
	},
	defaults: func(p *Profile, _ settings) {
		setDefault(&p.TokenPort, 62202)
		setDefault(&p.TokensPerWindow, 8)
		setDefault(&p.Repeat, 2) // only rules of this project verify tokens, and these accept repeated knocks
	},
	check: func(p *Profile) (keyword string, err error) {
		token := knock.Step{Transport: knock.UDP, Port: p.TokenPort}
		for _, open := range p.OpenPorts {
			if open.Contains(token) {
				return "OpenPorts", fmt.Errorf("%v includes TokenPort (%d), which must not be a guarded port", open, p.TokenPort)
			}
		}
		return "", nil
	},
}
