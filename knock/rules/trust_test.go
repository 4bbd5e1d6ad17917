package rules

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/portknock/portknock/knock/spa"
)

// trust returns the sources of a list that must be valid.
func trust(t testing.TB, list string) []Trust {
	t.Helper()
	sources, err := ParseTrust(list)
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

// TestTrustHasOneSpelling: the same sources give the same rules, in any order and spelling.
func TestTrustHasOneSpelling(t *testing.T) {
	for list, want := range map[string]string{
		"wg0":                           "wg0",
		"192.168.1.5":                   "192.168.1.5",
		"192.168.1.5/32":                "192.168.1.5",
		"2001:DB8:0::7/128":             "2001:db8::7",
		"2001:db8::/32,10.0.0.0/8, wg0": "wg0 10.0.0.0/8 2001:db8::/32",
		"wg0 eth1.7 br-lan wg0 _@b":     "_@b br-lan eth1.7 wg0",
		"10.1.0.0/16 10.0.0.0/8 10.1.2.3 11.0.0.0/8 9.9.9.9 10.0.0.0/8": "9.9.9.9 10.0.0.0/8 11.0.0.0/8",
		"2001:db8::1 ::/1 0.0.0.0/0 1.2.3.4":                            "0.0.0.0/0 ::/1",
		"fe80::/10 15_bytes_or_les":                                     "15_bytes_or_les fe80::/10",
	} {
		if got := strings.Join(Options{Trust: trust(t, list)}.trusted().all(), " "); got != want {
			t.Errorf("%q: %q, want %q", list, got, want)
		}
	}
}

// TestParseTrustErrorsNameTheWayOut: a wrong source gives one line that says what to write.
func TestParseTrustErrorsNameTheWayOut(t *testing.T) {
	const noSource = "not an interface, an address or a prefix"
	for list, want := range map[string]string{
		"":                    "no source given",
		" ,":                  "no source given",
		"wg0 192.168.1.5/24":  `"192.168.1.5/24": bits are set after the prefix; write 192.168.1.0/24, or 192.168.1.5 for one address`,
		"2001:db8::1/64":      "write 2001:db8::/64, or 2001:db8::1",
		"fe80::1%eth0":        "write fe80::1, or trust the interface eth0",
		"fe80::%eth0/64":      "trust the interface eth0",
		"::ffff:192.168.1.5":  "write 192.168.1.5",
		"::ffff:10.1.0.0/104": "write 10.0.0.0/8",
		"10.0.0.0/33":         noSource,
		"10.0.0.0/08":         noSource,
		"10.0.0.0/":           noSource,
		"10.0.0":              noSource,
		"192.168.1":           noSource,
		"010.0.0.1":           noSource,
		"5":                   noSource,
		".":                   noSource,
		"..":                  noSource,
		"aa:bb:cc:dd:ee:ff":   noSource,
		"eth0:1":              noSource,
		"wg0/24":              noSource,
		"-i":                  `does not start with "-"`,
		"eth+":                "the name of an interface has letters",
		"eth*":                "the name of an interface has letters",
		`eth0"`:               "the name of an interface has letters",
		"eth0;reboot":         "the name of an interface has letters",
		"$(reboot)":           "the name of an interface has letters",
		"größe":               "the name of an interface has letters",
		"a\nb":                "the name of an interface has letters",
		"16_bytes_or_more":    "at most 15 bytes",
		"wg0.COPY":            "the rules use this name",
		"PORTKNOCKIN":         "the rules use this name",
	} {
		_, err := ParseTrust(list)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", list, err, want)
		}
	}
}

// TestEmitRefusesUselessTrust: no format accepts a source that makes the guard useless, unless
// Force is set.
func TestEmitRefusesUselessTrust(t *testing.T) {
	vps := mustGuard(t, "vps", "7001/udp 8003/tcp 9005/udp", "22")
	for _, list := range []string{"0.0.0.0/0", "wg0 ::/0"} {
		o := Options{Trust: trust(t, list)}
		err := Format("nftables").Emit(new(strings.Builder), []Guard{vps}, o)
		refusal, ok := errors.AsType[*Refusal](err)
		if !ok || refusal.Option != "Force" || !strings.Contains(err.Error(), "trusts every address") {
			t.Errorf("%q: %v", list, err)
		}
		o.Force = true
		if err := Format("iptables").Emit(new(strings.Builder), []Guard{vps}, o); err != nil {
			t.Errorf("%q with Force: %v", list, err)
		}
	}
	if err := Format("nftables").Emit(new(strings.Builder), []Guard{vps}, Options{Trust: make([]Trust, 1)}); err == nil {
		t.Error("the zero Trust is accepted")
	}
	nat := spaGuard(t, "inner", spa.Keys{HMACKey: hmacKey, NAT: netip.MustParseAddrPort("10.0.0.5:22")}, "22/tcp")
	err := Format("fwknop").Emit(new(strings.Builder), []Guard{nat}, Options{Trust: trust(t, "wg0")})
	if err == nil || !strings.Contains(err.Error(), "no rule guards the port of a NATAccess") {
		t.Errorf("for a NATAccess: %v", err)
	}
}

// TestTrustNamedLikePlaceholder: the name of an interface appears unchanged in the rules, also
// if the rules of nftables have a placeholder of this name.
func TestTrustNamedLikePlaceholder(t *testing.T) {
	const names = "ID KEY LAST LOG MARK SADDR SIZE TRUSTED vpnID"
	for _, f := range []Format{"nftables", "iptables", "knockd"} {
		var text strings.Builder
		o := Options{Trust: trust(t, names), DropPolicy: true}
		if err := f.Emit(&text, []Guard{mustGuard(t, "vps", "7001 8003 9005", "22")}, o); err != nil {
			t.Fatal(err)
		}
		want := `iifname { "` + strings.ReplaceAll(names, " ", `", "`) + `" } `
		for name := range strings.FieldsSeq(names) {
			if f == "iptables" {
				want = " -i " + name + " "
			}
			if n := strings.Count(text.String(), want); n < 2 {
				t.Errorf("%s: the rules have %q %d times", f, want, n)
			}
		}
	}
}

// FuzzParseTrust: each source that is accepted has one spelling, which needs no quotes.
func FuzzParseTrust(f *testing.F) {
	for _, list := range []string{"wg0", "192.168.1.0/24,2001:db8::7", "::ffff:1.2.3.4", "fe80::1%eth0", "a@b.c-_ 5", "1.2.3.4/31"} {
		f.Add(list)
	}
	f.Fuzz(func(t *testing.T, list string) {
		sources, err := ParseTrust(list)
		if err != nil {
			return
		}
		for _, s := range sources {
			again, err := ParseTrust(s.String())
			if err != nil || len(again) != 1 || again[0] != s {
				t.Errorf("%q: %v becomes %v, %v", list, s, again, err)
			}
			if quote(s.String()) != s.String() {
				t.Errorf("%q: %v needs quotes", list, s)
			}
		}
		merged := Options{Trust: sources}.trusted().all()
		if len(merged) == 0 || len(merged) > len(sources) {
			t.Errorf("%q: %v becomes %v", list, sources, merged)
		}
	})
}
