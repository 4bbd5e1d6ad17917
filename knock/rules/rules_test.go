package rules

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
)

// update is for a change of the rules: the tests then write the golden files.
var update = flag.Bool("update", false, "write the golden files anew")

// mustGuard returns a guard with a static sequence, and web ports as IgnorePorts.
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
	return Guard{
		Name:         name,
		Schedule:     seq,
		OpenPorts:    ports,
		OpenFor:      30 * time.Second,
		KnockTimeout: 5 * time.Second,
		IgnorePorts:  ignore,
	}
}

// tokenGuard returns a guard with hourly windows of three tokens each.
func tokenGuard(t testing.TB, name string) Guard {
	t.Helper()
	key := knock.KeyFrom(bytes.Repeat([]byte(name), 32)[:32])
	g := mustGuard(t, name, "1", "22")
	g.Schedule = knock.Token{Key: key, Port: 62202, Period: time.Hour, Tokens: 3}
	g.Skew, g.Fingerprint = 2*time.Minute, key.Fingerprint()
	return g
}

// Other tests load the golden files into the real firewalls. Servers run this text:
// read every change of a golden file.
func TestEmitMatchesGoldenFiles(t *testing.T) {
	vps := mustGuard(t, "vps", "7001/udp 8003/tcp 9005/udp", "22/tcp")
	hourlyVPS := mustGuard(t, "hourly", "1", "2222/tcp")
	hourlyVPS.Schedule, hourlyVPS.Skew, hourlyVPS.Fingerprint = hourly(3), 2*time.Minute, "0123456789abcdef"
	allow, _ := knock.ParsePortRanges("80 443 443/udp")
	hours := Options{From: noon, Until: noon.Add(3 * time.Hour)}
	consumed := Options{From: noon, Until: noon.Add(time.Hour), Consume: true}
	for name, tt := range map[string]struct {
		guards []Guard
		o      Options
	}{
		"one": {
			guards: []Guard{vps},
		},
		"several": {
			guards: []Guard{vps, mustGuard(t, "Mosh-Server.example", "1000 2000 3000 4000", "22 60000-61000/udp")},
		},
		"drop": {
			guards: []Guard{vps},
			o:      Options{DropPolicy: true, Allow: allow},
		},
		"trust": {
			guards: []Guard{vps, mustGuard(t, "mosh", "1000 2000 3000 4000", "60000-61000/udp")},
			o:      Options{Trust: trust(t, "wg0 br-lan 192.168.1.0/24 203.0.113.7 2001:db8:7::/48"), DropPolicy: true, Allow: allow, Log: true},
		},
		"consume": {
			guards: []Guard{vps},
			o:      Options{Consume: true},
		},
		"single": {
			guards: []Guard{mustGuard(t, "single", "7001/udp", "22")},
			o:      Options{Force: true},
		},
		"windows": {
			guards: []Guard{hourlyVPS, vps},
			o:      Options{From: noon, Until: noon.Add(10 * time.Minute)},
		},
		"token": {
			guards: []Guard{tokenGuard(t, "vps")},
			o:      hours,
		},
		"tokens": {
			guards: []Guard{vps, tokenGuard(t, "Web.example"), tokenGuard(t, "other")},
			o:      consumed,
		},
		// The first and the second window share the knock 27000/udp.
		"rotating": {
			guards: []Guard{mustRotation(t, "vps", time.Hour, 2*time.Minute,
				"20001/udp 27000/udp 23456/udp", "21234/udp 29998/udp 27000/udp", "28000/udp 20202/udp 24000/udp")},
			o: Options{From: midnight.Add(30 * time.Minute), Until: midnight.Add(150 * time.Minute)},
		},
	} {
		for _, format := range Formats() {
			row, err := format.row()
			if err != nil {
				t.Fatal(err)
			}
			if (name == "consume" || name == "rotating") && format == "knockd" || row.spa {
				continue
			}
			if strings.HasPrefix(name, "token") && !row.tokens {
				continue
			}
			t.Run(name+"/"+string(format), func(t *testing.T) { golden(t, name, string(format), tt.guards, tt.o) })
		}
	}
}

// golden compares the rules of guards with their golden file.
func golden(t *testing.T, name, format string, guards []Guard, o Options) {
	t.Helper()
	var got bytes.Buffer
	if err := Format(format).Emit(&got, guards, o); err != nil {
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
		t.Errorf("the rules differ from %s:\n%s", file, got.String())
	}
}

