package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
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
	path := stateFile("vps")
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
		if got := stateFile("vps"); got != "" {
			t.Errorf("without HOME, the state is in %s, want nowhere", got)
		}
	}
}
