package profile

import "github.com/portknock/portknock/knock"

// rotatingScheme draws another sequence for each window.
var rotatingScheme = scheme{
	name:  "rotating",
	facts: Facts{DerivesKeys: true},
	groups: []*group{keySettings, drawSettings, clockSettings, repeatSettings, {defaults: func(p *Profile, given settings) {
		if !given.has("Protocol") {
			p.PortRange.Transport = knock.UDP
		}
	}}},
	parseKey: parseKey,
	check:    rejectSequence,
	server: func(p *Profile, k knock.Key) (Server, error) {
		s := knock.Rotating{Key: k, Ports: p.PortRange, Knocks: p.Knocks, Period: p.Period}
		return Server{Schedule: s, KnockPorts: []knock.PortRange{p.PortRange}, Fingerprint: k.Fingerprint()}, nil
	},
}
