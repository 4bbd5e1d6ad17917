package rules

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
)

var update = flag.Bool("update", false, "write the golden files anew")

func mustGuard(t testing.TB, name, sequence, open string) Guard {
	t.Helper()
	seq, err := knock.ParseSequence(sequence)
	if err != nil {
		t.Fatal(err)
	}
	ports, err := knock.ParsePortRanges(open)
	if err != nil {
		t.Fatal(err)
	}
	ignore, _ := knock.ParsePortRanges("80/tcp 443/tcp 443/udp")
	return Guard{Name: name, Schedule: knock.Static(seq), OpenPorts: ports, OpenFor: 30 * time.Second, KnockTimeout: 5 * time.Second, IgnorePorts: ignore}
}

// The golden files are what the firewalls themselves are asked about in the
// lab. A change of one is a change of what runs on servers: read it.
func TestGolden(t *testing.T) {
	vps := mustGuard(t, "vps", "7001/udp 8003/tcp 9005/udp", "22/tcp")
	allow, _ := knock.ParsePortRanges("80 443 443/udp")
	for name, tt := range map[string]struct {
		guards []Guard
		o      Options
	}{
		"one":     {[]Guard{vps}, Options{}},
		"several": {[]Guard{vps, mustGuard(t, "Mosh-Server.example", "1000 2000 3000 4000", "22 60000-61000/udp")}, Options{}},
		"drop":    {[]Guard{vps}, Options{DropPolicy: true, Allow: allow}},
		"consume": {[]Guard{vps}, Options{Consume: true}},
		"single":  {[]Guard{mustGuard(t, "single", "7001/udp", "22")}, Options{Force: true}},
		// In the second window a knock is one of the first's, too.
		"rotating": {
			[]Guard{mustTurns(t, "vps", time.Hour, 2*time.Minute, "20001/udp 27000/udp 23456/udp", "21234/udp 29998/udp 27000/udp", "28000/udp 20202/udp 24000/udp")},
			Options{From: midnight.Add(30 * time.Minute), Until: midnight.Add(150 * time.Minute)},
		},
	} {
		for _, format := range Formats() {
			if (name == "consume" || name == "rotating") && format == "knockd" {
				continue
			}
			t.Run(name+"/"+format, func(t *testing.T) {
				var got bytes.Buffer
				if err := Emit(&got, format, tt.guards, tt.o); err != nil {
					t.Fatal(err)
				}
				file := filepath.Join("..", "..", "testdata", "rules", name+"."+format)
				if *update {
					if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.Bytes(), want) {
					t.Errorf("differs from %s:\n%s", file, got.String())
				}
			})
		}
	}
}

