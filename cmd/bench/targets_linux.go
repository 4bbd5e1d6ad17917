package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// guessCount is how many tokens an attacker guesses.
const guessCount = 1_000_000

// crowdSize is how many clients connect at once.
const crowdSize = 200

// judge sets the report's targets.
func (r *Report) judge() {
	r.Targets = nil
	clean := r.median(cleanNftables, portknock3)
	limit := r.median(cleanNftables, ncOpen)
	r.ratio("clean link, 3 knocks: median, relative to nc on the open port", 1.05, clean, limit)
	r.ratio("clean link, 10 knocks: median, relative to nc on the open port", 1.05, r.median(cleanNftables, portknock10), limit)
	r.ratio("clean link, token: median, relative to nc on the open port", 1.05, r.median(cleanNftables, token), limit)
	r.ratio("real knockd: median, relative to knock + nc", 0.30, r.median(cleanKnockd, portknock3), r.median(cleanKnockd, knockNC))
	r.ratio("real fwknopd: median, relative to fwknop + nc", 0.35, r.median(cleanFwknopd, portknockSPA), r.median(cleanFwknopd, fwknopNC))
	r.wantAll(loss5)
	r.ratio("loss 5 %: p95, relative to nc on the open port", 0.60, r.p95(loss5, portknock3), r.p95(loss5, ncOpen))
	r.wantAll(loss20)
	for _, c := range []contestant{repeated3, repeated10, repeatedToken} {
		r.ratio("clean link, "+label(c)+": median, relative to nc on the open port", 1.05, r.median(cleanNftables, c), limit)
		r.wantAllOf(loss5, c)
		r.wantAllOf(loss20, c)
		r.ratio("loss 20 %, "+label(c)+": p95, relative to nc on the open port", 0.50, r.p95(loss20, c), r.p95(loss20, ncOpen))
	}
	for _, c := range []contestant{repeated3, repeatedToken} {
		r.ratio("loss 5 %, "+label(c)+": p95, relative to nc on the open port", 0.25, r.p95(loss5, c), r.p95(loss5, ncOpen))
	}
	r.ratio("loss 5 %, "+label(repeated10)+": 80th percentile, relative to the median on the clean link", 1.25,
		quantile(r.cell(loss5, repeated10).Times, 0.80), r.median(cleanNftables, repeated10))
	r.wantAll(reordered)
	r.wantAllOf(reordered, repeated3)
	r.ratio("reordered 20 %, "+label(repeated3)+": p95, relative to the median on the clean link", 4, r.p95(reordered, repeated3), clean)
	r.wantAll(duplicated)
	r.ratio("stream down: CPU time, relative to nc", 0.45, r.cpu(down, portknockTo(down.port)), r.cpu(down, ncTo(down.port)))
	r.ratio("stream up: CPU time, relative to nc", 0.40, r.cpu(up, portknockTo(up.port)), r.cpu(up, ncTo(up.port)))
	r.ratio("stream up: rate of nc, relative to portknock", 1, r.rate(up, ncTo(up.port)), r.rate(up, portknockTo(up.port)))
	r.judgeLoaded()
	r.atMost("stalled reader: CPU use", 1, r.figure(figureStalled), "%")
	r.atMost("IPv6 black-holed: median, minus the median with IPv4 alone", 300,
		r.median(blackHoled, portknockBoth)-r.median(blackHoled, portknockIPv4), "ms")
	r.wantCount(fmt.Sprintf("%d connections at once", crowdSize), r.figure(figureCrowd), crowdSize)
	r.atMost(fmt.Sprintf("%d connections at once: resident memory of the largest client", crowdSize), 12, r.figure(figureCrowdMemory), "MB")
	r.atMost("a million guessed tokens: admitted addresses", 0, r.figure(figureGuesses), "admitted")
	r.atMost("a year of hourly windows: time to write the rules", 1, r.figure(figureEmit), "s")
	r.atMost("a year of hourly windows: time to load the rules with nft", 5, r.figure(figureLoad), "s")
	r.atMost("a year of hourly windows: resident memory of nft", 100, r.figure(figureLoadMemory), "MB")
	r.ratio("a scanner's packet: rules for a year, relative to rules for a day", 1.20, r.figure(figureYear), r.figure(figureDay))
	for _, firewall := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
		r.ratio("a stranger's packet, "+firewall+": 20 profiles of 10 knocks, relative to 1 profile of 3", 8,
			r.strangerRatio(firewall, 20, 10), 1)
	}
	r.atMost("binary, stripped", 6, r.figure(figureSize), "MB")
}

