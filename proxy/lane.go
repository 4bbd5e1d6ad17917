package proxy

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// lane is the attempts on one address.
type lane struct {
	*race
	to      netip.AddrPort
	last    bool // of the addresses
	knocked bool // in the round before
	fail    context.CancelCauseFunc
	dials   sync.WaitGroup

	mu       sync.Mutex
	live     []*socket     // the oldest first
	answered time.Duration // how long the last refusal took to come
	begun    bool          // knocks have left; without knocks, the second round has begun
	outage   error         // what kept the last round from leaving; nil if it left
}

// socket is a dial under way.
type socket struct {
	giveUp context.CancelFunc
	ended  chan struct{}
	round  int
	early  bool // before the knocks of its round: another followed at once
}

// run goes from round to round until parent is done or the lane has failed. All
// its sockets have ended then. It returns why the lane has failed; or else what
// kept the last round from leaving, or nil if it left.
func (l *lane) run(parent context.Context) error {
	var ctx context.Context
	ctx, l.fail = context.WithCancelCause(parent)
	defer l.dials.Wait()
	defer l.fail(nil)
	for n := 0; ; n++ {
		err := l.round(ctx, n)
		switch {
		case err == nil:
			continue
		case parent.Err() != nil:
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.outage
		case ctx.Err() == nil: // or else whoever cancelled it has said so
			l.trace(Event{Kind: Failed, To: l.to, Round: n, Err: err})
		}
		return err
	}
}

// round dials, knocks, dials, and waits for answers. The sockets that have none
// by the time of the next round live on.
func (l *lane) round(ctx context.Context, n int) error {
	if err := l.turn(ctx, n); err != nil {
		return err
	}
	defer func() { <-l.slots }()
	if err := l.attempt(ctx, n); err != nil {
		return err
	}
	return sleep(ctx, time.Now().Add(l.pause(n)))
}

// attempt is a round without its pause. It traces an error that a later round may
// not meet, and returns any other.
func (l *lane) attempt(ctx context.Context, n int) error {
	knocked := l.knocked
	l.knocked = false
	if l.Knock == nil && n > 0 {
		l.hasLeft()
	}
	e := Event{To: l.to, Round: n}
	if l.Source != nil {
		from, err := l.Source(l.to.Addr())
		if err != nil {
			if isHopeless(err) || !l.outlasts(err) {
				return err
			}
			e.Kind, e.Err = Unreachable, err
			l.trace(e)
			return nil
		}
		e.From = from
	}
	if knocked && n != roundSoon {
		// The knocks before may have opened the port after the SYN behind
		// them was dropped: do not wait for these knocks to leave.
		l.dial(ctx, e, true)
	}
	if l.Knock != nil {
		err := l.Knock(ctx, e.From, l.to.Addr(), n)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			e.Err = &KnockError{To: l.to.Addr(), Err: err}
			switch {
			case isPassing(err):
				e.Kind = Knocked
			case isOutage(err) && l.outlasts(err):
				e.Kind = Unreachable
			default:
				return e.Err
			}
			l.trace(e)
			return nil
		}
		e.Kind = Knocked
		l.trace(e)
		l.knocked = true
		l.hasLeft()
	}
	l.dial(ctx, e, false)
	return nil
}

// hasLeft notes that a round has left: there was a route, and an outage is over.
func (l *lane) hasLeft() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun, l.outage = true, nil
}

// outlasts reports whether the lane goes on after an outage, and keeps err if it
// does.
func (l *lane) outlasts(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.begun {
		l.outage = err
	}
	return l.begun
}

// pause returns the time from the SYN of round n to the next round: at first a
// hedge, then longer. Once it is known how long an answer takes, the pause is
// never so short that none could have come.
func (l *lane) pause(n int) time.Duration {
	pause := roundLong
	switch {
	case n == 0 && l.Hedge > 0:
		pause = l.Hedge
	case n == 0:
		pause = hedgeDefault
	case n == roundSoon-1:
		pause = roundPolled
	case n < roundsFast:
		pause = roundShort
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(pause, l.answered+l.answered/2)
}

// turn waits until the lane may begin round n. An address that has not been
// tried goes before one that has; as the lanes start in order, and queue in
// order, the last has then had its first turn.
func (l *lane) turn(ctx context.Context, n int) error {
	if n > 0 {
		select {
		case <-l.tried:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if n == 0 && l.last {
		close(l.tried)
	}
	return nil
}

// dial opens one more socket, before the knocks of its round or behind them, and
// does not wait for its answer.
func (l *lane) dial(ctx context.Context, e Event, early bool) {
	ctx, giveUp := context.WithCancel(ctx)
	s := &socket{giveUp, make(chan struct{}), e.Round, early}
	l.enter(s)
	e.Kind = Dialing
	l.trace(e)
	l.dials.Go(func() {
		defer giveUp()
		dial := l.Dial
		if dial == nil {
			dial = DialTCP
		}
		began := time.Now()
		conn, err := dial(ctx, e.From, l.to)
		over := ctx.Err() != nil
		l.leave(s)
		e.Err = err
		switch {
		case err == nil:
			l.offer(conn, e)
		case over, isSilence(err):
			e.Kind, e.Err = Lost, nil
			l.trace(e)
		case isOutage(err) && l.outlasts(err):
			e.Kind = Unreachable
			l.trace(e)
		case isHopeless(err), isOutage(err):
			e.Kind = Failed
			l.trace(e)
			l.fail(err)
		case l.Knock == nil && isRefusal(err): // nothing will open it
			e.Kind = Failed
			l.trace(e)
			l.fail(&ClosedError{Port: l.to.Port(), Err: err})
		default:
			l.mu.Lock()
			l.answered = time.Since(began)
			l.mu.Unlock()
			e.Kind = Refused
			l.trace(e)
		}
	})
}

// enter takes s among the live sockets. If they are too many one is given up, and
// has ended when enter returns: the oldest, but rather one that another followed
// at once. The others may wait for an answer from afar.
func (l *lane) enter(s *socket) {
	l.mu.Lock()
	l.live = append(l.live, s)
	least := max(0, slices.IndexFunc(l.live, func(o *socket) bool { return o.early && o.round < s.round }))
	worst, full := l.live[least], len(l.live) > socketsLive
	l.mu.Unlock()
	if full {
		worst.giveUp()
		<-worst.ended
	}
}

func (l *lane) leave(s *socket) {
	l.mu.Lock()
	i := slices.Index(l.live, s)
	l.live = slices.Delete(l.live, i, i+1)
	l.mu.Unlock()
	close(s.ended)
}

// sleep waits until t, or returns why ctx is done. It does not return at the
// very deadline of ctx as if there were time left.
func sleep(ctx context.Context, t time.Time) error {
	if deadline, ok := ctx.Deadline(); ok && !t.Before(deadline) {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