// nft 1.0.2 drops the timeout of a map's element. Only the timeout in the declaration
// then makes the element expire.
func TestDynamicSetsDeclareTimeouts(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "testdata", "rules", "*"))
	if err != nil {
		t.Fatal(err)
	}
	dynamic := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", "")) {
			if !strings.Contains(line, "flags dynamic") {
				continue
			}
			dynamic++
			if !strings.Contains(line, "; timeout ") || !strings.Contains(line, "; size ") {
				t.Errorf("%s: set without timeout or size: %s", file, line)
			}
		}
	}
	if dynamic == 0 {
		t.Error("the golden files have no dynamic set")
	}
}

func TestEmitRefusesBadGuards(t *testing.T) {
	good := func() Guard { return mustGuard(t, "vps", "7001/udp 8003/tcp 9005/udp", "22") }
	with := func(change func(*Guard)) []Guard { g := good(); change(&g); return []Guard{g} }
	web, _ := knock.ParsePortRanges("80")
	until := func(d time.Duration) Options { return Options{From: noon, Until: noon.Add(d)} }
	token := func(change func(*Guard)) []Guard { g := tokenGuard(t, "vps"); change(&g); return []Guard{g} }
	payload := func(n int) severalAtOnce {
		return severalAtOnce{
			{{Transport: knock.UDP, Port: 9, Payload: make([]byte, n)}},
			{{Transport: knock.UDP, Port: 9, Payload: make([]byte, 16)}},
		}
	}
	for name, tt := range map[string]struct {
		format string
		guards []Guard
		o      Options
		want   string
	}{
		"unknown format": {
			format: "pf",
			guards: []Guard{good()},
			want:   "iptables, knockd, nftables",
		},
		"no guards": {
			format: "nftables",
			want:   "no profile",
		},
		"same profile twice": {
			format: "nftables",
			guards: []Guard{good(), good()},
			want:   `profile "vps" is given twice`,
		},
		"one firewall name": {
			format: "nftables",
			guards: []Guard{mustGuard(t, "VPS", "7001 9002 8003", "22"), mustGuard(t, firewallName("VPS"), "7001 9002 8003", "23")},
			want:   "map to the same firewall name; rename one",
		},
		"Allow without DropPolicy": {
			format: "nftables",
			guards: []Guard{good()},
			o:      Options{Allow: web},
			want:   "drop policy",
		},
		"neighboring ports": {
			format: "nftables",
			guards: []Guard{mustGuard(t, "vps", "7001 7002", "22")},
			want:   "neighbors",
		},
		"one knock": {
			format: "nftables",
			guards: []Guard{mustGuard(t, "vps", "7001", "22")},
			want:   "scan",
		},
		"two knocks": {
			format: "nftables",
			guards: []Guard{mustGuard(t, "vps", "7001/udp 8003/tcp", "22")},
			want:   "an attacker can guess two knocks in a day; use three knocks or more",
		},
		"example of many documents": {
			format: "nftables",
			guards: []Guard{mustGuard(t, "vps", "7000 8000 9000", "22")},
			want:   "attackers know the knocks 7000 8000 9000 from documentation; choose other ports",
		},
		"example in another order with other transports": {
			format: "nftables",
			guards: []Guard{mustGuard(t, "vps", "9000/udp 7000 8000/udp", "22")},
			want:   "attackers know the knocks 7000 8000 9000",
		},
		"neighbors around a guarded port": {
			format: "nftables",
			guards: []Guard{mustGuard(t, "vps", "21 23", "22")},
			want:   "scan",
		},
		"guarded knock": {
			format: "nftables",
			guards: []Guard{mustGuard(t, "vps", "7001 22", "22")},
			want:   "knock 2 of 2 goes to a guarded port",
		},
		"no ports": {
			format: "nftables",
			guards: with(func(g *Guard) { g.OpenPorts = nil }),
			want:   "no ports",
		},
		"OpenFor zero": {
			format: "nftables",
			guards: with(func(g *Guard) { g.OpenFor = 0 }),
			want:   "one second",
		},
		"empty sequence": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Schedule = knock.Sequence{} }),
			want:   "empty",
		},
		"payload of one byte": {
			format: "nftables",
			guards: with(func(g *Guard) {
				g.Schedule = knock.Sequence{{Transport: knock.UDP, Port: 1, Payload: []byte("x")}, {Port: 9}}
			}),
			want: "payload",
		},
		"payload of a token without windows": {
			format: "nftables",
			guards: with(func(g *Guard) {
				g.Schedule = knock.Sequence{{Transport: knock.UDP, Port: 1, Payload: make([]byte, 16)}}
			}),
			o:    Options{Force: true},
			want: "payload",
		},
		"knock to another guard's port": {
			format: "nftables",
			guards: []Guard{good(), mustGuard(t, "web", "22 9", "80")},
			want:   "web: knock 1 of 2 goes to a guarded port",
		},
		"KnockPorts with another guard's port": {
			format: "nftables",
			guards: []Guard{
				mustGuard(t, "mosh", "1 3 9", "22 29000-30000/udp"),
				mustRotation(t, "vps", time.Hour, 0, "20001/udp 20005/udp 20003/udp"),
			},
			o:    Options{From: midnight, Until: midnight.Add(1)},
			want: "vps: PortRange and Protocol include 29000-30000/udp; a guarded port cannot be a knock",
		},
		"neighboring ports in second window": {
			format: "nftables",
			guards: []Guard{mustRotation(t, "vps", time.Hour, 0, "20001/udp 20009/udp 20005/udp", "20001/udp 20002/udp 20003/udp")},
			o:      Options{From: midnight, Until: midnight.Add(2 * time.Hour)},
			want:   "vps: a port scan opens it in the window from 2026-11-21T01:00:00Z; raise Knocks or PortRange",
		},
		"tokens without Until": {
			format: "nftables",
			guards: token(func(*Guard) {}),
			want:   "vps: tokens change with time, so the rules need an end",
		},
		"tokens in knockd": {
			format: "knockd",
			guards: token(func(*Guard) {}),
			o:      until(time.Hour),
			want:   "vps: format knockd cannot verify tokens",
		},
		"too many tokens": {
			format: "nftables",
			guards: token(func(*Guard) {}),
			o:      until(100_001 * time.Hour),
			want:   "over 300000 tokens",
		},
		"tokens with large Skew": {
			format: "nftables",
			guards: token(func(g *Guard) { g.Skew = 30 * time.Minute }),
			o:      until(time.Hour),
			want:   "more than twice the Skew",
		},
		"too many token windows for iptables": {
			format: "iptables",
			guards: token(func(*Guard) {}),
			o:      until(5_000 * time.Hour),
			want:   "over 722 windows",
		},
		"one token for two families": {
			format: "iptables",
			guards: token(func(g *Guard) {
				g.Schedule = knock.Token{Key: knock.NewKey(), Port: 9, Period: time.Hour, Tokens: 1}
			}),
			o:    until(time.Hour),
			want: "vps: iptables needs separate tokens for IPv4 and IPv6; set TokensPerWindow to 2 or more",
		},
		"token Period too long for iptables": {
			format: "iptables",
			guards: token(func(g *Guard) {
				g.Schedule = knock.Token{Key: knock.NewKey(), Port: 9, Period: 8 * 24 * time.Hour, Tokens: 8}
			}),
			o:    until(time.Hour),
			want: "vps: iptables remembers spent tokens for a Period of at most 168h0m0s; shorten the Period",
		},
		"TokenPort is guarded": {
			format: "nftables",
			guards: append([]Guard{mustGuard(t, "mosh", "1 3 9", "60000-63000/udp")}, tokenGuard(t, "vps")),
			o:      until(time.Hour),
			want:   "vps: tokens go to 62202/udp, which is a guarded port",
		},
		"several sequences in a window": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Schedule = severalAtOnce{{{Port: 1}, {Port: 9}}, {{Port: 1}, {Port: 5}}} }),
			o:      until(time.Hour),
			want:   "several sequences at once",
		},
		"payloads shorter than a token": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Schedule = payload(15) }),
			o:      until(time.Hour),
			want:   "several sequences at once",
		},
		"payload longer than a token": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Schedule = payload(17)[:1] }),
			o:      until(time.Hour),
			want:   "payload",
		},
		"changing sequence without Until": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Schedule = hourly(3) }),
			o:      Options{From: noon},
			want:   "the sequence changes with time, so the rules need an end",
		},
		"changing sequence in knockd without Until": {
			format: "knockd",
			guards: with(func(g *Guard) { g.Schedule = hourly(3) }),
			o:      Options{From: noon},
			want:   "the sequence changes, and format knockd has no clock: a file lasts at most 3h0m0s",
		},
		"too many windows for knockd": {
			format: "knockd",
			guards: with(func(g *Guard) { g.Schedule, g.Skew = hourly(3), time.Minute }),
			o:      Options{From: noon, Until: noon.Add(4 * time.Hour)},
			want:   "a file lasts at most 2h58m0s",
		},
		"OpenAtEnd in knockd": {
			format: "knockd",
			guards: with(func(g *Guard) { g.Schedule = hourly(3) }),
			o:      Options{From: noon, Until: noon.Add(1), OpenAtEnd: true},
			want:   "cannot open the ports at the end",
		},
		"too many knocks": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Schedule = hourly(3) }),
			o:      Options{From: noon, Until: noon.Add(100_001 * time.Hour)},
			want:   "there are over 300000 knocks",
		},
		"Skew with a fraction of a second": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Schedule, g.Skew = fixedSequence(time.Second), 400*time.Millisecond }),
			o:      until(time.Minute),
			want:   "vps: the Skew (400ms) and the Period (1s) must be whole seconds",
		},
		"same first knock in knockd": {
			format: "knockd",
			guards: []Guard{good(), mustGuard(t, "web", "7001/udp 9005/tcp 4000/udp", "80")},
			want:   "web: it has the same first knock as vps, which would confuse knockd; choose another one",
		},
		"Consume with a shared knock": {
			format: "nftables",
			guards: []Guard{good(), mustGuard(t, "web", "9000 7001/udp 4000", "80")},
			o:      Options{Consume: true},
			want:   "web: profile vps shares a knock with it and would drop that knock first; use other knocks",
		},
		"Consume with the same windows": {
			format: "iptables",
			guards: slices.Concat(
				with(func(g *Guard) { g.Schedule, g.Skew = hourly(3), time.Minute }),
				with(func(g *Guard) { g.Schedule, g.Name = hourly(3), "web" }),
			),
			o:    Options{From: noon, Until: noon.Add(time.Hour), Consume: true},
			want: "web: profile vps shares a knock with it",
		},
		"Consume with the same tokens": {
			format: "nftables",
			guards: append(token(func(*Guard) {}), token(func(g *Guard) { g.Name = "web" })...),
			o:      Options{From: noon, Until: noon.Add(time.Hour), Consume: true},
			want:   "web: profile vps shares a knock with it",
		},
		"Skew of half a window": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Schedule, g.Skew = hourly(3), 30*time.Minute }),
			o:      Options{From: noon, Until: noon.Add(1)},
			want:   "Period must be more than twice the Skew: Skew is 30m0s, Period is 1h0m0s",
		},
		"changing sequence of two knocks": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Schedule = hourly(2) }),
			o:      Options{From: noon, Until: noon.Add(1)},
			want:   "Knocks to 3 or more",
		},
		"too few KnockPorts": {
			format: "nftables",
			guards: with(func(g *Guard) {
				g.Schedule, g.KnockPorts = hourly(3), []knock.PortRange{{Transport: knock.UDP, First: 20000, Last: 29998}}
			}),
			o:    Options{From: noon, Until: noon.Add(1)},
			want: "an attacker can guess 3 knocks (999700029999 sequences)",
		},
		"too many windows for iptables": {
			format: "iptables",
			guards: with(func(g *Guard) { g.Schedule = hourFromAnyMoment{} }),
			o:      Options{From: midnight, Until: midnight.Add(722*time.Hour + 1)},
			want:   "until 2026-12-21T02:00:00Z there are over 722 windows, the limit of format iptables",
		},
		"KnockTimeout with a fraction of a second": {
			format: "iptables",
			guards: with(func(g *Guard) { g.KnockTimeout = 1500 * time.Millisecond }),
			want:   "whole seconds",
		},
		"control character in Name": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Name = "a\nflush ruleset" }),
			want:   "control",
		},
		"control character in File": {
			format: "nftables",
			guards: []Guard{good()},
			o:      Options{File: "/etc/a\nb"},
			want:   "control",
		},
		"Repeat 3": {
			format: "nftables",
			guards: with(func(g *Guard) { g.Repeat = 3 }),
			want:   "vps: set Repeat to 1 or 2",
		},
		"Repeat in knockd": {
			format: "knockd",
			guards: with(func(g *Guard) { g.Repeat = 2 }),
			want:   "vps: the profile uses Repeat 2, but format knockd cannot take repeated knocks",
		},
		"Consume in knockd": {
			format: "knockd",
			guards: []Guard{good()},
			o:      Options{Consume: true},
			want:   "only listens",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := Format(tt.format).Emit(&out, tt.guards, tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if out.Len() > 0 {
				t.Errorf("Emit wrote text in spite of the error: %.200q", out.String())
			}
		})
	}
}

