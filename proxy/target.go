package proxy

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// timetable has a row for each round. Its last row is also the row of all later
// rounds. The doc comment of Dialer has a diagram of rounds 0 to 3.
//
// Round 0 may fail because packets came out of order or the server was slow. Round 1
// then opens the port. If it does not, packets are lost or nothing will open the
// port, and the rounds get slower.
var timetable = [...]struct {
	early bool          // an extra SYN leaves before the knocks if the previous round's knocks have left
	pause time.Duration // from the SYN behind the knocks to the next round
}{
	{false, 150 * time.Millisecond}, // Dialer.Hedge replaces this pause
	{true, 250 * time.Millisecond},  // as long as a daemon that polls may need
	{false, 500 * time.Millisecond},
	{true, 500 * time.Millisecond},
	{true, 500 * time.Millisecond},
	{true, 500 * time.Millisecond},
	{true, 500 * time.Millisecond},
	{true, time.Second},
}

const maxLiveDials = 3 // for each target

// target is one address, and the rounds that try to connect to it.
type target struct {
	race    *race
	addr    netip.AddrPort
	last    bool                    // there are more targets than slots, and this is the last target
	knocked bool                    // the knocks of the previous round have left
	fail    context.CancelCauseFunc // ends the target
	dials   sync.WaitGroup

	mu       sync.Mutex    // guards the fields below
	live     []*dial       // the oldest first
	answered time.Duration // how long the last refusal took to come
	begun    bool          // knocks have left; without knocks, round 1 has begun
	outage   error         // why the last round could not leave; nil if it left
}

// dial is one socket that waits for an answer.
type dial struct {
	cancel context.CancelFunc
	ended  chan struct{}
	round  int
	early  bool // the SYN left before the knocks of its round, and another SYN followed at once
}

// run works through the rounds until parent is done or the target has failed. All
// dials have ended then. If the target has failed, run returns why. Otherwise it
// returns the outage that the last round met, or nil.
func (t *target) run(parent context.Context) error {
	var ctx context.Context
	ctx, t.fail = context.WithCancelCause(parent)
	defer t.dials.Wait()
	defer t.fail(nil)
	for n := 0; ; n++ {
		err := t.round(ctx, n)
		switch {
		case err == nil:
			continue
		case parent.Err() != nil:
			t.mu.Lock()
			defer t.mu.Unlock()
			return t.outage
		case ctx.Err() == nil: // a dial that calls fail traces the error itself
			t.race.trace(Event{Kind: Failed, To: t.addr, Round: n, Err: err})
		}
		return err
	}
}

// round waits for a slot, knocks, dials, and pauses. Dials that have no answer by
// the end of the pause live on.
func (t *target) round(ctx context.Context, n int) error {
	if err := t.takeSlot(ctx, n); err != nil {
		return err
	}
	defer func() { <-t.race.slots }()
	plan := timetable[min(n, len(timetable)-1)]
	if n == 0 && t.race.dialer.Hedge > 0 {
		plan.pause = t.race.dialer.Hedge
	}
	if err := t.send(ctx, n, plan.early); err != nil {
		return err
	}
	return sleep(ctx, time.Now().Add(t.atLeastAnAnswer(plan.pause)))
}

