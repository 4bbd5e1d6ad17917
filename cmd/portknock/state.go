package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/adrg/xdg"
	"github.com/portknock/portknock/proxy"
)

// hostState is what portknock remembers of a host. It has no secret. If it is lost, only the
// next connection may take a little longer.
//
// The XDG state folder has two files for each host: portknock/NAME.json for what a connection
// tells, and portknock/NAME.failure for the lastFailure. NAME is that of the profile, written
// as fileName writes it. A process replaces a file as a whole. So another process that
// connects at the same time can neither damage a file nor undo what it says of a failure.
type hostState struct {
	RoundTrip   int64     `json:"round_trip_us"`         // round trip of the last connection, in microseconds; 0 if unknown
	LastSuccess time.Time `json:"last_success,omitzero"` // time of the last connection, up to successEvery too early; zero if unknown

	LastFailure lastFailure `json:"-"` // the zero lastFailure if there was no failure
}

// lastFailure is why portknock could not connect to a host the last time. With ControlPersist,
// and in programs that hide the stderr of ssh, the user has not seen it.
type lastFailure struct {
	Time time.Time `json:"time"`
	Code int       `json:"code"`           // exit code
	Text string    `json:"error"`          // error line as printed, without "portknock: "
	Hint string    `json:"hint,omitempty"` // lines of the hint as printed, without "portknock: hint: "
}

// hasFailed reports whether the last attempt to connect has failed.
func (s hostState) hasFailed() bool { return s.LastFailure.Time.After(s.LastSuccess) }

// maxState is the largest file of a hostState that is read, in bytes.
const maxState = 16 << 10

// The suffixes of the files of a hostState.
const (
	stateSuffix   = ".json"
	failureSuffix = ".failure"
)

// stateFile returns the path of a file of a hostState. It returns "" if the user has no folder
// for it.
func stateFile(host, suffix string) string {
	reload.Lock()
	defer reload.Unlock()
	xdg.Reload()
	if _, err := os.UserHomeDir(); err != nil && os.Getenv("XDG_STATE_HOME") == "" || !filepath.IsAbs(xdg.StateHome) {
		return ""
	}
	return filepath.Join(xdg.StateHome, "portknock", fileName(host)+suffix)
}

// reload is held while the variables of package xdg are set and read.
var reload sync.Mutex

// loadState returns the state of a host. What portknock does not know, or cannot read, is zero.
func loadState(host string) (s hostState) {
	if !readState(stateFile(host, stateSuffix), &s) || s.RoundTrip < 0 || s.RoundTrip > time.Minute.Microseconds() {
		s = hostState{}
	}
	if !readState(stateFile(host, failureSuffix), &s.LastFailure) {
		s.LastFailure = lastFailure{}
	}
	return s
}

// forgetState removes the state of a host.
func forgetState(host string) {
	for _, suffix := range []string{stateSuffix, failureSuffix} {
		if path := stateFile(host, suffix); path != "" {
			os.Remove(path)
		}
	}
}

// readState reads one file of a hostState into the value that v points to.
func readState(path string, v any) bool {
	// Reading a pipe could block, and a login must not wait for the state.
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || info.Size() > maxState {
		return false
	}
	text, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(text, v) == nil
}

// save writes the state of a host except the LastFailure.
func (s hostState) save(host string) error { return writeState(stateFile(host, stateSuffix), s) }

// save writes the last failure of a host.
func (f lastFailure) save(host string) error { return writeState(stateFile(host, failureSuffix), f) }

// writeState writes a file of a hostState. Another process that reads the file sees the old
// text or the new one.
func writeState(path string, v any) error {
	if path == "" {
		return nil
	}
	text, err := json.Marshal(v)
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

// successEvery is how old a LastSuccess may become before another success replaces it. Ansible
// may log in a hundred times in a minute.
const successEvery = 10 * time.Minute

// remember saves that this Dialer has connected, and the round trip for the next one. It
// writes only if the last attempt has failed, if the LastSuccess is old, or if the round trip
// has changed: the Hedge has room for a quarter more. An error has no effect.
func (d *hostDialer) remember() {
	s, now, measured := loadState(d.host), now().UTC(), d.roundTrip.Microseconds()
	change := max(measured-s.RoundTrip, s.RoundTrip-measured)
	age := now.Sub(s.LastSuccess)
	if !s.hasFailed() && age >= 0 && age < successEvery && (measured == 0 || change <= s.RoundTrip/8) {
		return
	}
	if measured > 0 {
		s.RoundTrip = measured
	}
	s.LastSuccess = now
	_ = s.save(d.host)
}
