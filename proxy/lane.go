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
}

// socket is a dial under way.
type socket struct {
	giveUp context.CancelFunc
	ended  chan struct{}
	round  int
	early  bool // before the knocks of its round: another followed at once
}

// run goes from round to round until ctx is done or the lane has failed, and
// returns why. All its sockets have ended then.
func (l *lane) run(ctx context.Context) error {
	ctx, l.fail = context.WithCancelCause(ctx)
	defer l.dials.Wait()
	defer l.fail(nil)
	for n := 0; ; n++ {
		err := l.round(ctx, n)
		if err == nil {
			continue
		}
		if ctx.Err() == nil { // or else whoever cancelled it has said so
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
	e := Event{To: l.to, Round: n}
	var err error
	if l.Source != nil {
		if e.From, err = l.Source(l.to.Addr()); err != nil {
			return err
		}
	}
	if l.knocked && n != roundSoon {
		// The knocks before may have opened the port after the SYN behind
		// them was dropped: do not wait for these knocks to leave.
		l.dial(ctx, e, true)
	}
	if l.Knock != nil {
		err = l.Knock(ctx, e.From, l.to.Addr(), n)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			err = &KnockError{To: l.to.Addr(), Err: err}
			if !isPassing(err) {
				return err
			}
		}
		e.Kind, e.Err = Knocked, err
		l.trace(e)
		l.knocked = err == nil
	}
	if err == nil {
		l.dial(ctx, e, false)
	}
	return sleep(ctx, time.Now().Add(l.pause(n)))
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
		case isHopeless(err):
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
