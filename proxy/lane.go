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
	to    netip.AddrPort
	last  bool // of the addresses
	fail  context.CancelCauseFunc
	dials sync.WaitGroup

	mu   sync.Mutex
	live []*socket // the oldest first
}

// socket is a dial under way.
type socket struct {
	giveUp context.CancelFunc
	ended  chan struct{}
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

// round knocks, dials, and dials again until it is time for the next round. The
// sockets that are not answered by then live on.
func (l *lane) round(ctx context.Context, n int) error {
	if err := l.turn(ctx, n); err != nil {
		return err
	}
	defer func() { <-l.slots }()
	next := time.Now().Add(roundEvery)
	e := Event{To: l.to, Round: n}
	var err error
	if l.Source != nil {
		if e.From, err = l.Source(l.to.Addr()); err != nil {
			return err
		}
	}
	if l.Knock != nil {
		err := l.Knock(ctx, e.From, l.to.Addr(), n)
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
		if err != nil {
			return sleep(ctx, next)
		}
	}
	if grace := time.Now().Add(roundGrace); grace.After(next) {
		next = grace
	}
	pause := l.Hedge
	if pause <= 0 {
		pause = hedgeDefault
	}
	for ; ; pause *= 2 {
		l.dial(ctx, e)
		again := time.Now().Add(pause)
		if !again.Before(next) {
			return sleep(ctx, next)
		}
		if err := sleep(ctx, again); err != nil {
			return err
		}
	}
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

// dial opens one more socket and does not wait for its answer.
func (l *lane) dial(ctx context.Context, e Event) {
	ctx, giveUp := context.WithCancel(ctx)
	s := &socket{giveUp, make(chan struct{})}
	l.enter(s)
	e.Kind = Dialing
	l.trace(e)
	l.dials.Go(func() {
		defer giveUp()
		dial := l.Dial
		if dial == nil {
			dial = DialTCP
		}
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
			e.Kind = Refused
			l.trace(e)
		}
	})
}

// enter takes s among the live sockets. If they are too many the oldest is given
// up, and has ended when enter returns.
func (l *lane) enter(s *socket) {
	l.mu.Lock()
	l.live = append(l.live, s)
	oldest := l.live[0]
	full := len(l.live) > socketsLive
	l.mu.Unlock()
	if full {
		oldest.giveUp()
		<-oldest.ended
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