// A Refusal names the option to change and the formats that suit. A caller can thus
// tell the user in its own words what to do.
func TestRefusalNamesOptionAndFormats(t *testing.T) {
	changing := mustGuard(t, "vps", "1", "22")
	changing.Schedule = hourly(3)
	packets := spaGuard(t, "spa", spa.Keys{}, "443")
	repeated, repeatedPackets := mustGuard(t, "vps", "7001/udp 8003/tcp 9005/udp", "22"), packets
	repeated.Repeat, repeatedPackets.Repeat = 2, 2
	later := Options{From: noon, Until: noon.Add(1_000 * time.Hour)}
	for _, tt := range []struct {
		format Format
		guard  Guard
		o      Options
		option string
		suits  []Format
	}{
		{format: "nftables", guard: mustGuard(t, "vps", "7001", "22"), option: "Force"},
		{format: "nftables", guard: mustGuard(t, "vps", "7001/udp 8003", "22"), option: "Force"},
		{format: "nftables", guard: mustGuard(t, "vps", "7000/udp 8000 9000", "22"), option: "Force"},
		{format: "fwknop", guard: packets, option: "Force"},
		{format: "nftables", guard: packets, suits: []Format{"fwknop"}},
		{format: "nftables", guard: changing, option: "Until"},
		{format: "iptables", guard: changing, o: later, option: "Until"},
		{format: "knockd", guard: changing, option: "Until", suits: []Format{"iptables", "nftables"}},
		{format: "knockd", guard: tokenGuard(t, "vps"), o: later, suits: []Format{"iptables", "nftables"}},
		{format: "fwknop", guard: packets, o: Options{Force: true, Consume: true}, option: "Consume"},
		{format: "knockd", guard: repeated, suits: []Format{"iptables", "nftables"}},
		{format: "fwknop", guard: repeatedPackets, o: Options{Force: true}},
	} {
		r, ok := errors.AsType[*Refusal](tt.format.Emit(io.Discard, []Guard{tt.guard}, tt.o))
		if !ok || r.Option != tt.option || !slices.Equal(r.Suits, tt.suits) {
			t.Errorf("%s, %s: got %+v, want Option %q and Suits %v", tt.format, tt.guard.Name, r, tt.option, tt.suits)
		}
	}
}

