package proxy

import (
	"errors"
	"os"
	"testing"
)

// TestErrorsMeanOneThing: no error of a dial is of two kinds.
func TestErrorsMeanOneThing(t *testing.T) {
	for _, test := range []struct {
		name                       string
		err                        error
		refused, rejected, noRoute bool
	}{
		{name: "no answer"},
		{name: "RST", err: errRefused, refused: true},
		{name: "ICMP", err: &rejection{errNoRoute}, rejected: true},
		{name: "no route", err: errNoRoute, noRoute: true},
		{name: "no local address", err: os.NewSyscallError("bind", errnosNoRoute[3]), noRoute: true},
		{name: "a local firewall", err: os.NewSyscallError("connect", os.ErrPermission)},
		{name: "another error", err: errors.New("odd")},
	} {
		closed := closedError(22, 0, test.err)
		if closed.Refused != test.refused || closed.Rejected != test.rejected || IsNoRoute(closed) != test.noRoute || IsNoRoute(test.err) != test.noRoute {
			t.Errorf("%s: refused %v, rejected %v, no route %v", test.name, closed.Refused, closed.Rejected, IsNoRoute(closed))
		}
	}
}
