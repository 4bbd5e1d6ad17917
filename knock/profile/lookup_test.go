package profile

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"
)

func TestLookup(t *testing.T) {
	const seq = "    Sequence 7000 8000\n"
	for _, tt := range []struct {
		name, file, host string
		want             string // "NAME HOSTNAME PORT", or "error: …"
	}{
		{"literal", "Host vps\n    Port 1\n" + seq, "vps", "vps  1"},
		{"literal, any case", "Host Vps\n    Port 1\n" + seq, "vPS", "vps  1"},
		{"no such host", "Host vps\n" + seq, "web", `error: no profile for "web" in file`},
		{"empty file", "", "vps", `error: no profile for "vps" in file`},
		{"only a HostName", "Host vps\n    HostName 192.0.2.1\n", "vps", `error: no profile for "vps" in file`},
		{"star", "Host *.example\n    Port 1\n" + seq, "Web.Example", "web.example  1"},
		{"star matches the empty string", "Host vps*\n    Port 1\n" + seq, "vps", "vps  1"},
		{"several stars", "Host *a*b*c\n    Port 1\n" + seq, "xaxbbxcc", "xaxbbxcc  1"},
		{"several stars, letters in another order", "Host *a*b*c\n" + seq, "xaxcxb", `error: no profile for "xaxcxb" in file`},
		{"question mark matches one letter", "Host v?s\n    Port 1\n" + seq, "vxs", "vxs  1"},
		{"question mark matches one letter outside ASCII", "Host v?s\n    Port 1\n" + seq, "vüs", "vüs  1"},
		{"question mark does not match the empty string", "Host vp?s\n" + seq, "vps", `error: no profile for "vps" in file`},
		{"question mark does not match two letters", "Host v?s\n" + seq, "vpps", `error: no profile for "vpps" in file`},
		{"dot matches only a dot", "Host a.b\n" + seq, "axb", `error: no profile for "axb" in file`},
		{"comma does not separate patterns", "Host a,b\n" + seq, "a", `error: no profile for "a" in file`},
		{"negated literal after a star", "Host * !vps\n" + seq, "vps", `error: no profile for "vps" in file`},
		{"negated literal before a star", "Host !VPS *\n" + seq, "vps", `error: no profile for "vps" in file`},
		{"negated wildcard after a star", "Host * !v*\n" + seq, "vps", `error: no profile for "vps" in file`},
		{"literal also negated", "Host vps !vps\n" + seq, "vps", `error: no profile for "vps" in file`},
		{"another host negated", "Host * !web\n    Port 1\n" + seq, "vps", "vps  1"},
		{"only another host negated", "Host !web\n" + seq, "vps", `error: no profile for "vps" in file`},
		{"first value counts", "Host vps\n    Port 1\n" + seq + "Host *\n    Port 2\n    HostName h\n", "vps", "vps h 1"},
		{"first value counts, star first", "Host *\n    Port 2\nHost vps\n    Port 1\n" + seq, "vps", "vps  2"},
		{"setting above the first Host", "Port 2\nHost vps\n    Port 1\n" + seq, "vps", "vps  2"},
		{"two blocks for one name", "Host vps\n    Port 1\nHost VPS\n    HostName h\n" + seq, "vps", "vps h 1"},
		{"name twice in a Host line", "Host vps vps\n    Port 1\n" + seq, "vps", "vps  1"},

		{"HostName with %h", "Host vps\n    HostName %h.example\n" + seq, "VPS", "vps VPS.example 0"},
		{
			"HostName with %h, too long", "Host *\n    HostName %h.%h\n" + seq, strings.Repeat("a", 200),
			`error: file:2: HostName: "` + strings.Repeat("a", 200) + "." + strings.Repeat("a", 99) + `" is not a host name`,
		},
		{"HostName with %%", "Host vps\n    HostName fe80::1%%eth0\n" + seq, "vps", "vps fe80::1%eth0 0"},

		{"address with a name", "Host vps 203.0.113.7\n" + seq, "203.0.113.7", "vps  0"},
		{"address with two names", "Host 203.0.113.7 vps web\n" + seq, "203.0.113.7", "vps  0"},
		{"address before the name", "Host 203.0.113.7 *.x VPS\n" + seq, "203.0.113.7", "vps  0"},
		{"address without a name", "Host 203.0.113.7\n" + seq, "203.0.113.7", "203.0.113.7  0"},
		{"address, name in another line", "Host 203.0.113.7\n" + seq + "Host vps\n" + seq, "203.0.113.7", "203.0.113.7  0"},
		{"address, name in a line by star", "Host 203.* vps\n" + seq, "203.0.113.7", "203.0.113.7  0"},
		{"address, name in a later line", "Host *\n    Port 1\nHost vps 203.0.113.7\n" + seq, "203.0.113.7", "vps  1"},
		{"address, negated name", "Host 203.0.113.7 !vps\n" + seq, "203.0.113.7", "203.0.113.7  0"},
		{"two names, one HostName", "Host vps Web\n    HostName h\n" + seq, "web", "vps h 0"},
		{"two names after an address, one HostName", "Host 203.0.113.7 vps web\n    HostName h\n" + seq, "web", "vps h 0"},
		{"two names, a HostName each", "Host vps web\n    HostName %h.example\n" + seq, "web", "web web.example 0"},
		{"two names, one HostName with a percent sign", "Host vps web\n    HostName fe80::1%%h0\n" + seq, "web", "vps fe80::1%h0 0"},
		{"two names, HostName under Host *", "Host vps web\n    Port 1\n" + seq + "Host *\n    HostName h\n", "web", "web h 1"},
		{"IPv6 address in capitals", "Host vps 2001:db8::1\n" + seq, "2001:DB8::1", "vps  0"},

		{"by HostName", "Host vps\n    HostName 203.0.113.7\n    Port 1\n" + seq, "203.0.113.7", "vps 203.0.113.7 1"},
		{"by HostName, any case, dot", "Host vps\n    HostName Web.Example.\n" + seq, "web.example", "vps Web.Example. 0"},
		{"by HostName, dot in host", "Host vps\n    HostName web.example\n" + seq, "web.example.", "vps web.example 0"},
		{"by HostName, IPv6", "Host vps\n    HostName 2001:db8:0::1\n" + seq, "2001:DB8::1", "vps 2001:db8:0::1 0"},
		{"by HostName, IPv4 in IPv6", "Host vps\n    HostName ::ffff:192.0.2.1\n" + seq, "192.0.2.1", "vps ::ffff:192.0.2.1 0"},
		{"by HostName, another zone", "Host vps\n    HostName fe80::1%%eth0\n" + seq, "fe80::1", `error: no profile for "fe80::1" in file`},
		{"by HostName, %h", "Host a b\n    HostName %h.example\n" + seq, "b.example", "b b.example 0"},
		{"by HostName, Sequence in another block", "Host vps\n    HostName h\nHost vps\n    Port 1\n" + seq, "h", "vps h 1"},
		{"by HostName, first of two", "Host a\n    HostName h\n" + seq + "Host b\n    HostName h\n" + seq, "h", "a h 0"},
		{"by HostName, but the host has a Sequence itself", "Host a\n    HostName h\n" + seq + "Host h\n    Port 1\n" + seq, "h", "h  1"},
		{"by HostName, and the host has a block without Sequence", "Host a\n    HostName h\n" + seq + "Host h\n    Port 1\n", "h", "a h 0"},
		{"by HostName that an earlier block overrules", "Host a\n    HostName x\nHost a\n    HostName h\n" + seq, "h", `error: no profile for "h" in file`},
		{"by HostName that an earlier block overrules for one name", "Host a\n    HostName x\nHost a b\n    HostName h\n" + seq, "h", "b h 0"},
		{"by HostName of a block without Sequence", "Host a\n    HostName h\n", "h", `error: no profile for "h" in file`},
		{"by HostName, address before the name", "Host 192.0.2.1 vps\n    HostName h\n" + seq, "h", "vps h 0"},
		{"by HostName, only wildcards", "Port 1\nHost *.example\n    HostName h\n" + seq + "Host *\n    Port 2\n", "H", "h h 1"},
		{"by HostName, only wildcards, excluded", "Host *.example !h\n    HostName h\n" + seq, "h", `error: no profile for "h" in file`},
		{"by HostName, only wildcards and %h", "Host *.example\n    HostName %h\n" + seq, "h", `error: no profile for "h" in file`},
		{"by HostName, only negated", "Host !a\n    HostName h\n" + seq, "h", `error: no profile for "h" in file`},
		{"by HostName, only negated wildcards", "Host !a*\n    HostName h\n" + seq, "h", `error: no profile for "h" in file`},

		{"option as host", "Host *\n" + seq, "-x", `error: "-x" is not a host name`},
		{"empty host", "Host *\n" + seq, "", `error: "" is not a host name`},
		{"blank in host", "Host *\n" + seq, "a b", `error: "a b" is not a host name`},
		{"no-break space in host", "Host *\n" + seq, "a\u00a0b", `error: "a\u00a0b" is not a host name`},
		{"newline in host", "Host *\n" + seq, "a\nb", `error: "a\nb" is not a host name`},
		{"escape in host", "Host *\n" + seq, "a\x1b", `error: "a\x1b" is not a host name`},
		{"host not UTF-8", "Host *\n" + seq, "a\xff", `error: "a\xff" is not a host name`},
		{"pattern as host", "Host *\n" + seq, "a*", `error: "a*" is not a host name`},
		{"zone in host", "Host *\n" + seq, "fe80::1%eth0", "fe80::1%eth0  0"},
		{"host of 255 bytes", "Host *\n" + seq, strings.Repeat("a", 255), strings.Repeat("a", 255) + "  0"},
		{"host of 256 bytes", "Host *\n" + seq, strings.Repeat("a", 256), `error: "` + strings.Repeat("a", 256) + `" is not a host name`},

		{"scheme static without Sequence", "Host *\n    Scheme static\n", "vps", "error: file:2: Scheme: static needs a Sequence"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			if p, err := mustParse(t, tt.file).Lookup(tt.host); err != nil {
				got = "error: " + err.Error()
				if strings.Contains(got, "no profile") != errors.Is(err, ErrNoProfile) {
					t.Errorf("only an error \"no profile\" must be ErrNoProfile: got %v", err)
				}
			} else {
				got = fmt.Sprintf("%s %s %d", p.Name, p.HostName, p.Port)
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestKeyWithoutSchemeIsError: if a Host line names a host that has a key but no Scheme,
// the error has the line of the key.
func TestKeyWithoutSchemeIsError(t *testing.T) {
	const (
		key   = "    KeyCommand pass\n"
		cure  = ` has a key but no Scheme; add "Scheme rotating" or "Scheme token"`
		fleet = "Host vps\n    Scheme token\nHost lost\n    HostName %h.example\nHost *\n" + key
	)
	for _, tt := range []struct {
		name, file, host string
		want             string // the profile's name and scheme, or "error: …"
	}{
		{"KeyFile", "Host vps\n    Port 1\n    KeyFile /k\n", "vps", "error: file:3: KeyFile: profile vps" + cure},
		{"KeyCommand", "Host vps\n" + key, "vps", "error: file:2: KeyCommand: profile vps" + cure},
		{"name in another case", "Host VPS\n" + key, "Vps", "error: file:2: KeyCommand: profile vps" + cure},
		{
			"lookup of another host", "Host vps\n" + key + "Host web\n    Scheme token\n" + key, "web",
			"error: file:2: KeyCommand: profile vps" + cure,
		},
		{"name beside a pattern on the Host line", "Host *.x vps\n" + key, "a.x", "error: file:2: KeyCommand: profile vps" + cure},
		{"second name on the Host line", "Host vps web\n" + key + "Host vps\n    Scheme token\n", "vps", "error: file:2: KeyCommand: profile web" + cure},

		{"key under Host *, name without a scheme", fleet, "lost", "error: file:6: KeyCommand: profile lost" + cure},
		{"key under Host *, lookup by HostName", fleet, "lost.example", "error: file:6: KeyCommand: profile lost" + cure},
		{"key under Host *, name with a scheme", fleet, "vps", "vps token"},
		{"key under Host *, host without a Host line", fleet, "other", `error: no profile for "other" in file`},
		{"key above the first Host", "KeyCommand pass\nHost vps\n    Port 1\n", "vps", "error: file:1: KeyCommand: profile vps" + cure},
		{"key for a pattern", "Host *.x\n" + key, "a.x", `error: no profile for "a.x" in file`},
		{"key for a pattern, lookup by HostName", "Host *.x\n    HostName h\n" + key, "h", `error: no profile for "h" in file`},
		{"name that is also negated", "Host vps !vps\n" + key, "vps", `error: no profile for "vps" in file`},

		{"scheme under Host *", "Host vps\n" + key + "Host *\n    Scheme rotating\n", "vps", "vps rotating"},
		{"scheme in another block", "Host vps\n" + key + "Host web\n    Port 1\nHost vps\n    Scheme token\n", "vps", "vps token"},
		{"Sequence under Host *", "Host vps\n" + key + "Host *\n    Sequence 7000 8000\n", "vps", "vps static"},
		{"host is the HostName of another profile", "Host a\n    HostName h\n    Scheme token\nHost h\n    Port 1\nHost *\n" + key, "h", "a token"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Parse("file", []byte(tt.file))
			var p *Profile
			if err == nil {
				p, err = f.Lookup(tt.host)
			}
			var got string
			if err != nil {
				got = "error: " + err.Error()
			} else {
				got = p.Name + " " + p.Scheme
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if missing := strings.Contains(tt.want, "no profile"); errors.Is(err, ErrNoProfile) != missing || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("got %v; want ErrNoProfile: %v, and never ErrNotExist", err, missing)
			}
		})
	}
}

// manyHosts returns a file with n Host blocks of four lines.
func manyHosts(n int) []byte {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "Host host%d\n    HostName 10.%d.%d.%d\n", i, i>>16, i>>8&255, i&255)
		b.WriteString("    Port 2222\n    Sequence 7000/udp 8000/tcp 9000/udp\n\n")
	}
	b.WriteString("Host *\n    ConnectTimeout 20\n")
	return []byte(b.String())
}

func TestManyHostsTakeUnderTenSeconds(t *testing.T) {
	start := time.Now()
	f, err := Parse("file", manyHosts(10_000))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"host9999", "10.0.39.15"} {
		if p, err := f.Lookup(host); err != nil || p.Name != "host9999" {
			t.Errorf("%s: got %+v, %v; want the profile host9999", host, p, err)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v, want at most 10s", took)
	}
}

func BenchmarkParse(b *testing.B) {
	data := manyHosts(10_000)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Parse("file", data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	f := mustParse(b, string(manyHosts(10_000)))
	for name, host := range map[string]string{"name": "host9999", "hostname": "10.0.39.15"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := f.Lookup(host); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
