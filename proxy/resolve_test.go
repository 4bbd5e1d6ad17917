package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestResolve(t *testing.T) {
	ip := netip.MustParseAddr
	for _, test := range []struct {
		host, family string
		answer       []netip.Addr
		want         []netip.Addr
	}{
		{"192.0.2.9", "", nil, []netip.Addr{ip("192.0.2.9")}},
		{"::ffff:192.0.2.9", "", nil, []netip.Addr{ip("192.0.2.9")}},
		{"fe80::1%eth0", "", nil, []netip.Addr{ip("fe80::1%eth0")}},
		{"fe80::1%eth0", "ip4", nil, nil},
		{"vps", "ip", []netip.Addr{v4, v6}, []netip.Addr{v4, v6}},
		{"vps", "", []netip.Addr{ip("::1"), ip("::2"), v4, v4, home}, []netip.Addr{ip("::1"), v4, ip("::2"), home}},
		{"vps", "", []netip.Addr{v4, ip("::1"), ip("::2")}, []netip.Addr{v4, ip("::1"), ip("::2")}},
		{"vps", "ip6", []netip.Addr{v4, v6}, []netip.Addr{v6}},
		{"vps", "ip4", []netip.Addr{v6}, nil},
		{"vps", "", nil, nil},
	} {
		d := Dialer{
			Family:  test.family,
			Resolve: func(context.Context, string) ([]netip.Addr, error) { return test.answer, nil },
		}
		got, err := d.resolve(t.Context(), test.host)
		if !slices.Equal(got, test.want) || (err == nil) != (test.want != nil) {
			t.Errorf("%s %s: %v %v, want %v", test.host, test.family, got, err, test.want)
		}
	}
}

// A name that changes while the port is still closed: knocks and connection
// belong together, so the first answer holds for all rounds.
func TestNameThatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(netip.Addr, int) (time.Duration, error) { return 30 * ms, errRefused })
		d := w.dialer()
		asked := byte(0)
		d.Resolve = func(context.Context, string) ([]netip.Addr, error) {
			asked++
			return []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, asked})}, nil
		}
		if _, err := d.Connect(t.Context(), "vps", 22); err == nil {
			t.Fatal("connected")
		}
		if asked != 1 || len(w.syns) != 1 {
			t.Errorf("asked %d times, and dialed %v", asked, w.syns)
		}
	})
}

// TestAddresses: an address is its own, with its zone.
func TestAddresses(t *testing.T) {
	for _, host := range []string{"fe80::1%eth0", "2001:db8::1", "192.0.2.1"} {
		addrs, err := new(Dialer).Addresses(t.Context(), host)
		if err != nil || len(addrs) != 1 || addrs[0].String() != host {
			t.Errorf("%s: %v, %v", host, addrs, err)
		}
	}
	_, err := (&Dialer{Family: "ip6"}).Addresses(t.Context(), "192.0.2.1")
	if _, ok := errors.AsType[*ResolveError](err); !ok || err.Error() != `cannot resolve "192.0.2.1": no IPv6 address` {
		t.Error(err)
	}
}

func TestResolveErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newWorld(t, nil).dialer()
		cause := &net.DNSError{Err: "no such host", Name: "vps", IsNotFound: true}
		d.Resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, cause }
		_, err := d.Connect(t.Context(), "vps", 22)
		if _, ok := errors.AsType[*ResolveError](err); !ok || err.Error() != `cannot resolve "vps": no such host` {
			t.Errorf("error %v", err)
		}

		d.Resolve = func(ctx context.Context, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		start := time.Now()
		_, err = d.Connect(t.Context(), "vps", 22)
		if _, ok := errors.AsType[*ResolveError](err); !ok || time.Since(start) != d.Timeout {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(ms, cancel)
		if _, err = d.Connect(ctx, "vps", 22); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}
