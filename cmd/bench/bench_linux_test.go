package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestMeasureSelectedCells measures some cells and costs. It checks the form of the report,
// not how good its figures are.
func TestMeasureSelectedCells(t *testing.T) {
	lab.Require(t, "nft", "nc", "ssh", "sshd")
	lab.NewHost(t, "any") // skips the test here if needed; in measure, a skip is an error
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	only := "^(clean/(nftables/portknock, (3|token|Repeat 2, 10)|open port/nc$)|crowd|stream/down|keystroke|loaded|stalled|strangers|guesses" +
		"|load: (two profiles, 3 and 10 knocks|1,000 addresses|forged random packets)/nftables)"
	o := &options{runs: 2, quick: true, only: regexp.MustCompile(only)}
	r, err := measure(ctx, o)
	if err != nil || len(r.Missing) > 0 {
		t.Fatal(err, r.Missing)
	}
	var names []string
	for _, c := range r.Cells {
		names = append(names, c.name())
	}
	want := []string{"clean/open port/nc", "clean/nftables/portknock, 3 knocks", "clean/nftables/portknock, token",
		"clean/nftables/portknock, Repeat 2, 10 knocks",
		"load: 1,000 addresses/nftables/portknock, 3 knocks",
		"load: two profiles, 3 and 10 knocks/nftables/portknock, 3 knocks",
		"load: two profiles, 3 and 10 knocks/nftables/portknock, 10 knocks",
		"load: forged random packets/nftables/portknock, 3 knocks"}
	if !slices.Equal(names, want) {
		t.Fatalf("measured the cells %q", names)
	}
	runs := map[string]int{"load: 1,000 addresses": 10, "load: forged random packets": 1}
	for _, c := range r.Cells {
		want := cmp.Or(runs[c.Link], 2)
		if c.Runs != want || len(c.Times) != want {
			t.Errorf("%s: %d of %d runs succeeded, want %d of %[4]d", c.name(), len(c.Times), c.Runs, want)
		}
		for _, ms := range c.Times {
			if ms < 2*milliseconds(2*oneWay) { // the handshake and the banner each take a round trip
				t.Errorf("%s: %v ms", c.name(), ms)
			}
		}
	}
	if len(r.Streams) != 2 {
		t.Fatalf("measured the streams %+v, want two", r.Streams)
	}
	if s := r.Streams[1]; s.Contestant != "portknock" || s.CPU <= 0 || s.Rate <= 0 || s.Memory <= 0 {
		t.Errorf("the stream of portknock is %+v", s)
	}
	if got := r.figure("connections at once, of 10"); got != 10 {
		t.Errorf("%v of 10 clients connected", got)
	}
	for _, name := range []string{"nc", "portknock"} {
		if us := r.figure("a keystroke and its echo, " + name + ", median"); !(us > 0) {
			t.Errorf("%s: %v µs for a keystroke", name, us)
		}
	}
	if len(r.Loaded) != len(carriers) {
		t.Errorf("measured %d ssh connections during transfers: %+v", len(r.Loaded), r.Loaded)
	}
	for _, l := range r.Loaded {
		if l.Echo < 2*milliseconds(oneWay) || !(l.Rate > 0) {
			t.Errorf("%+v", l)
		}
	}
	if ratio := r.strangerRatio("nftables", 10, 5); !(ratio > 0) {
		t.Errorf("ten profiles are %v times as slow as one", ratio)
	}
	if err := r.print(&bytes.Buffer{}); err != nil {
		t.Error(err)
	}
	t.Logf("%+v", r)
}

