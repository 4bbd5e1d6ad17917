package main

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestMeasureSelectedCells measures a cell and looks at the report's shape, not at its figures.
func TestMeasureSelectedCells(t *testing.T) {
	lab.Require(t, "nft", "nc")
	lab.NewHost(t, "any") // or it is skipped: measure would call it a failure
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	only := "^(clean/(nftables/portknock, (3|token)|open port/nc$)|crowd|stream/down|keystroke|stalled|guesses)"
	o := &options{runs: 2, quick: true, only: regexp.MustCompile(only)}
	r, err := measure(ctx, o)
	if err != nil || len(r.Missing) > 0 {
		t.Fatal(err, r.Missing)
	}
	var names []string
	for _, c := range r.Cells {
		names = append(names, c.name())
	}
	want := []string{"clean/open port/nc", "clean/nftables/portknock, 3 knocks", "clean/nftables/portknock, token"}
	if !slices.Equal(names, want) {
		t.Fatalf("%q", names)
	}
	for _, c := range r.Cells {
		if c.Runs != 2 || len(c.Times) != 2 {
			t.Errorf("%s: %d of %d", c.name(), len(c.Times), c.Runs)
		}
		for _, ms := range c.Times {
			if ms < 2*milliseconds(2*oneWay) { // handshake and banner
				t.Errorf("%s: %v ms", c.name(), ms)
			}
		}
	}
	if len(r.Streams) != 2 {
		t.Fatalf("%+v", r.Streams)
	}
	if s := r.Streams[1]; s.Contestant != "portknock" || s.CPU <= 0 || s.Rate <= 0 || s.Memory <= 0 {
		t.Errorf("%+v", s)
	}
	if got := r.figure("connected, of 10 at once"); got != 10 {
		t.Errorf("%v of 10 connected", got)
	}
	for _, name := range []string{"nc", "portknock"} {
		if us := r.figure("a keystroke and its echo, " + name + ", median"); !(us > 0) {
			t.Errorf("%s: %v µs for a keystroke", name, us)
		}
	}
	if err := r.print(&bytes.Buffer{}); err != nil {
		t.Error(err)
	}
	t.Logf("%+v", r)
}

func TestJudgeSetsVerdicts(t *testing.T) {
	t.Parallel()
	r := sample()
	r.judge()
	for _, want := range []Target{
		{"clean link, 3 knocks: median to nc on the open port", "at most 1.05", "1.02", met},
		{"clean link, 10 knocks: median to nc on the open port", "at most 1.05", "1.12", missed},
		{"real knockd: median to knock + nc", "at most 0.30", "-", unknown},
		{"real fwknopd: median to fwknop + nc", "at most 0.35", "-", unknown},
		{"loss 5 %: successes", "all 2", "1", missed},
		{"loss 5 %: p95 to nc's on the open port", "at most 0.60", "0.09", met},
		{"stream down: CPU to nc's", "at most 0.30", "0.30", met},
		{"200 connections at once", "all 200", "200", met},
		{"200 connections at once: resident memory of each", "at most 12 MB", "12.5 MB", missed},
		{"binary, stripped", "at most 5 MB", "-", unknown},
	} {
		if !slices.Contains(r.Targets, want) {
			t.Errorf("no %+v among\n%+v", want, r.Targets)
		}
	}
	n := len(r.Targets)
	if r.judge(); len(r.Targets) != n {
		t.Error("judging twice doubles the targets")
	}
}

// TestTargetOfUnmeasuredCellPanics: a target about what no run measures is a fault of the program,
// and does not pass for one that was not measured.
func TestTargetOfUnmeasuredCellPanics(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(*Report){
		"contestant": func(r *Report) { r.median(cleanKnockd, fwknopNC) },
		"renamed":    func(r *Report) { r.median(cleanNftables, portknock(", 4 knocks", "vps", guardedPort)) },
		"grid": func(r *Report) {
			r.wantAll(grid{link: "loss 6 %", server: nftables, contestants: loss5.contestants})
		},
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

// TestGuardedCleansUpAndReturnsFailure: a fault ends what is measured, cleans up in reverse order, and is
// returned.
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
		t.Errorf("%v, %v", err, order)
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
			t.Errorf("%s: %s, want %s", release, got, want)
		}
	}
}