// cell returns the cell of a contestant in a grid. The cell has no runs if it was not
// measured. cell panics if no grid contains the cell, because a target must not be about
// such a cell.
func (r *Report) cell(g grid, c contestant) Cell {
	empty := g.cell(c)
	is := func(other Cell) bool { return other.name() == empty.name() }
	measured := func(g grid) bool {
		return slices.ContainsFunc(g.contestants, func(c contestant) bool { return is(g.cell(c)) })
	}
	if !slices.ContainsFunc(sequentialGrids, measured) && !slices.ContainsFunc(parallelGrids, measured) {
		panic("a target needs a cell that no grid contains: " + empty.name())
	}
	if i := slices.IndexFunc(r.Cells, is); i >= 0 {
		return r.Cells[i]
	}
	return empty
}

// median returns the median of a contestant's times in a grid, or NaN.
func (r *Report) median(g grid, c contestant) float64 { return median(r.cell(g, c).Times) }

// p95 returns the 95th percentile of a contestant's times in a grid, or NaN.
func (r *Report) p95(g grid, c contestant) float64 { return quantile(r.cell(g, c).Times, 0.95) }

// cpu returns the CPU time of a contestant's stream, or NaN.
func (r *Report) cpu(d direction, c contestant) float64 { return r.stream(d, c).CPU }

// rate returns the throughput of a contestant's stream, or NaN.
func (r *Report) rate(d direction, c contestant) float64 { return r.stream(d, c).Rate }

// stream returns a contestant's stream. The figures are NaN if it was not measured.
func (r *Report) stream(d direction, c contestant) Stream {
	want := d.streamOf(c)
	for _, s := range r.Streams {
		if s.name() == want.name() {
			return s
		}
	}
	want.CPU, want.Rate = math.NaN(), math.NaN()
	return want
}

// ratio adds the target that a/b is at most most.
func (r *Report) ratio(what string, most, a, b float64) {
	r.target(what, fmt.Sprintf("at most %.2f", most), fmt.Sprintf("%.2f", a/b), a/b <= most, math.IsNaN(a/b))
}

// atMost adds the target that got is at most most.
func (r *Report) atMost(what string, most, got float64, unit string) {
	r.target(what, fmt.Sprintf("at most %.0f %s", most, unit), formatNumber(got)+" "+unit, got <= most, math.IsNaN(got))
}

// label returns the part of a contestant's name that follows "portknock, ".
func label(c contestant) string { return strings.TrimPrefix(c.name, "portknock, ") }

// wantAll adds the target that all runs of portknock with three knocks in a grid succeed.
func (r *Report) wantAll(g grid) { r.wantSuccesses(g.link, r.cell(g, portknock3)) }

// wantAllOf adds the target that all runs of a contestant in a grid succeed.
func (r *Report) wantAllOf(g grid, c contestant) { r.wantSuccesses(g.link+", "+label(c), r.cell(g, c)) }

func (r *Report) wantSuccesses(what string, c Cell) {
	got, of := math.NaN(), r.Runs
	if c.Runs > 0 {
		got, of = float64(len(c.Times)), c.Runs
	}
	r.wantCount(what+": successes", got, of)
}

// wantCount adds the target that got equals of.
func (r *Report) wantCount(what string, got float64, of int) {
	r.target(what, fmt.Sprintf("all %d", of), fmt.Sprintf("%.0f", got), got == float64(of), math.IsNaN(got))
}

func (r *Report) target(what, want, got string, ok, unmeasured bool) {
	t := Target{what, want, got, missed}
	switch {
	case unmeasured:
		t.Got, t.Verdict = "-", unknown
	case ok:
		t.Verdict = met
	}
	r.Targets = append(r.Targets, t)
}