func TestJudgeSetsVerdicts(t *testing.T) {
	t.Parallel()
	r := sample()
	r.Cells = append(r.Cells,
		Cell{Link: "clean", Server: "nftables", Contestant: "portknock, Repeat 2, 10 knocks", Runs: 2, Times: []float64{84, 84}},
		Cell{Link: "loss 5 %", Server: "nftables", Contestant: "portknock, Repeat 2, 10 knocks", Runs: 5, Times: []float64{84, 84, 84, 96, 1000}},
		Cell{Link: "loss 5 %", Server: "nftables", Contestant: "portknock, Repeat 2, token", Runs: 2, Times: []float64{88, 300}})
	r.judge()
	for _, want := range []Target{
		{"clean link, 3 knocks: median, relative to nc on the open port", "at most 1.05", "1.02", met},
		{"clean link, 10 knocks: median, relative to nc on the open port", "at most 1.05", "1.12", missed},
		{"real knockd: median, relative to knock + nc", "at most 0.30", "-", unknown},
		{"real fwknopd: median, relative to fwknop + nc", "at most 0.35", "-", unknown},
		{"loss 5 %: successes", "all 2", "1", missed},
		{"loss 5 %: p95, relative to nc on the open port", "at most 0.60", "0.09", met},
		{"clean link, Repeat 2, 10 knocks: median, relative to nc on the open port", "at most 1.05", "1.04", met},
		{"loss 5 %, Repeat 2, 10 knocks: 80th percentile, relative to the median on the clean link", "at most 1.25", "1.14", met},
		{"loss 5 %, Repeat 2, 10 knocks: successes", "all 5", "5", met},
		{"loss 5 %, Repeat 2, token: p95, relative to nc on the open port", "at most 0.25", "0.30", missed},
		{"loss 20 %, Repeat 2, 3 knocks: successes", "all 2", "-", unknown},
		{"stream down: CPU time, relative to nc", "at most 0.45", "0.30", met},
		{"upload at 250 kB/s: time of a key, ssh with portknock relative to ssh alone", "at most 0.75", "0.70", met},
		{"upload at 250 kB/s: rate, ssh alone relative to ssh with portknock", "at most 1.03", "1.04", missed},
		{"upload at 60 kB/s: time of a key, ssh with portknock relative to ssh alone", "at most 0.90", "-", unknown},
		{"200 connections at once", "all 200", "200", met},
		{"200 connections at once: resident memory of the largest client", "at most 12 MB", "12.5 MB", missed},
		{"binary, stripped", "at most 6 MB", "-", unknown},
	} {
		if !slices.Contains(r.Targets, want) {
			t.Errorf("target %+v is missing in\n%+v", want, r.Targets)
		}
	}
	n := len(r.Targets)
	if r.judge(); len(r.Targets) != n {
		t.Error("a second call of judge changes the number of targets")
	}
}

// A target about a cell that no grid contains is a fault of the program. It must not look
// like a target that was not measured in this run.
func TestTargetOfUnmeasuredCellPanics(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(*Report){
		"contestant of another grid": func(r *Report) { r.median(cleanKnockd, fwknopNC) },
		"renamed contestant":         func(r *Report) { r.median(cleanNftables, portknock(", 4 knocks", "vps", guardedPort)) },
		"unknown grid":               func(r *Report) { r.wantAll(grid{link: "loss 6 %", server: nftables, contestants: loss5.contestants}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			ask(sample())
		}()
	}
}

// A failure ends the measured function. guarded then cleans up in reverse order, and
// returns the failure.
func TestGuardedCleansUpAndReturnsFailure(t *testing.T) {
	t.Parallel()
	var order []int
	err := guarded(func(t *tb) error {
		t.Cleanup(func() { order = append(order, 1) })
		t.Cleanup(func() { order = append(order, 2) })
		t.Errorf("one")
		t.FailNow()
		order = append(order, 0)
		return nil
	})
	if err == nil || err.Error() != "one" || len(order) != 2 || order[0] != 2 {
		t.Errorf("guarded returned %v, and cleaned up in the order %v; want one, [2 1]", err, order)
	}
	want := errors.New("two")
	if err := guarded(func(*tb) error { return want }); err != want {
		t.Error(err)
	}
}

func TestKernelVersionOmitsSuffix(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]string{"6.18.44": "6.18.44", "6.1.0-13-amd64": "6.1.0", "5.15-acme+": "5.15"} {
		if got := kernelVersion(release); got != want {
			t.Errorf("kernelVersion(%q) = %s, want %s", release, got, want)
		}
	}
}
