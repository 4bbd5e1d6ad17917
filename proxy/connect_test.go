package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestConnectTakesExpectedTime compares the duration, the result and the first events of
// Connect with a table of networks.
func TestConnectTakesExpectedTime(t *testing.T) {
	const rtt = 30 * ms
	always := func(d time.Duration, err error) func(netip.Addr, int) (time.Duration, error) {
		return func(netip.Addr, int) (time.Duration, error) { return d, err }
	}
	many := make([]netip.Addr, 12)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
	}
	noRoute := plain(errNoRoute)
	for _, test := range []struct {
		name    string
		addrs   []netip.Addr
		noRoute []netip.Addr // knocks to these addresses cannot leave
		answer  func(to netip.Addr, n int) (time.Duration, error)
		took    time.Duration
		to      netip.Addr
		err     string // part of the error's text; "" for a connection
		log     string // beginning of the log of the network; one event per line
	}{{
		name: "first SYN is answered", answer: always(rtt, nil), took: rtt, to: v4,
		log: "0s knock 192.0.2.1 #0\n0s dial 192.0.2.1",
	}, {
		name: "port opens after the first SYN",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n == 0 {
				return noAnswer, nil
			}
			return rtt, nil
		},
		took: 150*ms + rtt, to: v4,
		log: "0s knock 192.0.2.1 #0\n0s dial 192.0.2.1\n150ms ",
	}, {
		name: "round 0 and the next SYN are refused",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n < 2 {
				return rtt, errRefused
			}
			return rtt, nil
		},
		took: 150*ms + rtt, to: v4,
	}, {
		name: "rounds 0 and 1 are refused",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n < 3 {
				return rtt, errRefused
			}
			return rtt, nil
		},
		took: 400*ms + rtt, to: v4,
	}, {
		name: "first SYN is answered after 600 ms",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n == 0 {
				return 600 * ms, nil
			}
			return noAnswer, nil
		},
		took: 600 * ms, to: v4,
	}, {
		// One of the two sockets of round 1 stays live when a later round needs its place.
		name: "round 1 is answered after 700 ms",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n == 1 || n == 2 {
				return 700 * ms, nil
			}
			return noAnswer, nil
		},
		took: 850 * ms, to: v4,
	}, {
		name: "a daemon takes a quarter of a second to open the port",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n < 3 {
				return noAnswer, nil
			}
			return rtt, nil
		},
		took: 400*ms + rtt, to: v4,
	}, {
		name: "no answer", answer: always(noAnswer, nil), took: 10 * time.Second,
		err: "port 22 did not open within 10s: no answer",
	}, {
		name: "package net reports its own time-out", answer: always(rtt, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}),
		took: 10 * time.Second, err: "no answer",
	}, {
		name: "every SYN is refused", answer: always(rtt, errRefused), took: 10 * time.Second,
		err: "port 22 did not open within 10s: connection refused",
	}, {
		name: "no route to the only address", noRoute: []netip.Addr{v4}, err: noRoute,
	}, {
		name:  "a firewall on the way rejects the first SYN",
		addrs: []netip.Addr{v4},
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n == 0 {
				return rtt, &rejection{errNoRoute}
			}
			return rtt, nil
		},
		took: 150*ms + rtt, to: v4,
	}, {
		name: "no route to the address of the first family", addrs: []netip.Addr{v6, v4}, noRoute: []netip.Addr{v6},
		answer: always(rtt, nil),
		took:   rtt, to: v4,
	}, {
		name: "no route to both families", addrs: []netip.Addr{v6, v4}, noRoute: []netip.Addr{v6, v4}, err: noRoute,
	}, {
		name: "the first family never answers", addrs: []netip.Addr{v6, v4},
		answer: func(to netip.Addr, _ int) (time.Duration, error) {
			if to.Is6() {
				return noAnswer, nil
			}
			return rtt, nil
		},
		took: 250*ms + rtt, to: v4,
		log: "0s knock 2001:db8::1 #0\n0s dial 2001:db8::1\n150ms ", // the first target does not wait for the second
	}, {
		name: "one family has no route, and the other no answer", addrs: []netip.Addr{v6, v4}, noRoute: []netip.Addr{v6},
		answer: always(noAnswer, nil),
		took:   10 * time.Second, err: "no answer",
	}, {
		// A target starts every 250 ms. When the fifth target starts, the first has
		// ended round 0. It waits until all other targets have had their round 0.
		name: "only the last of many addresses answers", addrs: many,
		answer: func(to netip.Addr, _ int) (time.Duration, error) {
			if to != many[len(many)-1] {
				return noAnswer, nil
			}
			return rtt, nil
		},
		took: 2750*ms + rtt, to: many[len(many)-1],
	}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeNet(t, test.answer)
				f.noRoute = test.noRoute
				addrs := test.addrs
				if addrs == nil {
					addrs = []netip.Addr{v4}
				}
				conn, err := f.dialer(addrs...).Connect(t.Context(), "vps", 22)
				if took := time.Since(f.start); took != test.took {
					t.Errorf("took %v, want %v", took, test.took)
				}
				f.wantAllClosed(conn)
				if f.maxLive > maxLiveDials {
					t.Errorf("%d sockets were live at once, want at most 3", f.maxLive)
				}
				if log := strings.Join(f.log, "\n"); !strings.HasPrefix(log, test.log) {
					t.Errorf("events\n%s\nwant them to begin with\n%s", log, test.log)
				}
				if test.err != "" {
					if err == nil || !strings.Contains(err.Error(), test.err) {
						t.Fatalf("error %v, want one with %q", err, test.err)
					}
					_, closed := errors.AsType[*ClosedError](err)
					if closed != (test.took > 0) {
						t.Errorf("error is a ClosedError: %v, want the opposite", closed)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := conn.(*fakeConn).to; got != netip.AddrPortFrom(test.to, 22) {
					t.Errorf("connected to %v, want %v", got, test.to)
				}
			})
		})
	}
}
