package profile

import (
	"errors"
	"time"

	"github.com/portknock/portknock/knock"
)

// md5HourlyScheme draws another sequence each hour, as the shell function of Roland Mas does.
var md5HourlyScheme = scheme{
	name:     "md5-hourly",
	groups:   []*group{keySettings, drawSettings, clockSettings, repeatSettings}, // the zero Protocol, tcp, is right
	parseKey: parseSecret,
	check: func(p *Profile, given settings) (keyword string, err error) {
		switch {
		case p.Period > 0 && p.Period != time.Hour:
			return "Period", errors.New("must be one hour with Scheme md5-hourly")
		case p.PortRange.Transport == knock.UDP:
			return "Protocol", errors.New("must be tcp with Scheme md5-hourly")
		case p.DeriveHostKey:
			return "DeriveHostKey", errors.New("cannot be used with Scheme md5-hourly")
		}
		return rejectSequence(p, given)
	},
	// Server returns no fingerprint: an attacker could guess a short secret from it.
	server: func(p *Profile, k knock.Key) (Server, error) {
		s := knock.MD5Hourly{Secret: k, Ports: p.PortRange, Knocks: p.Knocks}
		return Server{Schedule: s, KnockPorts: []knock.PortRange{p.PortRange}}, nil
	},
}