// takeSlot waits until the target may begin round n. Round 0 of every target comes
// before round 1 of any target. The targets start in order and queue in order for
// their slots, so all others have had a slot for round 0 when the last target has.
func (t *target) takeSlot(ctx context.Context, n int) error {
	if n > 0 {
		select {
		case <-t.race.tried:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case t.race.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if n == 0 && t.last {
		close(t.race.tried)
	}
	return nil
}

// send is a round without its slot and its pause. It traces an error that only ends
// the round, and returns an error that ends the target.
func (t *target) send(ctx context.Context, n int, early bool) error {
	dialer := t.race.dialer
	early = early && t.knocked
	t.knocked = false
	if dialer.Knock == nil && n > 0 {
		t.roundLeft()
	}
	e := Event{To: t.addr, Round: n}
	if dialer.Source != nil {
		from, err := dialer.Source(t.addr.Addr())
		if err != nil {
			if isHopeless(err) || !t.survives(err) {
				return err
			}
			e.Kind, e.Err = Unreachable, err
			t.race.trace(e)
			return nil
		}
		e.From = from
	}
	if early {
		// The previous knocks may have opened the port after the SYN behind them
		// was dropped. This SYN does not wait until the new knocks have left.
		t.dial(ctx, e, true)
	}
	if dialer.Knock != nil {
		err := dialer.Knock(ctx, e.From, t.addr.Addr(), n)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			e.Err = &KnockError{To: t.addr.Addr(), Err: err}
			switch {
			case isPassing(err):
				e.Kind = Knocked
			case IsNoRoute(err) && t.survives(err):
				e.Kind = Unreachable
			default:
				return e.Err
			}
			t.race.trace(e)
			return nil
		}
		e.Kind = Knocked
		t.race.trace(e)
		t.knocked = true
		t.roundLeft()
	}
	t.dial(ctx, e, false)
	return nil
}

// roundLeft notes that a round has left this machine: an outage is over.
func (t *target) roundLeft() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun, t.outage = true, nil
}

// survives reports whether the target goes on after the outage err, and keeps err
// if it does.
func (t *target) survives(err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun {
		t.outage = err
	}
	return t.begun
}

// atLeastAnAnswer returns pause, or 1.5 times what the last refusal took to come if
// that is longer: the answer to this round's SYN may take as long.
func (t *target) atLeastAnAnswer(pause time.Duration) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(pause, t.answered+t.answered/2)
}

// dial opens one more socket and does not wait for its answer.
func (t *target) dial(ctx context.Context, e Event, early bool) {
	ctx, cancel := context.WithCancel(ctx)
	d := &dial{cancel, make(chan struct{}), e.Round, early}
	t.addLive(d)
	e.Kind = Dialing
	t.race.trace(e)
	t.dials.Go(func() {
		defer cancel()
		connect := t.race.dialer.Dial
		if connect == nil {
			connect = DialTCP
		}
		began := time.Now()
		conn, err := connect(ctx, e.From, t.addr)
		cancelled := ctx.Err() != nil
		t.removeLive(d)
		if err == nil {
			t.race.offer(conn, e)
			return
		}
		e.Err = err
		var final error
		switch {
		case cancelled, isSilence(err):
			e.Kind, e.Err = Lost, nil
		case IsNoRoute(err) && t.survives(err):
			e.Kind = Unreachable
		case isHopeless(err), IsNoRoute(err):
			e.Kind, final = Failed, err
		case t.race.dialer.Knock == nil && isRefusal(err): // nothing will open the port
			e.Kind, final = Failed, &ClosedError{Port: t.addr.Port(), Err: err}
		default:
			e.Kind = Refused
			t.mu.Lock()
			t.answered = time.Since(began)
			t.mu.Unlock()
		}
		t.race.trace(e)
		if final != nil {
			t.fail(final)
		}
	})
}

// addLive adds d to the live dials. Above maxLiveDials it cancels one and waits
// until it has ended: an early dial of a previous round if there is one, else the
// oldest. The others may wait for an answer from afar.
func (t *target) addLive(d *dial) {
	t.mu.Lock()
	t.live = append(t.live, d)
	i := max(0, slices.IndexFunc(t.live, func(o *dial) bool { return o.early && o.round < d.round }))
	worst, full := t.live[i], len(t.live) > maxLiveDials
	t.mu.Unlock()
	if full {
		worst.cancel()
		<-worst.ended
	}
}

// removeLive takes d, which has ended, from the live dials.
func (t *target) removeLive(d *dial) {
	t.mu.Lock()
	t.live = slices.DeleteFunc(t.live, func(o *dial) bool { return o == d })
	t.mu.Unlock()
	close(d.ended)
}

// sleep waits until end, or returns why ctx is done. If ctx has its deadline at end
// or before, sleep waits for the deadline and returns its error.
func sleep(ctx context.Context, end time.Time) error {
	if deadline, ok := ctx.Deadline(); ok && !end.Before(deadline) {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	timer := time.NewTimer(time.Until(end))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
