package proxy

import (
	"errors"
	"os"
	"slices"
	"testing"
)

// TestDialErrorHasAtMostOneKind: an error of a dial is a refusal, a rejection, a missing
// route, or none of the three.
func TestDialErrorHasAtMostOneKind(t *testing.T) {
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
		{name: "no neighbor has the address", err: os.NewSyscallError("sendto", errnosUnreachable[len(errnosUnreachable)-1]), noRoute: true},
		{name: "a local firewall", err: os.NewSyscallError("connect", os.ErrPermission)},
		{name: "another error", err: errors.New("odd")},
	} {
		closed := newClosedError(22, 0, test.err)
		got := []bool{closed.Refused, closed.Rejected, IsNoRoute(closed), IsNoRoute(test.err)}
		if want := []bool{test.refused, test.rejected, test.noRoute, test.noRoute}; !slices.Equal(got, want) {
			t.Errorf("%s: Refused, Rejected, IsNoRoute(ClosedError), IsNoRoute(cause) are %v, want %v", test.name, got, want)
		}
	}
}
