package rules

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
)

// spaGuard returns a guard that SPA packets to UDP port 62201 open.
func spaGuard(t testing.TB, name string, a spa.Keys, open string) Guard {
	t.Helper()
	g := mustGuard(t, name, "1000", open)
	a.Key = knock.KeyFrom(bytes.Repeat([]byte("k"), 32))
	a.Port = 62201
	g.Schedule, g.SPA, g.Fingerprint = nil, &a, a.Key.Fingerprint()
	return g
}

var hmacKey = knock.KeyFrom(bytes.Repeat([]byte("h"), 64))

func TestEmitFwknopMatchesGoldenFiles(t *testing.T) {
	vps := spaGuard(t, "vps", spa.Keys{HMACKey: hmacKey}, "22/tcp")
	old := spaGuard(t, "old", spa.Keys{Mode: spa.Legacy, Via: spa.HTTP}, "2222/tcp 53/udp")
	old.SPA.Port = 80
	tor := spaGuard(t, "Tor.example", spa.Keys{
		HMACKey:       hmacKey,
		HMAC:          spa.SHA3_512,
		Mode:          spa.CTR,
		Via:           spa.TCP,
		RequireSource: true,
	}, "443/tcp")
	far := spaGuard(t, "far", spa.Keys{HMACKey: hmacKey}, "22/tcp")
	far.SPA.Port = 0
	inner := spaGuard(t, "inner", spa.Keys{HMACKey: hmacKey, NAT: netip.MustParseAddrPort("10.0.0.5:22")}, "22/tcp")
	local := spaGuard(t, "local", spa.Keys{HMACKey: hmacKey, NAT: netip.MustParseAddrPort("192.0.2.1:2222"), NATLocal: true}, "443/tcp")
	allow, _ := knock.ParsePortRanges("80")
	for name, tt := range map[string]struct {
		guards []Guard
		o      Options
	}{
		"one": {
			guards: []Guard{vps},
		},
		"several": {
			guards: []Guard{old, tor, far},
			o:      Options{Force: true},
		},
		"trust": {
			guards: []Guard{vps},
			o:      Options{Trust: trust(t, "wg0 2001:db8:7::/48")},
		},
		"nat": {
			guards: []Guard{inner, local},
		},
		"drop": {
			guards: []Guard{vps},
			o:      Options{DropPolicy: true, Allow: allow, File: "/root/a file"},
		},
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, "fwknop", tt.guards, tt.o) })
	}
}

func TestEmitFwknopRefusesUnsupported(t *testing.T) {
	forward := func(g *Guard) { g.SPA.NAT = netip.MustParseAddrPort("10.0.0.5:22") }
	for _, tt := range []struct {
		change func(*Guard)
		o      Options
		want   string
	}{
		{
			change: forward,
			o:      Options{DropPolicy: true},
			want:   "the drop policy would close the ports that fwknopd opens for a NATAccess",
		},
		{
			change: func(g *Guard) { forward(g); g.OpenPorts = append(g.OpenPorts, knock.PortRange{First: 80, Last: 80}) },
			want:   "vps: fwknopd forwards one port, but OpenPorts has 2",
		},
		{
			change: func(g *Guard) { g.SPA.HMACKey = knock.Key{} },
			want:   "vps: without an HMAC, fwknopd decrypts packets from everyone; set HMACKeyFile",
		},
		{
			change: func(g *Guard) { g.OpenFor = 1500 * time.Millisecond },
			want:   "vps: OpenFor (1.5s) must be whole seconds",
		},
		{
			change: func(g *Guard) { g.SPA.Via, g.SPA.Port = spa.TCP, 22 },
			want:   "vps: the packet goes to a guarded port",
		},
		{
			change: func(g *Guard) { g.SPA.Via = spa.HTTP },
			o:      Options{DropPolicy: true, Allow: []knock.PortRange{{First: 80, Last: 80}}},
			want:   "vps: the packet needs a connection to 62201/tcp, which the drop policy closes",
		},
		{
			change: func(g *Guard) { g.OpenPorts[0].Last = 23 },
			want:   "vps: fwknopd opens only single ports; 22-23/tcp is a range",
		},
		{
			change: func(g *Guard) { g.Name = "a\nb" },
			want:   "a\nb: the name contains control characters",
		},
		{
			change: func(*Guard) {},
			o:      Options{Consume: true},
			want:   "fwknopd only listens, so it cannot drop the packets",
		},
	} {
		g := spaGuard(t, "vps", spa.Keys{HMACKey: hmacKey}, "22/tcp")
		tt.change(&g)
		var b strings.Builder
		if err := Format("fwknop").Emit(&b, []Guard{g}, tt.o); err == nil || err.Error() != tt.want || b.Len() > 0 {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
	two := []Guard{
		spaGuard(t, "vps", spa.Keys{HMACKey: hmacKey, Via: spa.TCP}, "22"),
		spaGuard(t, "web", spa.Keys{HMACKey: hmacKey, Via: spa.TCP}, "80"),
	}
	two[1].SPA.Port = 62202
	want := "web: fwknopd listens at one TCP port, but another profile uses 62201; use one SPAPort"
	if err := Format("fwknop").Emit(new(strings.Builder), two, Options{}); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	forwarded := spaGuard(t, "vps", spa.Keys{HMACKey: hmacKey}, "22/tcp")
	guarded := spaGuard(t, "web", spa.Keys{HMACKey: hmacKey}, "80/tcp")
	forward(&forwarded)
	err := Format("fwknop").Emit(new(strings.Builder), []Guard{forwarded, guarded}, Options{})
	want = "profiles with and without NATAccess need two files: " +
		"fwknopd forwards with its own rules"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	for _, format := range Formats() {
		g := spaGuard(t, "vps", spa.Keys{HMACKey: hmacKey}, "22/tcp")
		want := fmt.Sprintf("vps: format %s cannot verify the packets of Scheme fwknop", format)
		if format == "fwknop" {
			g, want = mustGuard(t, "vps", "7001 9005", "22"), "vps: format fwknop is for Scheme fwknop only"
		}
		if err := format.Emit(new(strings.Builder), []Guard{g}, Options{}); err == nil || err.Error() != want {
			t.Errorf("%s: got error %v, want a refusal for the scheme", format, err)
		}
	}
}
