package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/proxy"
)

// TestHedgeFollowsLastConnection: the next Dialer for a host uses the round trip of the last
// connection. Another host does not.
func TestHedgeFollowsLastConnection(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", filepath.Join(t.TempDir(), "state"))
	connect := func(host string, roundTrip time.Duration) (hedge time.Duration) {
		t.Helper()
		d, err := dialer(t.Context(), &profile.Profile{Name: host}, nil, &logger{})
		if err != nil {
			t.Fatal(err)
		}
		d.Trace(proxy.Event{Kind: proxy.Connected, RoundTrip: roundTrip})
		d.Trace(proxy.Event{Kind: proxy.Lost})
		d.remember()
		return d.Hedge
	}
	const ms = time.Millisecond
	for i, tt := range []struct {
		host      string
		roundTrip time.Duration // of this connection
		hedge     time.Duration // during this connection
	}{
		{"vps", 40 * ms, 0},
		{"vps", 0, 60 * ms},       // no connection, or an unknown round trip
		{"vps", 44 * ms, 60 * ms}, // too small a change to write
		{"vps", 80 * ms, 60 * ms},
		{"vps", 40 * ms, 110 * ms},
		{"vps", time.Hour, 60 * ms},
		{"vps", 0, 0}, // an impossible round trip
		{"../vps", 40 * ms, 0},
		{"../vps", 40 * ms, 60 * ms},
	} {
		if got := connect(tt.host, tt.roundTrip); got != tt.hedge {
			t.Errorf("connection %d to %s: Hedge is %v, want %v", i, tt.host, got, tt.hedge)
		}
	}
	files, err := filepath.Glob(filepath.Join(os.Getenv("XDG_STATE_HOME"), "portknock", "*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("the state folder has %q, error %v; want two files", files, err)
	}
	for _, path := range append(files, filepath.Dir(files[0])) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
			t.Errorf("%s has mode %o, but others must not read it", path, mode)
		}
	}
}

// TestUnusableStateIsUnknown: a state that is damaged, or cannot be written, has no effect.
func TestUnusableStateIsUnknown(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_STATE_HOME", dir)
	path := stateFile("vps", stateSuffix)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "null", "{", `{"round_trip_us": -1}`, `{"round_trip_us": 1e30}`, strings.Repeat(" ", maxState) + `{"round_trip_us": 1}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := rememberedHedge("vps"); got != 0 {
			t.Errorf("state %.30q: Hedge is %v, want 0", text, got)
		}
	}
	if err := (hostState{RoundTrip: 1}).save("vps"); err != nil || rememberedHedge("vps") == 0 {
		t.Errorf("a damaged state is not replaced: error %v", err)
	}
	t.Setenv("XDG_STATE_HOME", path) // a file
	if err := (hostState{RoundTrip: 1}).save("vps"); err == nil || rememberedHedge("vps") != 0 {
		t.Errorf("a state folder that is a file: error %v, Hedge %v", err, rememberedHedge("vps"))
	}
	if runtime.GOOS != "windows" {
		t.Setenv("XDG_STATE_HOME", "")
		t.Setenv("HOME", "")
		if got := stateFile("vps", stateSuffix); got != "" {
			t.Errorf("without HOME, the state is in %s, want nowhere", got)
		}
	}
}

// TestSuccessIsRememberedOnlyIfItTellsMore: a connection writes the state only after a failure,
// after successEvery, or if the round trip has changed. It keeps the last failure.
func TestSuccessIsRememberedOnlyIfItTellsMore(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	clock := time.Date(2026, 11, 22, 7, 0, 0, 0, time.UTC)
	defer func(before func() time.Time) { now = before }(now)
	now = func() time.Time { return clock }
	for i, tt := range []struct {
		wait      time.Duration // since the previous attempt
		fails     bool
		roundTrip time.Duration
		writes    bool
		failed    bool // hasFailed after the attempt
	}{
		{0, false, 0, true, false},
		{time.Second, false, 0, false, false},
		{time.Second, true, 0, true, true},
		{time.Second, true, 0, true, true},
		{time.Second, false, 0, true, false},
		{successEvery - time.Second, false, 0, false, false},
		{time.Second, false, 0, true, false},
		{time.Second, false, time.Millisecond, true, false},
		{time.Second, false, time.Millisecond, false, false},
		{-time.Hour, false, time.Millisecond, true, true}, // the clock was set back to before the failure
	} {
		clock = clock.Add(tt.wait)
		before := loadState("vps")
		failure := lastFailure{Time: clock, Code: exitClosed, Text: "vps: no answer", Hint: "a\nb\n"}
		if tt.fails {
			if err := failure.save("vps"); err != nil {
				t.Fatal(err)
			}
		} else {
			(&hostDialer{host: "vps", roundTrip: tt.roundTrip}).remember()
		}
		after := loadState("vps")
		if wrote := after != before; wrote != tt.writes || after.hasFailed() != tt.failed {
			t.Errorf("attempt %d: written is %v, failed is %v; want %v, %v", i, wrote, after.hasFailed(), tt.writes, tt.failed)
		}
		switch {
		case tt.fails && after.LastFailure != failure:
			t.Errorf("attempt %d: the last failure is %+v, want %+v", i, after.LastFailure, failure)
		case !tt.fails && after.LastFailure != before.LastFailure:
			t.Errorf("attempt %d: a success has changed the last failure to %+v", i, after.LastFailure)
		case !tt.fails && tt.writes && !after.LastSuccess.Equal(clock):
			t.Errorf("attempt %d: the last success was at %v, want %v", i, after.LastSuccess, clock)
		}
	}
}

// TestSimultaneousAttemptsKeepState: connections and failures at the same moment damage
// nothing, and each leaves its part of the state.
func TestSimultaneousAttemptsKeepState(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() { (&hostDialer{host: "vps", roundTrip: time.Duration(1+i) * time.Millisecond}).remember() })
		all.Go(func() { _ = lastFailure{Time: now(), Code: i, Text: strings.Repeat("x", 100*i)}.save("vps") })
		all.Go(func() {
			if s := loadState("vps"); len(s.LastFailure.Text) != 100*s.LastFailure.Code {
				t.Errorf("the state is damaged: %+v", s)
			}
		})
	}
	all.Wait()
	if s := loadState("vps"); s.RoundTrip == 0 || s.LastSuccess.IsZero() || s.LastFailure.Time.IsZero() {
		t.Errorf("the state has lost a part: %+v", s)
	}
}
