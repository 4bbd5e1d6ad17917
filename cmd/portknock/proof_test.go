package main

import (
	"errors"
	"testing"

	"github.com/portknock/portknock/knock/profile"
)

// TestLoginFailureNamesTheCause: of all that ssh and portknock print, the failure of a login has the
// line with the cause, and the hints that fit.
func TestLoginFailureNamesTheCause(t *testing.T) {
	const closed = "kex_exchange_identification: Connection closed by remote host\r\nConnection closed by UNKNOWN port 65535\r\n"
	const changed = "portknock: vps: the profile has changed since it was deployed; trying both" + deployAdvice + "vps\n"
	for _, tt := range []struct {
		name, printed, want, hint string
	}{
		{"the port is silent", changed + "portknock: vps: port 22 did not open within 9s: no answer\n" +
			"portknock: hint: check that the server's rules were made from this profile\nportknock: hint: run: portknock check vps\n" + closed,
			"port 22 did not open within 9s: no answer",
			"if a firewall is in front of the server, it must let these ports through: portknock -c config sequence vps"},
		{"the port refuses", "portknock: vps: port 22 did not open within 9s: connection refused\n" +
			"portknock: hint: check that sshd listens on port 22\nportknock: hint: run: portknock check vps\n" + closed,
			"port 22 did not open within 9s: connection refused",
			"check that sshd listens on port 22\nrun: portknock check vps"},
		{"ssh fails", changed + "Warning: Permanently added 'vps' to the list of known hosts.\r\nvps: Permission denied (publickey).\r\n",
			"vps: Permission denied (publickey). (exit status 255)", ""},
		{"nothing is printed", "", "(exit status 255)", ""},
	} {
		s := &server{profile: &profile.Profile{Name: "vps"}, config: &config{path: "config"}}
		err := s.loginFailure(tt.printed, errors.New("exit status 255"))
		f, ok := errors.AsType[*failure](err)
		if want := "a new login through the new rules fails: " + tt.want; !ok || f.Error() != want || f.hint != tt.hint {
			t.Errorf("%s: the failure is\n%#v, want\n%s\n%s", tt.name, err, want, tt.hint)
		}
	}
}
