package profile

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
)

// SPA has the settings of the scheme fwknop, besides the KeyFile or the KeyCommand.
type SPA struct {
	Port           uint16         // port on which fwknopd listens; 0 means another random port for each packet
	Protocol       spa.Via        // how the packet travels to fwknopd
	AllowIP        netip.Addr     // address to open the ports for; the zero Addr is the packet's source
	AllowIPCommand []string       // program and arguments; it prints the address to use as AllowIP
	Timeout        time.Duration  // length of the opening that the client asks for; 0 leaves it to the server
	Digest         spa.Digest     // digest of the packet's fields
	Mode           spa.Mode       // mode of the encryption
	User           string         // user name in the packet; "" means $LOGNAME, $USER, $USERNAME or "NO_USER"
	TimeOffset     time.Duration  // time to add to the clock
	NATAccess      netip.AddrPort // where the server forwards the port; the zero AddrPort means nowhere
	NATLocal       bool           // whether NATAccess is a port of the server itself; needs NATAccess
	HMACKeyFile    string         // absolute path of the file with the HMAC key; "" if the server uses no HMAC
	HMACDigest     spa.Digest     // digest of the HMAC
}

// spaSettings are the settings for the content and the destination of SPA packets.
var spaSettings = &group{
	object: "fwknop",
	prefix: "SPA",
	keywords: []keyword{
		value("SPAPort", parseSPAPort, func(p *Profile) *uint16 { return &p.SPA.Port }, zeroAs("random", decimal[uint16])),
		value("SPAProtocol", spa.Parse[spa.Via], func(p *Profile) *spa.Via { return &p.SPA.Protocol }, spa.Via.String),
		value("AllowIP", parseAllowIP, func(p *Profile) *netip.Addr { return &p.SPA.AllowIP }, zeroAs("source", netip.Addr.String)).
			inJSON(func(p *Profile) any { return orNil(p.SPA.AllowIP) }).
			shownWhen(func(p *Profile) bool { return len(p.SPA.AllowIPCommand) == 0 }),
		command("AllowIPCommand", false, func(p *Profile) *[]string { return &p.SPA.AllowIPCommand }),
		duration("SPATimeout", within(0, spa.MaxTimeout, time.Second), func(p *Profile) *time.Duration { return &p.SPA.Timeout }),
		value("SPADigest", spa.Parse[spa.Digest], func(p *Profile) *spa.Digest { return &p.SPA.Digest }, spa.Digest.String),
		value("SPAMode", spa.Parse[spa.Mode], func(p *Profile) *spa.Mode { return &p.SPA.Mode }, spa.Mode.String),
		text("SPAUser", spa.CheckUser, func(p *Profile) *string { return &p.SPA.User }),
		duration("TimeOffset", parseOffset, func(p *Profile) *time.Duration { return &p.SPA.TimeOffset }),
		value("NATAccess", parseNAT, func(p *Profile) *netip.AddrPort { return &p.SPA.NATAccess }, zeroAs("", natWord)),
		yesNo("NATLocal", func(p *Profile) *bool { return &p.SPA.NATLocal }),
		secretFile("HMACKeyFile", func(p *Profile) *string { return &p.SPA.HMACKeyFile }),
		value("HMACDigest", spa.Parse[spa.Digest], func(p *Profile) *spa.Digest { return &p.SPA.HMACDigest }, spa.Digest.String).
			shownWhen(func(p *Profile) bool { return p.SPA.HMACKeyFile != "" }),
	},
	defaults: func(p *Profile, given settings) {
		if !given.has("SPAPort") { // 0 means a random port
			p.SPA.Port = 62201
		}
	},
	check: func(p *Profile) (keyword string, err error) {
		if len(p.SPA.AllowIPCommand) > 0 && p.SPA.AllowIP.IsValid() {
			return "AllowIPCommand", errors.New("cannot be combined with AllowIP")
		}
		return "", nil
	},
	complete: func(p *Profile) error {
		if p.SPA.NATLocal && !p.SPA.NATAccess.IsValid() {
			return errors.New("NATLocal needs a NATAccess")
		}
		return nil
	},
}

func parseSPAPort(s string) (uint16, error) {
	if strings.EqualFold(s, "random") {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535 or random", s)
	}
	return uint16(n), nil
}

func parseAllowIP(s string) (netip.Addr, error) {
	if strings.EqualFold(s, "source") {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return netip.Addr{}, fmt.Errorf("%q is not an IPv4 address or source", s)
	}
	return a, nil
}

// parseOffset reads a duration that may have a minus sign.
func parseOffset(s string) (time.Duration, error) {
	size, minus := strings.CutPrefix(s, "-")
	d, err := ParseDuration(size)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is not a time such as 90 or -1h30m", s)
	case minus:
		return -d, nil
	}
	return d, nil
}

func parseNAT(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ",")
	a, err := netip.ParseAddrPort(host + ":" + port)
	if !ok || err != nil || !a.Addr().Is4() || a.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is not an IPv4 address and a port such as 10.0.0.5,22", s)
	}
	return a, nil
}

func natWord(to netip.AddrPort) string { return fmt.Sprintf("%v,%d", to.Addr(), to.Port()) }

