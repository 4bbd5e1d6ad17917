package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestRoundsMatchDiagram compares the rounds of a target that never answers with the
// diagram in the doc comment of Dialer. The knocks take 1 ms, so that two SYNs never
// leave at the same time.
func TestRoundsMatchDiagram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return noAnswer, nil })
		d := f.dialer(v4)
		d.Timeout = time.Second // Connect ends before round 4
		d.Knock = func(context.Context, netip.Addr, netip.Addr, int) (Sent, error) {
			time.Sleep(ms)
			return Sent{}, nil
		}
		var sent, waited []string
		d.Trace = func(e Event) {
			if e.Kind == Knocked || e.Kind == Dialing {
				sent = append(sent, fmt.Sprintf("%v %v", e.At, e.Kind))
			}
		}
		d.Dial = func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
			began := time.Since(f.start)
			conn, err := f.dial(ctx, from, to)
			f.mu.Lock()
			defer f.mu.Unlock()
			waited = append(waited, fmt.Sprintf("%v to %v", began, time.Since(f.start)))
			return conn, err
		}
		_, _ = d.Connect(t.Context(), "vps", 22)
		wantSent := []string{
			"1ms knocked", "1ms dialing", // S1
			"151ms dialing", "152ms knocked", "152ms dialing", // S2 and S3
			"403ms knocked", "403ms dialing", // S4
			"903ms dialing", "904ms knocked", "904ms dialing", // S5 and S6
		} // the numbers of the SYNs are those of the diagram
		if !slices.Equal(sent, wantSent) {
			t.Errorf("sent %q, want %q", sent, wantSent)
		}
		wantWaited := []string{ // S2, S1 and S3 in this order, then S4 to S6 in any order
			"151ms to 403ms", "1ms to 903ms", "152ms to 904ms", "403ms to 1s", "903ms to 1s", "904ms to 1s",
		}
		slices.Sort(waited[3:])
		if !slices.Equal(waited, wantWaited) {
			t.Errorf("SYNs waited %q, want %q", waited, wantWaited)
		}
	})
}

// rounds returns what the Dialer does until its time is up, if Knock returns sent(n) for round n
// and no SYN gets an answer. It changes d, and removes the address from each line.
func (f *fakeNet) rounds(d *Dialer, sent func(n int) Sent) []string {
	d.Dial = f.dial
	d.Knock = func(ctx context.Context, from, to netip.Addr, n int) (Sent, error) {
		s := sent(n)
		if !s.None {
			time.Sleep(ms) // two SYNs never leave at the same time
			_, _ = f.knock(ctx, from, to, n)
		}
		return s, nil
	}
	_, _ = d.Connect(f.t.Context(), "vps", 22)
	for i := range f.log {
		f.log[i] = strings.Replace(f.log[i], " "+v4.String(), "", 1)
	}
	return f.log
}

// TestRoundsThatOnlyDial: such a round has one SYN, and the next round follows soon. On a path
// whose length is not known, the pauses leave time for a slow answer.
func TestRoundsThatOnlyDial(t *testing.T) {
	some := func(n int) Sent { return Sent{None: n == 1 || n == 2 || n == 4} }
	always := func(int) Sent { return Sent{None: true} } // the client may never have knocks for an address
	for _, tt := range []struct {
		name  string
		hedge time.Duration
		sent  func(n int) Sent
		want  []string
	}{
		{"known path", 60 * ms, some, []string{
			"1ms knock #0", "1ms dial", "61ms dial", "161ms dial", "262ms knock #3", "262ms dial", "512ms dial", "613ms knock #5", "613ms dial",
		}},
		{"unknown path", 0, some, []string{
			"1ms knock #0", "1ms dial", "151ms dial", "521ms dial", "892ms knock #3", "892ms dial",
		}},
		{"never knocks", 60 * ms, always, []string{"0s dial", "60ms dial", "160ms dial", "660ms dial", "910ms dial"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return noAnswer, nil })
			d := f.dialer(v4)
			d.Timeout, d.Hedge = time.Second, tt.hedge
			if got := f.rounds(d, tt.sent); !slices.Equal(got, tt.want) {
				t.Errorf("%s: got\n%q, want\n%q", tt.name, got, tt.want)
			}
			if f.maxLive != 3 {
				t.Errorf("%s: %d sockets were live at once, want 3", tt.name, f.maxLive)
			}
		})
	}
}

