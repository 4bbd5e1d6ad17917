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

func TestConnect(t *testing.T) {
	const far = 30 * ms
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
		noRoute []netip.Addr // of addrs
		answer  func(to netip.Addr, n int) (time.Duration, error)
		took    time.Duration
		to      netip.Addr
		err     string // a part of it; "" for a connection
		log     string // how it must begin; one event a line
	}{{
		name: "first try", answer: always(far, nil), took: far, to: v4,
		log: "0s knock 192.0.2.1 #0\n0s dial 192.0.2.1",
	}, {
		name: "opened late, first round",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n == 0 {
				return never, nil
			}
			return far, nil
		},
		took: 150*ms + far, to: v4,
		log: "0s knock 192.0.2.1 #0\n0s dial 192.0.2.1\n150ms ",
	}, {
		name: "refused, then open",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n < 2 {
				return far, errRefused
			}
			return far, nil
		},
		took: 150*ms + far, to: v4,
	}, {
		name: "third round",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n < 3 {
				return far, errRefused
			}
			return far, nil
		},
		took: 400*ms + far, to: v4,
	}, {
		name: "a late answer to the first SYN",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n == 0 {
				return 600 * ms, nil
			}
			return never, nil
		},
		took: 600 * ms, to: v4,
	}, {
		// Of the two sockets of a round, one waits on when others need a place.
		name: "a late answer in the second round",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n == 1 || n == 2 {
				return 700 * ms, nil
			}
			return never, nil
		},
		took: 850 * ms, to: v4,
	}, {
		name: "a daemon that takes a quarter of a second",
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n < 3 {
				return never, nil
			}
			return far, nil
		},
		took: 400*ms + far, to: v4,
	}, {
		name: "no answer", answer: always(never, nil), took: 10 * time.Second,
		err: "port 22 did not open within 10s: no answer",
	}, {
		name: "net's own time-out", answer: always(far, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}),
		took: 10 * time.Second, err: "no answer",
	}, {
		name: "refused for good", answer: always(far, errRefused), took: 10 * time.Second,
		err: "port 22 did not open within 10s: connection refused",
	}, {
		name: "no route", noRoute: []netip.Addr{v4}, err: noRoute,
	}, {
		name:  "rejected by a firewall on the way",
		addrs: []netip.Addr{v4},
		answer: func(_ netip.Addr, n int) (time.Duration, error) {
			if n == 0 {
				return far, &rejection{errNoRoute}
			}
			return far, nil
		},
		took: 150*ms + far, to: v4,
	}, {
		name: "no route by the first family", addrs: []netip.Addr{v6, v4}, noRoute: []netip.Addr{v6},
		answer: always(far, nil),
		took:   far, to: v4,
	}, {
		name: "no route by both", addrs: []netip.Addr{v6, v4}, noRoute: []netip.Addr{v6, v4}, err: noRoute,
	}, {
		name: "the first family is a black hole", addrs: []netip.Addr{v6, v4},
		answer: func(to netip.Addr, _ int) (time.Duration, error) {
			if to.Is6() {
				return never, nil
			}
			return far, nil
		},
		took: 250*ms + far, to: v4,
		log: "0s knock 2001:db8::1 #0\n0s dial 2001:db8::1\n150ms ", // it does not wait for the other
	}, {
		name: "one family has no route, the other no answer", addrs: []netip.Addr{v6, v4}, noRoute: []netip.Addr{v6},
		answer: always(never, nil),
		took:   10 * time.Second, err: "no answer",
	}, {
		// One starts every 250 ms: when the fifth does, the first has ended its
		// round and waits until the others have had theirs.
		name: "many addresses, the last one answers", addrs: many,
		answer: func(to netip.Addr, _ int) (time.Duration, error) {
			if to != many[len(many)-1] {
				return never, nil
			}
			return far, nil
		},
		took: 2750*ms + far, to: many[len(many)-1],
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
				f.idle(conn)
				if f.most > maxLiveDials {
					t.Errorf("%d sockets were live at once", f.most)
				}
				if log := strings.Join(f.log, "\n"); !strings.HasPrefix(log, test.log) {
					t.Errorf("it went\n%s\nwant\n%s", log, test.log)
				}
				if test.err != "" {
					if err == nil || !strings.Contains(err.Error(), test.err) {
						t.Fatalf("error %v, want one with %q", err, test.err)
					}
					_, closed := errors.AsType[*ClosedError](err)
					if closed != (test.took > 0) {
						t.Errorf("error is a ClosedError: %v", closed)
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