// TestRepeatDoesNotChangeRules: a format takes repeated knocks always or never, and its rules do
// not depend on Repeat.
func TestRepeatDoesNotChangeRules(t *testing.T) {
	for _, f := range append(Formats(), "pf") {
		emit := func(repeat int) string {
			var text strings.Builder
			g := mustGuard(t, "vps", "7001/udp 8003/tcp 9005/udp", "22")
			g.Repeat = repeat
			_ = f.Emit(&text, []Guard{g}, Options{})
			return text.String()
		}
		if emit(0) != emit(1) {
			t.Errorf("%s: Repeat 0 and 1 give different rules", f)
		}
		twice := emit(2)
		if takes := twice != "" && twice == emit(1); takes != f.TakesRepeats() {
			t.Errorf("%s: TakesRepeats is %v, but %d bytes of rules for Repeat 2", f, f.TakesRepeats(), len(twice))
		}
	}
}

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// hourly is a schedule with hourly windows. Its value is the number of knocks. Their
// ports depend on the hour.
type hourly int

func (n hourly) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	w := knock.WindowAt(t, time.Hour)
	seq := make(knock.Sequence, n)
	for i := range seq {
		seq[i] = knock.Step{Transport: knock.UDP, Port: uint16(20000 + 1000*(len(seq)-i) + w.Start.Day()*24 + w.Start.Hour())}
	}
	return []knock.Sequence{seq}, w, nil
}

