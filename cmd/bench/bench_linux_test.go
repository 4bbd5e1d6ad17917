package main

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestRun measures a cell and looks at the report's shape, not at its figures.
func TestRun(t *testing.T) {
	lab.Require(t, "nft", "nc")
	lab.NewHost(t, "any") // or it is skipped: measure would call it a failure
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o := &options{runs: 2, quick: true, only: regexp.MustCompile("^(clean/(nftables/portknock, (3|token)|open port/nc$)|crowd|stream/down|keystroke|stalled|guesses)")}
	r, err := measure(ctx, o)
	if err != nil || len(r.Missing) > 0 {
		t.Fatal(err, r.Missing)
	}
	if len(r.Cells) != 3 || r.Cells[0].name() != "clean/open port/nc" || r.Cells[1].name() != "clean/nftables/portknock, 3 knocks" ||
		r.Cells[2].name() != "clean/nftables/portknock, token" {
		t.Fatalf("%+v", r.Cells)
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
	if len(r.Streams) != 2 || r.Streams[1].Contestant != "portknock" || r.Streams[1].CPU <= 0 || r.Streams[1].Rate <= 0 || r.Streams[1].Memory <= 0 {
		t.Errorf("%+v", r.Streams)
	}
	if got := r.figure("connected, of 10 at once"); got != 10 {
		t.Errorf("%v of 10 connected", got)
	}
	for _, name := range []string{"nc", "portknock"} {
		if us := r.figure("a keystroke and its echo, " + name + ", median"); !(us > 0) {
			t.Errorf("%s: %v µs for a keystroke", name, us)
		}
	}
	r.judge()
	if err := r.print(&bytes.Buffer{}); err != nil {
		t.Error(err)
	}
	t.Logf("%+v", r)
}

// A fault ends what is measured, cleans up in reverse order, and is told.
func TestGuarded(t *testing.T) {
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

func TestKernelVersion(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]string{"6.18.44": "6.18.44", "6.1.0-13-amd64": "6.1.0", "5.15-acme+": "5.15"} {
		if got := kernelVersion(release); got != want {
			t.Errorf("%s: %s, want %s", release, got, want)
		}
	}
}