// TestOnlySYNOfRoundWaitsLonger: the SYN of a round that only dials is not an early SYN, which
// the Dialer would give up first.
func TestOnlySYNOfRoundWaitsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(_ netip.Addr, n int) (time.Duration, error) {
			if n == 1 { // the SYN of round 1, at 61 ms; the fourth SYN leaves at 262 ms
				return 400 * ms, nil
			}
			return noAnswer, nil
		})
		d := f.dialer(v4)
		d.Timeout, d.Hedge = time.Second, 60*ms
		f.rounds(d, func(n int) Sent { return Sent{None: n == 1 || n == 2} })
		if got := time.Since(f.start); got != 461*ms {
			t.Errorf("connected after %v, want 461ms", got)
		}
	})
}

// TestKnocksLeaveOnceMore: the second pass follows the SYN of its round, without another SYN,
// unless the connection stands by then.
func TestKnocksLeaveOnceMore(t *testing.T) {
	for answer, want := range map[time.Duration][]string{
		noAnswer: {"1ms knock #0", "1ms dial", "16ms again #0", "61ms dial", "62ms knock #1", "62ms dial", "77ms again #1"},
		14 * ms:  {"1ms knock #0", "1ms dial"},
		16 * ms:  {"1ms knock #0", "1ms dial", "16ms again #0"},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return answer, nil })
			d := f.dialer(v4)
			d.Timeout, d.Hedge = 300*ms, 60*ms
			got := f.rounds(d, func(n int) Sent {
				return Sent{Again: func(context.Context) error {
					f.mu.Lock()
					defer f.mu.Unlock()
					f.note("again #%d", n)
					return errors.New("an error has no effect")
				}}
			})
			if !slices.Equal(got, want) {
				t.Errorf("answers after %v: got\n%q, want\n%q", answer, got, want)
			}
		})
	}
}

// TestPausesLastAsLongAsHedge: each pause lasts at least as long as Hedge, and Hedge counts as at
// most a quarter of Timeout.
func TestPausesLastAsLongAsHedge(t *testing.T) {
	for hedge, want := range map[time.Duration][]time.Duration{
		20 * ms:     {0, 20 * ms, 145 * ms, 395 * ms},
		200 * ms:    {0, 200 * ms, 400 * ms, 650 * ms},
		10000 * ms:  {0, 500 * ms, 1000 * ms, 1500 * ms},
		-10000 * ms: {0, 150 * ms, 275 * ms, 525 * ms},
	} {
		synctest.Test(t, func(t *testing.T) {
			got := roundStarts(t, func(d *Dialer) { shortestPauses(d); d.Hedge = hedge }, noAnswer, nil)
			if !slices.Equal(got[:4], want) {
				t.Errorf("Hedge %v: rounds begin at %v, want %v", hedge, got[:4], want)
			}
		})
	}
}

func TestHedgeFollowsRoundTrip(t *testing.T) {
	for roundTrip, want := range map[time.Duration]time.Duration{
		0: 20 * ms, 8 * ms: 20 * ms, 40 * ms: 60 * ms, 600 * ms: 760 * ms, 792 * ms: time.Second, time.Hour: time.Second,
	} {
		if got := Hedge(roundTrip); got != want {
			t.Errorf("Hedge(%v) = %v, want %v", roundTrip, got, want)
		}
	}
}

func TestAtMostThreeLiveDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return noAnswer, nil })
		if _, err := f.dialer(v4).Connect(t.Context(), "vps", 22); err == nil {
			t.Fatal("Connect returned a connection, want an error")
		}
		if f.maxLive != 3 {
			t.Errorf("%d sockets were live at once, want 3", f.maxLive)
		}
		// Rounds 0 to 3 begin at 0, 150, 400 and 900 ms. Rounds 4 to 16 follow in steps of
		// 250, 500 and 500 ms, so that round 16 begins at 6150 ms. The later rounds begin
		// every second, so that there are 20 rounds. Rounds 0 and 2 have one dial, and all
		// other rounds have two.
		if n := f.syns[v4]; n != 38 {
			t.Errorf("%d dials, want 38", n)
		}
	})
}

func TestSecondConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(_ netip.Addr, n int) (time.Duration, error) {
			return 300*ms - time.Duration(n)*150*ms, nil // the first two connections arrive at 300 ms
		})
		conn, err := f.dialer(v4).Connect(t.Context(), "vps", 22)
		if err != nil {
			t.Fatal(err)
		}
		f.wantAllClosed(conn)
	})
}

// TestPausesAreRandom: a pause after round 1 or later lasts 0.5 to 1.5 times as long as its
// mean. Two clients that start at the same moment soon have their rounds at different times.
func TestPausesAreRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shortest := roundStarts(t, shortestPauses, noAnswer, nil)
		if want := []time.Duration{0, 150 * ms, 275 * ms, 525 * ms, 650 * ms, 900 * ms, 1150 * ms}; !slices.Equal(shortest[:7], want) {
			t.Errorf("with the shortest pauses, rounds begin at %v, want %v", shortest[:7], want)
		}
		longest := roundStarts(t, longestPauses, noAnswer, nil)
		if want := []time.Duration{0, 150 * ms, 525 * ms, 1275 * ms, 1650 * ms}; !slices.Equal(longest, want) {
			t.Errorf("with the longest pauses, rounds begin at %v, want %v", longest, want)
		}
		one, other := roundStarts(t, randomPauses, noAnswer, nil), roundStarts(t, randomPauses, noAnswer, nil)
		if one[1] != other[1] || one[2] == other[2] {
			t.Errorf("rounds of two clients begin at %v and %v, want the same times until round 1 only", one, other)
		}
	})
}

// TestRoundsAwaitSlowRefusals: after a refusal that took 380 ms, a pause lasts at least
// 1.5 times as long, so that the answer to its round can arrive. The random part of a pause
// does not make it shorter.
func TestRoundsAwaitSlowRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shortest := roundStarts(t, shortestPauses, 380*ms, errRefused)
		if want := []time.Duration{0, 150 * ms, 275 * ms, 525 * ms, 1095 * ms, 1665 * ms}; !slices.Equal(shortest, want) {
			t.Errorf("with the shortest pauses, rounds begin at %v, want %v", shortest, want)
		}
		rounds := roundStarts(t, meanPauses, 380*ms, errRefused)
		if want := []time.Duration{0, 150 * ms, 400 * ms, 970 * ms, 1540 * ms}; !slices.Equal(rounds, want) {
			t.Errorf("rounds begin at %v, want %v", rounds, want)
		}
	})
}

// TestRoundsAwaitRefusalsForLimitedTime: a pause never lasts longer than 1.5 times 600 ms
// because of a refusal. Windows reports refusals only after two seconds.
func TestRoundsAwaitRefusalsForLimitedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rounds := roundStarts(t, meanPauses, 700*ms, errRefused)
		if want := []time.Duration{0, 150 * ms, 400 * ms, 900 * ms, 1800 * ms}; !slices.Equal(rounds, want) {
			t.Errorf("rounds begin at %v, want %v", rounds, want)
		}
	})
}

func TestPauseBeginsAfterSlowKnocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(_ netip.Addr, n int) (time.Duration, error) {
			if n < 2 {
				return noAnswer, nil
			}
			return 30 * ms, nil
		})
		d := f.dialer(v4)
		d.Knock = func(context.Context, netip.Addr, netip.Addr, int) (Sent, error) {
			time.Sleep(1200 * ms)
			return Sent{}, nil
		}
		if _, err := d.Connect(t.Context(), "vps", 22); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(f.start); took != 2580*ms { // 1200 + 150 + 1200 + 30
			t.Errorf("took %v, want 2.58s", took)
		}
	})
}