// The rules have all windows that a server sees from From to Until if its clock differs
// by at most Skew.
func TestWindowsCoverHorizonAndSkew(t *testing.T) {
	for _, tt := range []struct {
		from, until time.Duration // time after noon
		skew        time.Duration
		want        string
		noClock     bool
	}{
		{0, 1, 0, "12", false},
		{0, time.Hour, 0, "12", false},
		{0, time.Hour + 1, 0, "12 13", false},
		{59 * time.Minute, time.Hour, 0, "12", false},
		{-1, 1, 0, "11 12", false},
		{0, 1, time.Minute, "11 12", false},
		{time.Minute - 1, time.Hour, time.Minute, "11 12", false},
		{time.Minute, time.Hour, time.Minute, "12", false},
		{time.Minute, 4*time.Hour - 1, time.Minute, "12 13 14 15", false},
		// Without a clock, the rules have all windows that clients may use before Until.
		{0, 1, 0, "12", true},
		{0, time.Hour - time.Minute, time.Minute, "11 12", true},
		{time.Minute, time.Hour - time.Minute, time.Minute, "12", true},
		{time.Minute, time.Hour - time.Minute + 1, time.Minute, "12 13", true},
		{-1, time.Hour + 1, time.Minute, "11 12 13", true},
	} {
		g := guard{Guard: Guard{Schedule: hourly(3), Skew: tt.skew}}
		o := Options{From: noon.Add(tt.from), Until: noon.Add(tt.until)}
		if err := g.collectWindows(o, format{windows: 10, clock: !tt.noClock}); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, w := range g.Windows {
			got = append(got, fmt.Sprint(w.Start.Hour()))
			if seqs, _, _ := hourly(3).At(w.Start); w.Steps.String() != seqs[0].String() {
				t.Errorf("hour %d has the sequence of another hour", w.Start.Hour())
			}
			if w.startSecond(tt.skew) != w.Start.Add(-tt.skew).Unix() || w.endSecond(tt.skew) != w.End.Add(tt.skew).Unix() {
				t.Errorf("hour %d: startSecond is %d and endSecond is %d; want the edges of the hour, extended by Skew", w.Start.Hour(), w.startSecond(tt.skew), w.endSecond(tt.skew))
			}
			if want := w.Start.Unix() / 3600; w.number() != want {
				t.Errorf("hour %d is window %d, want %d", w.Start.Hour(), w.number(), want)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("from %v until %v, skew %v: hours %v, want %s", tt.from, tt.until, tt.skew, got, tt.want)
		}
	}
}

// No format gets a time before 1970 from a server whose clock starts there. The first window
// is then the one that begins in 1970.
func TestEmitNear1970(t *testing.T) {
	for _, f := range []Format{"iptables", "knockd", "nftables"} {
		for _, since := range []time.Duration{0, time.Second, time.Minute, time.Hour} {
			g := mustRotation(t, "vps", time.Hour, 2*time.Minute, "20001/udp 20005/udp 20009/udp")
			from := time.Unix(0, 0).Add(since)
			o := Options{From: from, Until: from.Add(90 * time.Minute)}
			var text bytes.Buffer
			if err := f.Emit(&text, []Guard{g}, o); err != nil {
				t.Errorf("%s, %v after 1970 began: %v", f, since, err)
			}
			if strings.Contains(withoutScript(text.String()), "1969-") {
				t.Errorf("%s, %v after 1970 began: the rules name a time before 1970", f, since)
			}
			if first := windowsOf(t, g, o)[0]; first.number() != 0 || first.startSecond(g.Skew) != 0 {
				t.Errorf("%v after 1970 began: window %d starts at %d, want window 0 at 0", since, first.number(), first.startSecond(g.Skew))
			}
		}
	}
}

// The interval and the horizon of a refresh leave room for one failed refresh. A format
// without a clock still gets few windows.
func TestScriptRefreshTimes(t *testing.T) {
	script := func(f Format, guards []Guard, o Options) (string, error) {
		var text strings.Builder
		command := func(horizon string) []string { return []string{"print", horizon} }
		err := f.EmitScript(&text, guards, o, Script{Refresh: command})
		return text.String(), err
	}
	for _, tt := range []struct {
		format         Format
		period, skew   time.Duration
		every, horizon time.Duration
	}{
		{"nftables", time.Hour, 2 * time.Minute, time.Hour, 4 * time.Hour},
		{"nftables", 5 * time.Second, time.Second, time.Minute, 4 * time.Minute},
		{"nftables", 300 * 24 * time.Hour, time.Hour, 24 * time.Hour, 96 * time.Hour},
		{"knockd", time.Hour, 2 * time.Minute, 2 * time.Minute, 6 * time.Minute},
		{"knockd", time.Hour, 29 * time.Minute, 15 * time.Minute, 45 * time.Minute},
		{"knockd", time.Hour, 0, 30 * time.Second, 90 * time.Second},
		{"knockd", time.Minute, 29 * time.Second, 15 * time.Second, 45 * time.Second},
		{"knockd", 3 * time.Second, time.Second, time.Second, 3 * time.Second},
		{"knockd", time.Second, 0, time.Second, 3 * time.Second},
	} {
		g := mustGuard(t, "vps", "1", "22")
		g.Schedule, g.Skew = fixedSequence(tt.period), tt.skew
		for i := range 10 { // the start may be anywhere in a window
			from := noon.Add(time.Duration(i) * tt.period / 10)
			slow := mustGuard(t, "slow", "1", "23")
			slow.Schedule, slow.Skew = fixedSequence(400*24*time.Hour), time.Hour
			o := Options{From: from, Until: from}
			row, _ := tt.format.row()
			every, horizon, err := row.refreshTimes([]Guard{slow, g}, o)
			if err != nil || every != tt.every || horizon != tt.horizon {
				t.Errorf("%s, Period %v, Skew %v: every %v, horizon %v, error %v", tt.format, tt.period, tt.skew, every, horizon, err)
			}
			text, err := script(tt.format, []Guard{slow, g}, o)
			if err != nil {
				t.Fatalf("%s, Period %v, Skew %v: %v", tt.format, tt.period, tt.skew, err)
			}
			want := fmt.Sprintf("\nrefresh='print %s'\nevery=%.0f\n", formatSpan(tt.horizon), tt.every.Seconds())
			if !strings.Contains(text, want) {
				t.Errorf("%s, Period %v, Skew %v: the script lacks %q:\n%s", tt.format, tt.period, tt.skew, want, text)
			}
		}
	}
	static, hour := mustGuard(t, "vps", "7001 8003 9005", "22"), mustGuard(t, "vps", "1", "22")
	hour.Schedule = fixedSequence(time.Hour)
	// The horizon loses its fraction of a second, which profiles and systemd do not know.
	fraction := Options{From: noon, Until: noon.Add(2*time.Hour + time.Millisecond)}
	if text, err := script("nftables", []Guard{hour}, fraction); err != nil || !strings.Contains(text, "\nrefresh='print 2h'\n") {
		t.Errorf("script for a horizon with a fraction of a second: %s, error %v", text, err)
	}
	skewed := hour
	skewed.Skew = time.Hour
	now := Options{From: noon, Until: noon}
	for _, tt := range []struct {
		format Format
		guards []Guard
		o      Options
		want   string
	}{
		{"nftables", []Guard{static}, now, "need no refresh"},
		{"nftables", []Guard{hour}, Options{From: noon, Until: noon.Add(119 * time.Minute)}, "at least 2h0m0s"},
		{"nftables", nil, now, "no profile"},
		{"pf", []Guard{hour}, now, "unknown format"},
		{"nftables", []Guard{skewed}, now, "Skew"},
	} {
		if text, err := script(tt.format, tt.guards, tt.o); err == nil || !strings.Contains(err.Error(), tt.want) || text != "" {
			t.Errorf("error %v, want one with %q and no text", err, tt.want)
		}
	}
}

// fixedSequence is a schedule with the same sequence in all windows. Its value is the
// length of the windows.
type fixedSequence time.Duration

func (e fixedSequence) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	return []knock.Sequence{{{Port: 1}, {Port: 9}, {Port: 5}}}, knock.WindowAt(t, time.Duration(e)), nil
}

