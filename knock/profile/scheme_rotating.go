package profile

import "github.com/portknock/portknock/knock"

// rotatingScheme draws another sequence in each window.
var rotatingScheme = scheme{
	name:     "rotating",
	facts:    Facts{FollowsClock: true, DerivesKeys: true},
	uses:     ofKey | ofClock | ofDraw,
	parseKey: parseKey,
	defaults: func(p *Profile, given settings) {
		p.defaultClock(given)
		p.defaultDraw()
		if !given.have("Protocol") {
			p.PortRange.Transport = knock.UDP
		}
	},
	check:    drawsItsOwn,
	complete: (*Profile).completeDraw,
	server: func(p *Profile, k knock.Key) (Server, error) {
		s := knock.Rotating{Key: k, Ports: p.PortRange, Knocks: p.Knocks, Period: p.Period}
		return p.drawn(s, k.Fingerprint()), nil
	},
}