// TestCancelledConnectTellsItsProgress: the error of a canceled Connect is the error of
// the step that Connect had reached.
func TestCancelledConnectTellsItsProgress(t *testing.T) {
	silent := func(netip.Addr, int) (time.Duration, error) { return noAnswer, nil }
	for _, test := range []struct {
		name   string
		answer func(netip.Addr, int) (time.Duration, error)
		change func(*Dialer)
		want   any // pointer to a variable of the error's type
		text   string
	}{{
		name: "canceled without an answer", answer: silent,
		want: new(*ClosedError), text: "port 22 did not open within 400ms: no answer",
	}, {
		name: "canceled after a refusal", answer: func(netip.Addr, int) (time.Duration, error) { return 30 * ms, errRefused },
		want: new(*ClosedError), text: "port 22 did not open within 400ms: connection refused",
	}, {
		name: "canceled before the first address is known", answer: silent,
		change: func(d *Dialer) {
			d.Resolve = func(ctx context.Context, _ string) ([]netip.Addr, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		},
		want: new(*ResolveError), text: `cannot resolve "vps": no answer in time`,
	}, {
		name: "canceled before the first knocks have left", answer: silent,
		change: func(d *Dialer) {
			d.Knock = func(context.Context, netip.Addr, netip.Addr, int) (Sent, error) { return Sent{}, errnosTemporary[1] }
		},
		want: new(*KnockError), text: "cannot send the knocks to ",
	}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeNet(t, test.answer)
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(400*ms, cancel)
				d := f.dialer(v6, v4)
				if test.change != nil {
					test.change(d)
				}
				_, err := d.Connect(ctx, "vps", 22)
				if !errors.Is(err, context.Canceled) || !errors.As(err, test.want) || !strings.HasPrefix(err.Error(), test.text) {
					t.Errorf("error %v, want context.Canceled and %T with the text %q", err, test.want, test.text)
				}
				if closed, ok := errors.AsType[*ClosedError](err); ok && closed.After != 400*ms {
					t.Errorf("ClosedError.After is %v, want 400ms", closed.After)
				}
				if took := time.Since(f.start); took != 400*ms {
					t.Errorf("took %v, want 400ms", took)
				}
				f.wantAllClosed(nil)
			})
		})
	}
}

func TestOneSourcePerRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return noAnswer, nil })
		type path struct{ from, to netip.Addr }
		var paths []path // addresses of each knock and each dial, in order
		d := f.dialer(v4)
		d.Timeout = 3 * time.Second
		rounds := 0
		d.Source = func(to netip.Addr) (netip.Addr, error) {
			rounds++
			return netip.AddrFrom4([4]byte{198, 51, 100, byte(rounds)}), nil
		}
		d.Knock = func(_ context.Context, from, to netip.Addr, round int) (Sent, error) {
			if round != rounds-1 {
				t.Errorf("in round %d, Knock got the number %d", rounds-1, round)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			paths = append(paths, path{from, to})
			return Sent{}, nil
		}
		d.Dial = func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
			f.mu.Lock()
			paths = append(paths, path{from, to.Addr()})
			f.mu.Unlock()
			return f.dial(ctx, from, to)
		}
		_, err := d.Connect(t.Context(), "vps", 22)
		if closed, ok := errors.AsType[*ClosedError](err); !ok || closed.After != 3*time.Second {
			t.Errorf("error %v, want a ClosedError after 3s", err)
		}
		// Rounds 0 and 2 consist of a knock and a dial. The seven other rounds consist of
		// a dial, a knock and a dial.
		if len(paths) != 25 {
			t.Fatalf("%d knocks and dials, want 25", len(paths))
		}
		for i, p := range paths {
			round := (i + 1) / 3
			if i > 4 {
				round = (i + 2) / 3
			}
			want := path{netip.AddrFrom4([4]byte{198, 51, 100, byte(round + 1)}), v4}
			if p != want {
				t.Errorf("step %d went from %v to %v, want %v", i, p.from, p.to, want)
			}
		}
	})
}

