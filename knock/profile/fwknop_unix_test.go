//go:build unix

package profile

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
)

// pickerOf returns the Picker of the host vps with these settings.
func pickerOf(t *testing.T, lines string) (knock.Picker, error) {
	t.Helper()
	p, err := mustParse(t, "Host vps\n"+lines+"\n").Lookup("vps")
	if err != nil {
		t.Fatal(err)
	}
	return p.Picker(t.Context())
}

func TestSPAPickerBuildsRequest(t *testing.T) {
	key, hmacKey := keyFile(t, 0o600, "pass word\n"), keyFile(t, 0o600, "base64:AAEC/w==\n")
	base := "Scheme fwknop\nKeyFile " + key + "\nHMACKeyFile " + hmacKey + "\n"
	picker, err := pickerOf(t, base+"AllowIPCommand echo 198.51.100.7\nSPAUser alice\n")
	if err != nil {
		t.Fatal(err)
	}
	request := picker.(*spa.Request)
	if string(request.Key.Bytes()) != "pass word" || string(request.HMACKey.Bytes()) != "\x00\x01\x02\xff" ||
		request.Allow != netip.MustParseAddr("198.51.100.7") || request.User != "alice" || request.Host != "vps" || request.Port != 62201 {
		t.Errorf("got another request: %+v", request)
	}
	for _, tt := range []struct{ lines, want string }{
		{base + "AllowIPCommand false", "AllowIPCommand false: exit status 1"},
		{base + "AllowIPCommand /no/such", "AllowIPCommand /no/such: no such file or directory"},
		{base + "AllowIPCommand echo", "AllowIPCommand echo: printed nothing"},
		{base + "AllowIPCommand echo ::1", `AllowIPCommand echo: printed "::1", which is not an IPv4 address`},
		{base + "AllowIPCommand yes", "AllowIPCommand yes: printed too much text for an address"},
		{"Scheme fwknop\nKeyCommand echo", "KeyCommand echo: printed nothing"},
		{"Scheme fwknop\nKeyCommand echo base64:%", "KeyCommand echo: the text after base64: is not base64"},
		{"Scheme fwknop\nKeyCommand echo " + strings.Repeat("x", 33), "the key has 33 bytes; at most 32 are allowed"},
		{"Scheme fwknop\nKeyFile " + key + "\nHMACKeyFile " + keyFile(t, 0o600, "pass word"), "the key and the HMAC key must differ"},
		{
			"Scheme fwknop\nKeyFile " + key + "\nHMACKeyFile " + keyFile(t, 0o644, "x"),
			"FILE: contains a key and is accessible by other users (mode 0644); run chmod 600 FILE",
		},
		{"Scheme fwknop\nKeyFile " + key + "\nHMACKeyFile " + keyFile(t, 0o600, "\n"), "FILE: empty, expected a key"},
	} {
		_, err := pickerOf(t, tt.lines)
		_, file, _ := strings.Cut(tt.lines, "HMACKeyFile ")
		file, _, _ = strings.Cut(file, "\n")
		if want := strings.ReplaceAll(tt.want, "FILE", file); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", tt.lines, err, want)
		}
	}
}

// The user name in the packet is that of the user, as with the fwknop client. A name
// that fwknopd does not accept is skipped.
func TestSPAUserNameFromEnvironment(t *testing.T) {
	for name, want := range map[string]string{"alice": "alice", `DOMAIN\alice`: "bob", "": "bob"} {
		t.Setenv("LOGNAME", name)
		t.Setenv("USER", "bob")
		if got := userName(); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	for _, variable := range []string{"LOGNAME", "USER", "USERNAME"} {
		t.Setenv(variable, "ü")
	}
	if got := userName(); got != "NO_USER" {
		t.Errorf("got %q, want NO_USER", got)
	}
}

// A relative KeyFile and a relative HMACKeyFile start at the folder of the profile file.
func TestSPAKeyPathsStartAtProfileFolder(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config")
	if err := os.WriteFile(path, []byte("Host vps\nScheme fwknop\nKeyFile a\nHMACKeyFile b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := f.Lookup("vps"); err != nil || p.KeyFile != filepath.Join(dir, "a") || p.SPA.HMACKeyFile != filepath.Join(dir, "b") {
		t.Errorf("a key file is not in the profile's folder: %+v, %v", p, err)
	}
}
