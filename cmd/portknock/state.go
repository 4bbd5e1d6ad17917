package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/adrg/xdg"
	"github.com/portknock/portknock/proxy"
)

// hostState is what portknock remembers of a host. The XDG state folder has a file for each
// host, portknock/NAME.json. NAME is that of the profile, written as fileName writes it. The
// file has no secret. If it is lost, only the next connection may take a little longer.
type hostState struct {
	RoundTrip int64 `json:"round_trip_us"` // round trip of the last connection, in microseconds; 0 if unknown
}

// maxState is the largest file of a hostState that is read, in bytes.
const maxState = 4096

// stateFile returns the path of a host's state. It returns "" if the user has no folder for it.
func stateFile(host string) string {
	xdg.Reload()
	if _, err := os.UserHomeDir(); err != nil && os.Getenv("XDG_STATE_HOME") == "" || !filepath.IsAbs(xdg.StateHome) {
		return ""
	}
	return filepath.Join(xdg.StateHome, "portknock", fileName(host)+".json")
}

// loadState returns the state of a host. It returns the zero hostState if portknock does not
// know the host, or if the file cannot be read.
func loadState(host string) (s hostState) {
	path := stateFile(host)
	// Reading a pipe could block, and a login must not wait for the state.
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || info.Size() > maxState {
		return hostState{}
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil || s.RoundTrip < 0 || s.RoundTrip > time.Minute.Microseconds() {
		return hostState{}
	}
	return s
}

// save writes the state of a host. Another process that reads the file sees the old state or
// the new one.
func (s hostState) save(host string) error {
	path := stateFile(host)
	if path == "" {
		return nil
	}
	text, err := json.Marshal(s)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".portknock-*") // os.CreateTemp uses mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// rememberedHedge returns the Hedge for a host. It returns 0 if portknock does not know how long
// the path to the host is.
func rememberedHedge(host string) time.Duration {
	if s := loadState(host); s.RoundTrip > 0 {
		return proxy.Hedge(time.Duration(s.RoundTrip) * time.Microsecond)
	}
	return 0
}

// remember saves the round trip of the connection for the next one. It writes nothing if the
// round trip has hardly changed: the Hedge has room for a quarter more. An error has no effect.
func (d *hostDialer) remember() {
	s, now := loadState(d.host), d.roundTrip.Microseconds()
	if change := now - s.RoundTrip; now > 0 && (change > s.RoundTrip/8 || -change > s.RoundTrip/8) {
		s.RoundTrip = now
		_ = s.save(d.host)
	}
}