// severalAtOnce is a schedule with hourly windows. All windows have all of its sequences.
type severalAtOnce []knock.Sequence

func (c severalAtOnce) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	return c, knock.WindowAt(t, time.Hour), nil
}

// hourFromAnyMoment is a schedule whose windows last an hour and start at the given time.
type hourFromAnyMoment struct{}

func (hourFromAnyMoment) At(t time.Time) ([]knock.Sequence, knock.Window, error) {
	return []knock.Sequence{{{Port: 1}, {Port: 9}, {Port: 5}}}, knock.Window{Start: t, End: t.Add(time.Hour)}, nil
}

func TestEmitReportsWriteErrors(t *testing.T) {
	full := errors.New("disk full")
	for _, format := range Formats() {
		guards := []Guard{mustGuard(t, "vps", "7001/udp 8003/tcp 9005/udp", "22")}
		if format == "fwknop" {
			guards = []Guard{spaGuard(t, "vps", spa.Keys{HMACKey: hmacKey}, "22")}
		}
		if err := Format(format).Emit(failing{full}, guards, Options{}); !errors.Is(err, full) {
			t.Errorf("%s: error %v, want the writer's error", format, err)
		}
	}
}

// failing is a writer that always returns err.
type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestFirewallNameIsShortAndUnique(t *testing.T) {
	names := []string{
		"vps", "web.corp.example", "web-corp-example", "web_corp_example", "WEB.corp.example",
		"a-very-long-name-1", "a-very-long-name-2", "*", "日本",
	}
	seen := map[string]string{}
	for _, name := range names {
		id := firewallName(name)
		if len(id) > 12 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			t.Errorf("firewallName(%q) = %q, which is too long or has a character that a firewall refuses", name, id)
		}
		if other, taken := seen[id]; taken {
			t.Errorf("%q and %q have the same firewall name %q", name, other, id)
		}
		seen[id] = name
	}
	if seen["vps"] != "vps" {
		t.Error("the plain name vps was changed")
	}
}

