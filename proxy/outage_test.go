package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// These tests are about an outage: a time in which this machine has no route to
// the server, or no address to send from.

// outage makes one part of a Dialer fail for a time.
type outage struct {
	part     string        // element of outageParts: the part of the Dialer that fails
	err      error         // error of the part during the outage
	from, to time.Duration // start and end of the outage, from the start of the test; no end if to is 0
}

var outageParts = []string{"source", "knock", "dial", "dial without knocks"}

// dialer returns a Dialer for a network that has the outage.
func (o outage) dialer(f *fakeNet, addrs ...netip.Addr) *Dialer {
	d := f.dialer(addrs...)
	currentErr := func() error {
		if elapsed := time.Since(f.start); elapsed < o.from || o.to > 0 && elapsed >= o.to {
			return nil
		}
		return o.err
	}
	switch o.part {
	case "source":
		d.Source = func(netip.Addr) (netip.Addr, error) { return home, currentErr() }
	case "knock":
		d.Knock = func(ctx context.Context, from, to netip.Addr, round int) (Sent, error) {
			if err := currentErr(); err != nil {
				return Sent{}, err
			}
			return f.knock(ctx, from, to, round)
		}
	case "dial without knocks":
		d.Knock = nil
		fallthrough
	case "dial":
		d.Dial = func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
			if err := currentErr(); err != nil {
				return nil, err
			}
			return f.dial(ctx, from, to)
		}
	}
	return d
}

// TestOutageEndsOnlyItsRound: after round 0 has left, an outage ends its round but not the
// target.
func TestOutageEndsOnlyItsRound(t *testing.T) {
	for _, part := range outageParts {
		for _, errno := range errnosNoRoute {
			t.Run(part+"/"+errno.Error(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFakeNet(t, nil)
					f.answer = func(netip.Addr, int) (time.Duration, error) {
						if time.Since(f.start) < 900*ms {
							return noAnswer, nil
						}
						return 30 * ms, nil
					}
					d := outage{part, os.NewSyscallError("connect", errno), 100 * ms, 800 * ms}.dialer(f, v4)
					var kinds []string
					d.Trace = func(e Event) {
						if e.Err != nil {
							kinds = append(kinds, string(e.Kind))
						}
					}
					conn, err := d.Connect(t.Context(), "vps", 22)
					if err != nil {
						t.Fatal(err)
					}
					f.wantAllClosed(conn)
					// The rounds at 150 and 400 ms meet the outage. The next begins at 900 ms.
					if took := time.Since(f.start); took != 930*ms {
						t.Errorf("took %v, want 930ms", took)
					}
					if len(kinds) < 2 || slices.ContainsFunc(kinds, func(kind string) bool { return kind != "unreachable" }) {
						t.Errorf("errors in events of the kinds %q, want at least two and only unreachable", kinds)
					}
				})
			})
		}
	}
}

// TestOutageKeepsLiveDials: a SYN that left before an outage began may still be
// answered.
func TestOutageKeepsLiveDials(t *testing.T) {
	for _, part := range outageParts {
		t.Run(part, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return 600 * ms, nil })
				conn, err := outage{part: part, err: errNoRoute, from: 100 * ms}.dialer(f, v4).Connect(t.Context(), "vps", 22)
				if err != nil {
					t.Fatal(err)
				}
				f.wantAllClosed(conn)
				if took := time.Since(f.start); took != 600*ms {
					t.Errorf("took %v, want 600ms", took)
				}
			})
		})
	}
}

// TestOutageBeforeFirstKnocksIsFinal: an outage ends the target if it comes before the
// first knocks have left. If Knock is nil, an outage in round 0 ends the target.
func TestOutageBeforeFirstKnocksIsFinal(t *testing.T) {
	for _, part := range []string{"source", "knock", "dial without knocks"} {
		t.Run(part, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeNet(t, nil)
				_, err := outage{part: part, err: errNoRoute}.dialer(f, v4).Connect(t.Context(), "vps", 22)
				if took := time.Since(f.start); !errors.Is(err, errNoRoute) || took != 0 {
					t.Errorf("error %v after %v, want the outage at once", err, took)
				}
			})
		})
	}
	t.Run("outage in round 1 after a temporary error in round 0", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeNet(t, nil)
			d := f.dialer(v4)
			d.Knock = func(_ context.Context, _, _ netip.Addr, round int) (Sent, error) {
				if round == 0 {
					return Sent{}, errnosTemporary[1]
				}
				return Sent{}, errNoRoute
			}
			_, err := d.Connect(t.Context(), "vps", 22)
			if took := time.Since(f.start); !errors.Is(err, errNoRoute) || took != 150*ms {
				t.Errorf("error %v after %v, want the outage after 150ms", err, took)
			}
		})
	})
}