func TestEmitRefuses(t *testing.T) {
	good := func() Guard { return mustGuard(t, "vps", "7001/udp 8003/tcp", "22") }
	with := func(change func(*Guard)) []Guard { g := good(); change(&g); return []Guard{g} }
	web, _ := knock.ParsePortRanges("80")
	for name, tt := range map[string]struct {
		format string
		guards []Guard
		o      Options
		want   string
	}{
		"format":         {"pf", []Guard{good()}, Options{}, "iptables, knockd, nftables"},
		"nothing":        {"nftables", nil, Options{}, "no profile"},
		"twice":          {"nftables", []Guard{good(), good()}, Options{}, "named twice"},
		"allow":          {"nftables", []Guard{good()}, Options{Allow: web}, "drop policy"},
		"sweep":          {"nftables", []Guard{mustGuard(t, "vps", "7001 7002", "22")}, Options{}, "neighbours"},
		"single":         {"nftables", []Guard{mustGuard(t, "vps", "7001", "22")}, Options{}, "scan"},
		"overlooked":     {"nftables", []Guard{mustGuard(t, "vps", "21 23", "22")}, Options{}, "scan"},
		"guarded knock":  {"nftables", []Guard{mustGuard(t, "vps", "7001 22", "22")}, Options{}, "knock 2 of 2 goes to a guarded port"},
		"no ports":       {"nftables", with(func(g *Guard) { g.OpenPorts = nil }), Options{}, "no ports"},
		"no time":        {"nftables", with(func(g *Guard) { g.OpenFor = 0 }), Options{}, "one second"},
		"empty sequence": {"nftables", with(func(g *Guard) { g.Schedule = knock.Static{} }), Options{}, "empty"},
		"payload": {"nftables", with(func(g *Guard) {
			g.Schedule = knock.Static{{Transport: knock.UDP, Port: 1, Payload: []byte("x")}, {Port: 9}}
		}), Options{}, "payload"},
		"windows": {"knockd", with(func(g *Guard) { g.Schedule = changing{} }), Options{}, "changes with time, which this format cannot carry: iptables, nftables can"},
		"many windows": {"iptables", with(func(g *Guard) { g.Schedule = changing{} }), Options{From: midnight, Until: midnight.Add(721*time.Hour + 1)},
			"until 2026-12-21T01:00:00Z there are more than 720 windows to come, which is all this format can carry: shorten --horizon"},
		"no horizon": {"iptables", with(func(g *Guard) { g.Schedule = changing{} }), Options{}, "--horizon"},
		"fraction":   {"iptables", with(func(g *Guard) { g.KnockTimeout = 1500 * time.Millisecond }), Options{}, "whole seconds"},
		"name":       {"nftables", with(func(g *Guard) { g.Name = "a\nflush ruleset" }), Options{}, "control"},
		"file":       {"nftables", []Guard{good()}, Options{File: "/etc/a\nb"}, "control"},
		"consume":    {"knockd", []Guard{good()}, Options{Consume: true}, "only listens"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := Emit(&out, tt.format, tt.guards, tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if out.Len() > 0 {
				t.Errorf("half an action: %q", out.String())
			}
		})
	}
}

// changing is a schedule of windows of an hour, from any moment on.
type changing struct{}

func (changing) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	return []knock.Sequence{{{Port: 1}, {Port: 9}, {Port: 5}}}, knock.Window{Start: t, End: t.Add(time.Hour)}, nil
}

func TestEmitReportsWriteErrors(t *testing.T) {
	full := errors.New("disk full")
	for _, format := range Formats() {
		if err := Emit(failing{full}, format, []Guard{mustGuard(t, "vps", "7001 8003", "22")}, Options{}); !errors.Is(err, full) {
			t.Errorf("%s: %v", format, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestIdent(t *testing.T) {
	names := []string{"vps", "web.corp.example", "web-corp-example", "web_corp_example", "WEB.corp.example", "a-very-long-name-1", "a-very-long-name-2", "*", "日本"}
	seen := map[string]string{}
	for _, name := range names {
		id := ident(name)
		if len(id) > 12 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			t.Errorf("ident(%q) = %q", name, id)
		}
		if other, taken := seen[id]; taken {
			t.Errorf("%q and %q are both %q", name, other, id)
		}
		seen[id] = name
	}
	if seen["vps"] != "vps" {
		t.Error("a plain name is kept")
	}
}

func TestPortsMerge(t *testing.T) {
	ranges, _ := knock.ParsePortRanges("30 22 10-20 21 15-18 5/udp 65535 65530-65534")
	if got, want := join(ports(knock.TCP, ranges[:4], ranges[4:])), "10-22/tcp 30/tcp 65530-65535/tcp"; got != want {
		t.Errorf("ports = %q, want %q", got, want)
	}
}

func TestQuote(t *testing.T) {
	for path, want := range map[string]string{
		"/etc/portknock.nft": "/etc/portknock.nft",
		`/a b/$x"y`:          `"/a b/\$x\"y"`,
		"/a`b\\c":            `"/a` + "\\`" + `b\\c"`,
	} {
		if got := quote(path); got != want {
			t.Errorf("quote(%q) = %s, want %s", path, got, want)
		}
	}
}

func TestKnockdTrap(t *testing.T) {
	seq, _ := knock.ParseSequence("81 65535/udp 7000 7001")
	d := knockdDoor{guard{Guard: mustGuard(t, "x", "81 65535/udp 7000 7001", "22 6999"), Windows: []window{{Steps: seq}}}}
	// Without 80 (ignored), 65536, 6999 (guarded) and the knocks themselves.
	if got, want := d.trap(), "82:tcp,65534:udp,7002:tcp"; got != want {
		t.Errorf("Trap = %q, want %q", got, want)
	}
}