func TestMergePorts(t *testing.T) {
	ranges, _ := knock.ParsePortRanges("30 22 10-20 21 15-18 5/udp 65535 65530-65534")
	if got, want := rangeList(mergePorts(ranges)), "10-22/tcp 30/tcp 65530-65535/tcp 5/udp"; got != want {
		t.Errorf("mergePorts = %q, want %q", got, want)
	}
	if got, want := rangeList(ofTransport(knock.UDP, ranges)), "5/udp"; got != want {
		t.Errorf("ofTransport(UDP) = %q, want %q", got, want)
	}
}

func TestQuoteMakesOneShellWord(t *testing.T) {
	for text, want := range map[string]string{
		"/etc/portknock.nft": "/etc/portknock.nft",
		"":                   "''",
		`/a b/$x"y!z`:        `'/a b/$x"y!z'`,
		"it's":               `'it'\''s'`,
	} {
		if got := quote(text); got != want {
			t.Errorf("quote(%q) = %s, want %s", text, got, want)
		}
	}
}

func TestKnockdTrapSkipsPortsInUse(t *testing.T) {
	seq, _ := knock.ParseSequence("81 65535/udp 7000 7001")
	other, _ := knock.ParseSequence("83 65534/udp 9000 9100")
	g := guard{Guard: mustGuard(t, "x", "81 65535/udp 7000 7001", "22 6999"), Windows: []window{{Steps: seq}, {Steps: other}}}
	web, _ := knock.ParsePortRanges("7002-7009")
	// The trap leaves out 80 (ignored), 65536, 6999 and 7002 (guarded). It also leaves
	// out the knocks of both windows.
	if got, want := g.trap(g.Windows[0], append(web, g.OpenPorts...)).String(), "82/tcp"; got != want {
		t.Errorf("trap = %q, want %q", got, want)
	}
}

// The files use the names options and part themselves. Profiles may still have these
// names.
func TestReservedNamesWorkAsProfileNames(t *testing.T) {
	both := []Guard{mustGuard(t, "a", "7001 9000 8000", "22"), mustGuard(t, "b", "7001 9000 8000", "80")}
	if err := Format("knockd").Emit(io.Discard, both, Options{}); err != nil {
		t.Errorf("two profiles with the same sequence: %v", err)
	}
	for _, name := range []string{"options", "part"} {
		guards := []Guard{mustGuard(t, name, "7001 9000 8000", "22")}
		for _, format := range []string{"nftables", "iptables", "knockd"} {
			var text strings.Builder
			if err := Format(format).Emit(&text, guards, Options{}); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(text.String(), "\n# part\n") || strings.Count(text.String(), "\n[options]\n") > 1 {
				t.Errorf("%s mistakes the profile name %q for its own:\n%s", format, name, text.String())
			}
		}
	}
}