// TestPermanentErrorIsFinalInEveryRound: a permanent error ends a target in every round,
// not only in round 0.
func TestPermanentErrorIsFinalInEveryRound(t *testing.T) {
	causes := []error{&net.AddrError{Err: "mismatched local address type"}}
	for _, errno := range errnosPermanent {
		causes = append(causes, os.NewSyscallError("connect", errno))
	}
	for _, part := range outageParts {
		for _, cause := range causes {
			t.Run(part+"/"+cause.Error(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return noAnswer, nil })
					_, err := outage{part: part, err: cause, from: 100 * ms}.dialer(f, v4).Connect(t.Context(), "vps", 22)
					if took := time.Since(f.start); !errors.Is(err, cause) || took != 150*ms {
						t.Errorf("error %v after %v, want the permanent error after 150ms", err, took)
					}
				})
			})
		}
	}
}

// TestErrorNamesOutageThatLasts: the error names an outage that lasts until the end,
// and does not name an outage that has ended.
func TestErrorNamesOutageThatLasts(t *testing.T) {
	unreachable := plain(errNoRoute)
	for _, test := range []struct {
		name    string
		addrs   []netip.Addr
		to      time.Duration // end of the outage; 0 if it lasts
		refused bool          // the first SYN was refused
		want    string        // cause in the text of the error
	}{
		{"outage lasts", []netip.Addr{v4}, 0, false, unreachable},
		{"outage lasts, after a refusal", []netip.Addr{v4}, 0, true, unreachable},
		{"outage ends", []netip.Addr{v4}, 800 * ms, false, "no answer"},
		{"outage ends, after a refusal", []netip.Addr{v4}, 800 * ms, true, "connection refused"},
		{"outage of both families lasts", []netip.Addr{v6, v4}, 0, false, unreachable},
	} {
		for _, part := range outageParts {
			if part == "dial without knocks" && test.refused {
				continue // without knocks the refusal would be final
			}
			t.Run(test.name+"/"+part, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFakeNet(t, func(_ netip.Addr, n int) (time.Duration, error) {
						if n == 0 && test.refused {
							return 30 * ms, errRefused
						}
						return noAnswer, nil
					})
					_, err := outage{part, errNoRoute, 300 * ms, test.to}.dialer(f, test.addrs...).Connect(t.Context(), "vps", 22)
					want := "port 22 did not open within 10s: " + test.want
					if _, ok := errors.AsType[*ClosedError](err); !ok || err.Error() != want {
						t.Errorf("error %v, want a ClosedError: %s", err, want)
					}
					if errors.Is(err, errnosUnreachable[0]) != (test.want == unreachable) {
						t.Errorf("error %#v wraps an outage that has ended, or does not wrap one that lasts", err)
					}
				})
			})
		}
	}
}

// TestErrorIgnoresOutageOfOneFamily: if one family has an outage and the other gets no
// answer, the error says that no answer came.
func TestErrorIgnoresOutageOfOneFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return noAnswer, nil })
		d := f.dialer(v6, v4)
		d.Source = func(to netip.Addr) (netip.Addr, error) {
			if to.Is6() && time.Since(f.start) > 100*ms {
				return netip.Addr{}, errNoRoute
			}
			return netip.Addr{}, nil
		}
		_, err := d.Connect(t.Context(), "vps", 22)
		if err == nil || err.Error() != "port 22 did not open within 10s: no answer" {
			t.Errorf("error %v, want no answer within 10s", err)
		}
	})
}

// TestOutageDoesNotStretchRounds: a refusal that takes 380 ms makes the later pauses
// longer. An outage that takes as long to appear does not.
func TestOutageDoesNotStretchRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rounds := roundStarts(t, meanPauses, 380*ms, errNoRoute)
		if want := []time.Duration{0, 150 * ms, 400 * ms, 900 * ms, 1150 * ms, 1650 * ms}; !slices.Equal(rounds, want) {
			t.Errorf("rounds begin at %v, want %v", rounds, want)
		}
	})
}