// fwknopScheme sends SPA packets.
var fwknopScheme = scheme{
	name:     "fwknop",
	facts:    Facts{SingleUse: true, IPv4Only: true},
	groups:   []*group{keySettings, spaSettings},
	parseKey: parseForeignKey,
	check: func(p *Profile, given settings) (keyword string, err error) {
		s := &p.SPA
		switch {
		case len(p.Sequence) > 0:
			return "Sequence", errors.New("is only used with Scheme static, not with fwknop")
		case p.AddressFamily == "inet6":
			return "AddressFamily", errors.New("fwknopd opens ports for IPv4 only")
		case p.BindAddress.Is6():
			return "BindAddress", errors.New("fwknopd opens ports for IPv4 only")
		case p.DeriveHostKey:
			return "DeriveHostKey", errors.New("cannot be used with Scheme fwknop")
		case p.Repeat > 0:
			return "Repeat", errors.New("cannot be used with Scheme fwknop: fwknopd accepts each packet only once")
		case s.Mode == spa.Legacy && s.HMACKeyFile != "":
			return "HMACKeyFile", errors.New("cannot be used with SPAMode legacy")
		case s.HMACKeyFile != "" && s.HMACKeyFile == p.KeyFile:
			return "HMACKeyFile", errors.New("must be another file than KeyFile")
		case s.Protocol != spa.UDP && s.Port == 0 && given.has("SPAPort"):
			return "SPAPort", errors.New("random is only possible with SPAProtocol udp")
		}
		for _, r := range p.OpenPorts {
			if s.Protocol != spa.UDP && r.Contains(knock.Step{Transport: knock.TCP, Port: s.Port}) {
				return "SPAPort", fmt.Errorf("%d/tcp is one of the OpenPorts; a guarded port cannot receive the packet", s.Port)
			}
			if r.First != r.Last {
				return "OpenPorts", fmt.Errorf("fwknopd opens only single ports; %v is a range", r)
			}
		}
		return "", nil
	},
	server: func(p *Profile, k knock.Key) (_ Server, err error) {
		s := &p.SPA
		keys := &spa.Keys{
			Key: k, Mode: s.Mode, Port: s.Port, Via: s.Protocol,
			NAT: s.NATAccess, NATLocal: s.NATLocal, RequireSource: s.AllowIP.IsValid(),
		}
		if s.HMACKeyFile != "" {
			keys.HMAC = s.HMACDigest
			if keys.HMACKey, err = loadKey(s.HMACKeyFile, parseForeignKey); err != nil {
				return Server{}, err
			}
		}
		// This error gets no keyword: it may be about several settings, and it names its subject.
		_, err = p.request(keys).Packet(time.Now())
		return Server{SPA: keys, Fingerprint: k.Fingerprint()}, err
	},
	picker: func(ctx context.Context, p *Profile, server Server) (_ knock.Picker, err error) {
		r := p.request(server.SPA)
		if command := p.SPA.AllowIPCommand; len(command) > 0 {
			r.Allow, err = run(ctx, p, "AllowIPCommand", command, "an address", parsePrinted)
		}
		return r, err
	},
}

// request returns what a client asks fwknopd for. Its address is the AllowIP.
func (p *Profile) request(keys *spa.Keys) *spa.Request {
	s := &p.SPA
	return &spa.Request{
		Keys: *keys, Digest: s.Digest, User: cmp.Or(s.User, userName()), Allow: s.AllowIP, Ports: p.OpenPorts, Timeout: s.Timeout,
		Host: cmp.Or(p.HostName, p.Name), Offset: s.TimeOffset, KnockDelay: p.KnockDelay,
	}
}

// parsePrinted returns the IPv4 address that a command printed.
func parsePrinted(text []byte) (netip.Addr, error) {
	a, err := netip.ParseAddr(string(bytes.TrimSpace(text)))
	if err != nil || !a.Is4() {
		return netip.Addr{}, fmt.Errorf("printed %.40q, which is not an IPv4 address", text)
	}
	return a, nil
}

// parseForeignKey returns the key for fwknop that a text contains. It removes one final
// newline. After "base64:", the rest of the text is the key in base64. A text that
// starts with "portknock-key-" is a key of portknock, and its bytes are the key for
// fwknop. Any other text is itself the key.
func parseForeignKey(text []byte) (knock.Key, error) {
	text = trimNewline(text)
	digits, isBase64 := bytes.CutPrefix(text, []byte("base64:"))
	switch {
	case len(text) == 0:
		return knock.Key{}, errors.New("empty, expected a key")
	case bytes.HasPrefix(text, []byte("portknock-key-")):
		return knock.ParseKey(string(text))
	case !isBase64:
		return knock.KeyFrom(text), nil
	}
	// fwknop accepts any number of "=" at the end.
	secret, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(string(bytes.TrimSpace(digits)), "="))
	if err != nil || len(secret) == 0 {
		return knock.Key{}, errors.New("the text after base64: is not base64")
	}
	return knock.KeyFrom(secret), nil
}

// userName returns the user name that the fwknop client sends. It skips names that
// fwknopd does not accept.
func userName() string {
	for _, variable := range []string{"LOGNAME", "USER", "USERNAME"} {
		if name := os.Getenv(variable); spa.CheckUser(name) == nil {
			return name
		}
	}
	return "NO_USER"
}
