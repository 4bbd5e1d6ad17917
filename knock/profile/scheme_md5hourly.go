package profile

import (
	"errors"
	"time"

	"github.com/portknock/portknock/knock"
)

// md5HourlyScheme draws another sequence each hour, as Roland Mas' shell function does.
var md5HourlyScheme = scheme{
	name:     "md5-hourly",
	groups:   []*group{keySettings, drawSettings, clockSettings}, // the Protocol's zero value is its own, tcp
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
	// No fingerprint: a secret of few letters could be guessed from it.
	server: func(p *Profile, k knock.Key) (Server, error) {
		s := knock.MD5Hourly{Secret: k, Ports: p.PortRange, Knocks: p.Knocks}
		return Server{Schedule: s, KnockPorts: []knock.PortRange{p.PortRange}}, nil
	},
}
