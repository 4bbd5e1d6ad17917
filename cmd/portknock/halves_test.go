package main

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
)

// TestTargetsShareTokens: the Picker knows the addresses that this machine can reach. If the
// other family has not answered yet, the Picker keeps tokens for it. This also holds if the
// client knocks for two guards.
func TestTargetsShareTokens(t *testing.T) {
	ip := netip.MustParseAddr
	v4, v6 := ip("192.0.2.1"), ip("2001:db8::1")
	for _, tt := range []struct {
		name  string
		bind  string // BindAddress: only its family has a source
		addrs []netip.Addr
		more  bool
		late  []netip.Addr
		want  []netip.Addr
	}{
		{"no source for IPv6", "127.0.0.1", []netip.Addr{v6, v4}, false, nil, []netip.Addr{v4}},
		{"no source for IPv4", "::1", []netip.Addr{v4, v6}, false, nil, []netip.Addr{v6}},
		{"IPv6 may follow", "127.0.0.1", []netip.Addr{v4}, true, nil, []netip.Addr{v4, netip.IPv6Unspecified()}},
		{"IPv4 may follow", "::1", []netip.Addr{v6}, true, nil, []netip.Addr{v6, netip.IPv4Unspecified()}},
		{"the same Dialer connects again", "::1", []netip.Addr{v6}, false, []netip.Addr{v6}, []netip.Addr{v6}},
		{"IPv6 has followed", "::1", []netip.Addr{v4}, true, []netip.Addr{v6}, []netip.Addr{v6}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := &knocker{
				profile: &profile.Profile{BindAddress: ip(tt.bind)},
				picker:  alternating{knock.Client{}, knock.Client{}},
			}
			k.addTargets(tt.addrs, tt.more)
			if tt.late != nil {
				k.addTargets(tt.late, false)
			}
			for _, p := range []knock.Picker{k.picker.(alternating).even, k.picker.(alternating).odd} {
				if got := p.(knock.Client).Targets; !slices.Equal(got, tt.want) {
					t.Errorf("targets %v, want %v", got, tt.want)
				}
			}
		})
	}
}