// TestOnlyTemporaryKnockErrorsAreRetried: a temporary error ends only its round. Any other
// error of the first knocks ends the target.
func TestOnlyTemporaryKnockErrorsAreRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return 0, nil })
		d := f.dialer(v4)
		cause := errors.New("no sequence for this hour")
		d.Knock = func(context.Context, netip.Addr, netip.Addr, int) (Sent, error) { return Sent{}, cause }
		_, err := d.Connect(t.Context(), "vps", 22)
		if e, ok := errors.AsType[*KnockError](err); !ok || e.To != v4 || !errors.Is(err, cause) {
			t.Errorf("error %v, want a KnockError with its address and cause", err)
		}
		if time.Since(f.start) != 0 || len(f.log) != 0 {
			t.Errorf("took %v and did %v, want neither time nor events", time.Since(f.start), f.log)
		}

		// A temporary error is tried again. If it lasts, Connect returns it.
		temporary := os.NewSyscallError("sendto", errnosTemporary[1])
		rounds := 0
		d.Knock = func(context.Context, netip.Addr, netip.Addr, int) (Sent, error) { rounds++; return Sent{}, temporary }
		_, err = d.Connect(t.Context(), "vps", 22)
		if _, ok := errors.AsType[*KnockError](err); !ok || rounds != 20 {
			t.Errorf("temporary error: error %v after %d rounds, want a KnockError after 20", err, rounds)
		}
		rounds = 0
		d.Knock = func(_ context.Context, _, _ netip.Addr, round int) (Sent, error) {
			if round == 0 {
				return Sent{}, temporary
			}
			return Sent{}, nil
		}
		if _, err := d.Connect(t.Context(), "vps", 22); err != nil {
			t.Error(err)
		}
	})
}

func TestErrorIgnoresUnsentKnocksOfOneFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return noAnswer, nil })
		d := f.dialer(v4, v6)
		d.Knock = func(_ context.Context, _, to netip.Addr, _ int) (Sent, error) {
			if to.Is6() {
				return Sent{}, errnosTemporary[1]
			}
			return Sent{}, nil
		}
		_, err := d.Connect(t.Context(), "vps", 22)
		if _, ok := errors.AsType[*ClosedError](err); !ok {
			t.Errorf("error %v, want a ClosedError", err)
		}
	})
}

func TestSourceErrorInRound0IsFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, nil)
		d := f.dialer(v4)
		d.Source = func(netip.Addr) (netip.Addr, error) { return netip.Addr{}, errNoRoute }
		if _, err := d.Connect(t.Context(), "vps", 22); !errors.Is(err, errNoRoute) {
			t.Errorf("error %v, want the error of Source", err)
		}
	})
}

func TestRefusalWithoutKnocksIsFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return 30 * ms, errRefused })
		d := f.dialer(v4)
		d.Knock = nil
		_, err := d.Connect(t.Context(), "vps", 22)
		if took := time.Since(f.start); !errors.Is(err, errRefused) || took != 30*ms {
			t.Errorf("error %v after %v, want the refusal after 30ms", err, took)
		}
	})
}

func TestEventsComeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(_ netip.Addr, n int) (time.Duration, error) {
			switch n {
			case 0:
				return 30 * ms, errRefused
			case 1:
				return noAnswer, nil
			}
			return 30 * ms, nil
		})
		var got []string
		d := f.dialer(v4)
		d.Trace = func(e Event) { got = append(got, fmt.Sprintf("%v %v", e.At, e.Kind)) }
		if err := d.Probe(t.Context(), "vps", 22); err != nil {
			t.Fatal(err)
		}
		f.wantAllClosed(nil) // Probe does not keep a connection
		want := []string{
			"0s resolved", "0s knocked", "0s dialing", "30ms refused", "150ms dialing",
			"150ms knocked", "150ms dialing", "180ms connected", "180ms lost",
		}
		if !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	})
}
