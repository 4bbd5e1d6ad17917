package proxy

import (
	"errors"
	"os"
	"testing"
)

// TestAnswers: each error of a dial means one thing at most.
func TestAnswers(t *testing.T) {
	for _, test := range []struct {
		name                       string
		err                        error
		refused, rejected, noRoute bool
	}{
		{name: "no answer"},
		{name: "RST", err: errRefused, refused: true},
		{name: "ICMP", err: &rejection{errNoRoute}, rejected: true},
		{name: "no route", err: errNoRoute, noRoute: true},
		{name: "a local firewall", err: os.NewSyscallError("connect", os.ErrPermission)},
		{name: "another error", err: errors.New("odd")},
	} {
		closed := &ClosedError{Err: test.err}
		if closed.Refused() != test.refused || closed.Rejected() != test.rejected || IsNoRoute(closed) != test.noRoute || IsNoRoute(test.err) != test.noRoute {
			t.Errorf("%s: refused %v, rejected %v, no route %v", test.name, closed.Refused(), closed.Rejected(), IsNoRoute(closed))
		}
	}
}
