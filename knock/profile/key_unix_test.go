//go:build unix

package profile

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
)

func keyFile(t *testing.T, mode fs.FileMode, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadKeyChecksModeAndText(t *testing.T) {
	for _, tt := range []struct {
		mode fs.FileMode
		text string
		want string // error, in which FILE stands for the path; "" for none
	}{
		{0o600, keyText + "\n", ""},
		{0o700, keyText + "\r\n\n", ""},
		{0o640, keyText, "FILE: contains a key and is accessible by other users (mode 0640); run chmod 600 FILE"},
		{0o600, "", "FILE: empty, expected a key"},
		{0o600, "Host vps\n", `FILE: not a key: it does not begin with "portknock-key-1:"`},
		{0o600, keyText[:50], "FILE: the key is truncated; its end is missing"},
		{0o600, strings.Replace(keyText, "aaaq", "aaqa", 1), "FILE: the key is mistyped or truncated; its checksum is wrong"},
		{0o600, strings.Repeat("x", 4097), "FILE: the file is too long to be a key"},
	} {
		path := keyFile(t, tt.mode, tt.text)
		k, err := LoadKey(path)
		if want := strings.ReplaceAll(tt.want, "FILE", path); err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("%04o: got %v, want %s", tt.mode, err, want)
		}
		if err == nil && k.Reveal() != keyText {
			t.Errorf("%04o: LoadKey returned another key than the file's", tt.mode)
		}
	}
}

// scheduleOf returns the Schedule of the host vps with these settings.
func scheduleOf(t *testing.T, lines string) (knock.Schedule, error) {
	t.Helper()
	p, err := mustParse(t, "Host vps\n"+lines+"\n").Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	server, err := p.Server(t.Context())
	return server.Schedule, err
}

func TestServerBuildsScheduleFromKey(t *testing.T) {
	key, err := knock.ParseKey(keyText)
	if err != nil {
		t.Fatal(err)
	}
	rotating := knock.Rotating{Key: key, Ports: knock.PortRange{Transport: knock.UDP, First: 20000, Last: 59999}, Knocks: 5, Period: time.Hour}
	derived := rotating
	derived.Key = key.Derive("vps")
	token := knock.Token{Key: key, Port: 62202, Period: time.Hour, Tokens: 8}
	derivedToken := token
	derivedToken.Key, derivedToken.Port, derivedToken.Tokens = derived.Key, 443, 1
	file := keyFile(t, 0o600, keyText+"\n")
	for lines, want := range map[string]knock.Schedule{
		"Scheme rotating\nKeyFile " + file:                                                   rotating,
		"Scheme rotating\nKeyCommand cat " + file:                                            rotating,
		"Scheme rotating\nDeriveHostKey yes\nKeyFile " + file:                                derived,
		"Scheme rotating\nDeriveHostKey YES\nKeyCommand cat " + file:                         derived,
		"Scheme token\nKeyFile " + file:                                                      token,
		"Scheme token\nTokenPort 443\nTokensPerWindow 1\nDeriveHostKey yes\nKeyFile " + file: derivedToken,
		// One final newline is not part of the secret.
		"Scheme md5-hourly\nPortRange 10000-10999\nSkew 0\nKeyFile " + keyFile(t, 0o600, "f00b4r\n"): knock.MD5Hourly{
			Secret: knock.KeyFrom([]byte("f00b4r")), Ports: knock.PortRange{First: 10000, Last: 10999}, Knocks: 5},
		"Scheme md5-hourly\nPortRange 10000-10999\nSkew 0\nKeyCommand printf f00b4r\\r\\n": knock.MD5Hourly{
			Secret: knock.KeyFrom([]byte("f00b4r")), Ports: knock.PortRange{First: 10000, Last: 10999}, Knocks: 5},
		"Scheme md5-hourly\nPortRange 10000-10999\nSkew 0\nKeyFile " + keyFile(t, 0o600, "f00b4r"): knock.MD5Hourly{
			Secret: knock.KeyFrom([]byte("f00b4r")), Ports: knock.PortRange{First: 10000, Last: 10999}, Knocks: 5},
	} {
		if got, err := scheduleOf(t, lines); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", lines, got, err, want)
		}
	}
}

// A second newline is part of the secret. The scheme md5-hourly cannot use such a secret.
func TestOnlyOneNewlineIsRemovedFromSecret(t *testing.T) {
	path := keyFile(t, 0o600, "f00b4r\n\n")
	_, err := scheduleOf(t, "Scheme md5-hourly\nKeyFile "+path)
	if err == nil || !strings.HasPrefix(err.Error(), path+": the secret contains a space") {
		t.Errorf("got %v, want an error about a space in the secret", err)
	}
}

func TestKeyCommandErrors(t *testing.T) {
	for _, tt := range []struct{ command, want string }{
		{"false", "KeyCommand false: exit status 1"},
		{"no-such-program", "KeyCommand no-such-program: executable file not found in $PATH"},
		{"true", "KeyCommand true: printed nothing"},
		{"yes", "KeyCommand yes: printed too much text for a key"},
		{"echo secret", `KeyCommand echo: not a key: it does not begin with "portknock-key-1:"`},
		{"echo " + keyText[:40], "KeyCommand echo: the key is truncated; its end is missing"},
	} {
		if _, err := scheduleOf(t, "Scheme rotating\nKeyCommand "+tt.command); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.command, err, tt.want)
		}
	}
}
