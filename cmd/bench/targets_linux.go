package main

import (
	"fmt"
	"math"
	"slices"
)

// guesses is how many tokens a stranger tries.
const guessCount = 1_000_000

// crowd is how many connect at once.
const crowdSize = 200

// judge fills in the targets.
func (r *Report) judge() {
	r.Targets = nil
	clean := r.median(cleanNftables, portknock3)
	limit := r.median(cleanNftables, ncOpen)
	r.ratio("clean link, 3 knocks: median to nc on the open port", 1.05, clean, limit)
	r.ratio("clean link, 10 knocks: median to nc on the open port", 1.05, r.median(cleanNftables, portknock10), limit)
	r.ratio("clean link, token: median to nc on the open port", 1.05, r.median(cleanNftables, token), limit)
	r.ratio("real knockd: median to knock + nc", 0.30, r.median(cleanKnockd, portknock3), r.median(cleanKnockd, knockNC))
	r.ratio("real fwknopd: median to fwknop + nc", 0.35, r.median(cleanFwknopd, portknockSPA), r.median(cleanFwknopd, fwknopNC))
	r.wantAll(loss5)
	r.ratio("loss 5 %: p95 to nc's on the open port", 0.60, r.p95(loss5, portknock3), r.p95(loss5, ncOpen))
	r.wantAll(loss20)
	r.wantAll(reordered)
	r.ratio("reordered 20 %: p95 to the clean median", 4, r.p95(reordered, portknock3), clean)
	r.wantAll(duplicated)
	r.ratio("stream down: CPU to nc's", 0.30, r.cpu(down, portknockTo(down.port)), r.cpu(down, ncTo(down.port)))
	r.ratio("stream up: CPU to nc's", 0.75, r.cpu(up, portknockTo(up.port)), r.cpu(up, ncTo(up.port)))
	r.atMost("stalled reader: CPU", 1, r.figure(figureStalled), "%")
	r.atMost("IPv6 black-holed: median more than with IPv4 alone", 300,
		r.median(blackHoled, portknockBoth)-r.median(blackHoled, portknockIPv4), "ms")
	r.wantCount(fmt.Sprintf("%d connections at once", crowdSize), r.figure(figureCrowd), crowdSize)
	r.atMost(fmt.Sprintf("%d connections at once: resident memory of each", crowdSize), 12, r.figure(figureCrowdMemory), "MB")
	r.atMost("a million guesses at a token", 0, r.figure(figureGuesses), "let in")
	r.atMost("a year of hourly windows: to write", 1, r.figure(figureEmit), "s")
	r.atMost("a year of hourly windows: to load by nft", 5, r.figure(figureLoad), "s")
	r.atMost("a year of hourly windows: resident memory of nft", 100, r.figure(figureLoadMemory), "MB")
	r.ratio("a stranger's packet: with the rules of a year to those of a day", 1.20, r.figure(figureYear), r.figure(figureDay))
	r.atMost("binary, stripped", 5, r.figure(figureSize), "MB")
}

// cell returns what was measured of a contestant in a grid; without runs if nothing
// was. It panics if no run ever measures it: a target must not be about that.
func (r *Report) cell(g grid, c contestant) Cell {
	empty := g.cell(c)
	is := func(other Cell) bool { return other.name() == empty.name() }
	measured := func(g grid) bool {
		return slices.ContainsFunc(g.contestants, func(c contestant) bool { return is(g.cell(c)) })
	}
	if !slices.ContainsFunc(sequentialGrids, measured) && !slices.ContainsFunc(parallelGrids, measured) {
		panic("no run measures " + empty.name())
	}
	if i := slices.IndexFunc(r.Cells, is); i >= 0 {
		return r.Cells[i]
	}
	return empty
}

// median is that of a contestant's times in a grid, or NaN.
func (r *Report) median(g grid, c contestant) float64 { return median(r.cell(g, c).Times) }

// p95 is the 95th percentile of a contestant's times in a grid, or NaN.
func (r *Report) p95(g grid, c contestant) float64 { return quantile(r.cell(g, c).Times, 0.95) }

// cpu is what a stream costs a contestant, or NaN.
func (r *Report) cpu(d direction, c contestant) float64 {
	want := d.streamOf(c)
	for _, s := range r.Streams {
		if s.name() == want.name() {
			return s.CPU
		}
	}
	return math.NaN()
}

// ratio wants that a is at most so many times b.
func (r *Report) ratio(what string, most, a, b float64) {
	r.target(what, fmt.Sprintf("at most %.2f", most), fmt.Sprintf("%.2f", a/b), a/b <= most, math.IsNaN(a/b))
}

func (r *Report) atMost(what string, most, got float64, unit string) {
	r.target(what, fmt.Sprintf("at most %.0f %s", most, unit), formatNumber(got)+" "+unit, got <= most, math.IsNaN(got))
}

// succeed wants that portknock always did in a grid.
func (r *Report) wantAll(g grid) {
	got, of := math.NaN(), r.Runs
	if c := r.cell(g, portknock3); c.Runs > 0 {
		got, of = float64(len(c.Times)), c.Runs
	}
	r.wantCount(g.link+": successes", got, of)
}

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
