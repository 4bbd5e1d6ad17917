package main

import (
	"fmt"
	"math"
)

// The figures that targets are about.
const (
	figureStalled     = "a stalled reader, CPU"
	figureCrowd       = "connected at once"
	figureCrowdMemory = "connected at once, resident memory of the largest"
	figureGuesses     = "a million guesses at a token"
	figureEmit        = "a year of hourly windows, to write"
	figureLoad        = "a year of hourly windows, to load by nft"
	figureLoadMemory  = "a year of hourly windows, resident memory of nft"
	figureDay         = "a stranger's packet, rules of a day"
	figureYear        = "a stranger's packet, rules of a year"
	figureSize        = "binary, stripped"
)

// guesses is how many tokens a stranger tries.
const guesses = 1_000_000

// crowd is how many connect at once.
const crowd = 200

// Target is what portknock is to reach, beside what was measured.
type Target struct {
	What, Want, Got, Verdict string
}

// The verdicts.
const (
	met     = "met"
	missed  = "NOT MET"
	unknown = "not measured"
)

// judge fills in the targets.
func (r *Report) judge() {
	r.Targets = nil
	const limit = "open port/nc"
	for _, steps := range []string{"3", "10"} {
		r.ratio("clean link, "+steps+" knocks: median to nc on the open port", 1.05,
			r.median("clean/nftables/portknock, "+steps+" knocks"), r.median("clean/"+limit))
	}
	r.ratio("clean link, token: median to nc on the open port", 1.05, r.median("clean/nftables/portknock, token"), r.median("clean/"+limit))
	r.ratio("real knockd: median to knock + nc", 0.30, r.median("clean/knockd/portknock, 3 knocks"), r.median("clean/knockd/knock + nc"))
	r.ratio("real fwknopd: median to fwknop + nc", 0.35, r.median("clean/fwknopd/portknock, fwknop"), r.median("clean/fwknopd/fwknop + nc"))
	r.succeed("loss 5 %")
	r.ratio("loss 5 %: p95 to nc's on the open port", 0.60, r.p95("loss 5 %/nftables/portknock, 3 knocks"), r.p95("loss 5 %/"+limit))
	r.succeed("loss 20 %")
	r.succeed("reordered 20 %")
	r.ratio("reordered 20 %: p95 to the clean median", 4, r.p95("reordered 20 %/nftables/portknock, 3 knocks"),
		r.median("clean/nftables/portknock, 3 knocks"))
	r.succeed("duplicated 10 %")
	r.ratio("stream down: CPU to nc's", 0.30, r.cpu("down", "portknock"), r.cpu("down", "nc"))
	r.ratio("stream up: CPU to nc's", 0.75, r.cpu("up", "portknock"), r.cpu("up", "nc"))
	r.atMost("stalled reader: CPU", 1, r.figure(figureStalled), "%")
	r.atMost("IPv6 black-holed: median more than with IPv4 alone", 300,
		r.median("IPv6 black-holed/nftables/portknock")-r.median("IPv6 black-holed/nftables/portknock -4"), "ms")
	r.share(fmt.Sprintf("%d connections at once", crowd), r.figure(figureCrowd), crowd)
	r.atMost(fmt.Sprintf("%d connections at once: resident memory of each", crowd), 12, r.figure(figureCrowdMemory), "MB")
	r.atMost("a million guesses at a token", 0, r.figure(figureGuesses), "let in")
	r.atMost("a year of hourly windows: to write", 1, r.figure(figureEmit), "s")
	r.atMost("a year of hourly windows: to load by nft", 5, r.figure(figureLoad), "s")
	r.atMost("a year of hourly windows: resident memory of nft", 100, r.figure(figureLoadMemory), "MB")
	r.ratio("a stranger's packet: with the rules of a year to those of a day", 1.20, r.figure(figureYear), r.figure(figureDay))
	r.atMost("binary, stripped", 5, r.figure(figureSize), "MB")
}

func (r *Report) median(cell string) float64 {
	if c := r.cell(cell); c != nil {
		return median(c.Times)
	}
	return math.NaN()
}

func (r *Report) p95(cell string) float64 {
	if c := r.cell(cell); c != nil {
		return quantile(c.Times, 0.95)
	}
	return math.NaN()
}

func (r *Report) cpu(direction, contestant string) float64 {
	if s := r.stream("stream/" + direction + "/" + contestant); s != nil {
		return s.CPU
	}
	return math.NaN()
}

// ratio wants that a is at most so many times b.
func (r *Report) ratio(what string, most, a, b float64) {
	r.target(what, fmt.Sprintf("at most %.2f", most), fmt.Sprintf("%.2f", a/b), a/b <= most, math.IsNaN(a/b))
}

func (r *Report) atMost(what string, most, got float64, unit string) {
	r.target(what, fmt.Sprintf("at most %.0f %s", most, unit), number(got)+" "+unit, got <= most, math.IsNaN(got))
}

// succeed wants that portknock always did on a link.
func (r *Report) succeed(link string) {
	got, of := math.NaN(), r.Runs
	if c := r.cell(link + "/nftables/portknock, 3 knocks"); c != nil {
		got, of = float64(len(c.Times)), c.Runs
	}
	r.share(link+": successes", got, of)
}

func (r *Report) share(what string, got float64, of int) {
	r.target(what, fmt.Sprintf("all %d", of), fmt.Sprintf("%.0f", got), got == float64(of), math.IsNaN(got))
}

func (r *Report) target(what, want, got string, ok, none bool) {
	t := Target{what, want, got, missed}
	switch {
	case none:
		t.Got, t.Verdict = "-", unknown
	case ok:
		t.Verdict = met
	}
	r.Targets = append(r.Targets, t)
}
