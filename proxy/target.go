package proxy

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// AgainAfter is the time from the SYN of a round to the second pass of its knocks. Most bursts of
// losses are shorter. On a path without losses and with a round trip below AgainAfter, the
// connection stands before.
const AgainAfter = 15 * time.Millisecond

// pauseAfter returns the mean time from the SYN behind the knocks of round n to round n+1.
// The doc comment of Dialer has a diagram of rounds 0 to 3, and the reasons. The last redials
// rounds only dialed.
//
// Round 0 may fail because packets came out of order or the server was slow. Round 1
// then opens the port. If round 1 fails too, packets are lost or the port will never
// open. The later rounds are therefore slower. Rounds 3, 6 and so on are the fast rounds of
// knock.Client. They fail if the path reorders packets, so the next round follows soon.
func (d *Dialer) pauseAfter(n, redials int) time.Duration {
	switch {
	case n == 0 && d.Hedge > 0:
		return d.hedge()
	case n == 0:
		return 150 * time.Millisecond
	case redials == 1, redials == 2:
		return 100 * time.Millisecond
	case n >= 16:
		return time.Second
	case n == 1, n%3 == 0:
		return 250 * time.Millisecond
	}
	return 500 * time.Millisecond
}

// hedge returns Hedge, but at most a quarter of Timeout, so that several rounds fit into
// Timeout. It returns 0 if Hedge is not given.
func (d *Dialer) hedge() time.Duration {
	if d.Timeout > 0 {
		return max(0, min(d.Hedge, d.Timeout/4))
	}
	return max(0, d.Hedge)
}

// randomN returns a random duration from 0 up to, but not including, n.
func (d *Dialer) randomN(n time.Duration) time.Duration {
	if d.random != nil {
		return d.random(n)
	}
	return rand.N(n)
}

const (
	maxLiveDials = 3 // limit of live dials for each target

	// maxRefusalDelay is about the round trip over a satellite. A refusal that takes longer
	// says nothing about the path: Windows repeats a refused SYN for two seconds before it
	// reports the refusal.
	maxRefusalDelay = 600 * time.Millisecond
)

// target holds an address of the host and the state of the rounds that dial it.
type target struct {
	race    *race
	addr    netip.AddrPort
	last    bool                    // there are more targets than slots, and this is the last target
	knocked bool                    // the knocks of the previous round have left
	redials int                     // number of rounds in a row that only dialed, up to the last round
	patient bool                    // a round has only dialed: knocks that are sent again too soon do harm
	cancel  context.CancelCauseFunc // ends the target
	dials   sync.WaitGroup

	mu           sync.Mutex    // guards the fields below
	live         []*dial       // the live dials, the oldest first
	refusalDelay time.Duration // how long the last refusal took to come
	begun        bool          // knocks have left; without knocks, round 1 has begun
	outage       error         // why the last round could not leave; nil if it left
}

// dial holds a socket that waits for an answer.
type dial struct {
	cancel context.CancelFunc
	ended  chan struct{}
	round  int
	early  bool // the SYN left before the knocks of its round; another SYN followed the knocks
}

// run works through the rounds until parent is done or the target has failed. When run
// returns, all dials have ended. If the target has failed, run returns why. Otherwise it
// returns the outage that the last round met, or nil.
func (t *target) run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	t.cancel = cancel
	defer t.dials.Wait()
	defer cancel(nil)
	for n := 0; ctx.Err() == nil; n++ {
		t.round(ctx, n)
	}
	if parent.Err() == nil {
		return context.Cause(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.outage
}

// fail ends the target because of err.
func (t *target) fail(err error, e Event) {
	t.race.trace(Failed, err, e)
	t.cancel(err)
}

// round waits for a slot, knocks, dials, and pauses. Dials without an answer at the end
// of the pause stay live.
func (t *target) round(ctx context.Context, n int) {
	if !t.takeSlot(ctx, n) {
		return
	}
	defer func() { <-t.race.slots }()
	sent := t.send(ctx, n)
	left := time.Now()
	if sent.Again != nil {
		sleep(ctx, left.Add(AgainAfter))
		if ctx.Err() == nil {
			_ = sent.Again(ctx) // an error does not matter: the knocks have left once
		}
	}
	if sent.None {
		t.redials, t.patient = t.redials+1, true
	} else {
		t.redials = 0
	}
	least := t.leastPause()
	pause := max(t.race.dialer.pauseAfter(n, t.redials), least)
	if n > 0 {
		pause = max(pause/2+t.race.dialer.randomN(pause), least)
	}
	if t.patient && t.race.dialer.hedge() == 0 && n < 8 {
		pause = max(least, unknownAnswer+t.race.dialer.randomN(40*time.Millisecond))
	}
	sleep(ctx, left.Add(pause))
}

// unknownAnswer is how long an answer may take on a path whose length is not known, if knocks
// that are sent again too soon do harm. Few paths are longer.
const unknownAnswer = 350 * time.Millisecond

// leastPause returns the least pause after a round: the next answer may take as long as the
// last refusal, or as long as Hedge says.
func (t *target) leastPause() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(t.refusalDelay*3/2, t.race.dialer.hedge())
}

// takeSlot waits until the target may begin round n. It returns false if ctx is done
// first. Round 0 of every target comes before round 1 of any target. The targets start
// in order and get their slots in order. When the last target has a slot for round 0,
// all others have therefore had theirs.
func (t *target) takeSlot(ctx context.Context, n int) bool {
	if n > 0 {
		select {
		case <-t.race.tried:
		case <-ctx.Done():
			return false
		}
	}
	select {
	case t.race.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	if n == 0 && t.last {
		close(t.race.tried)
	}
	return true
}

// send knocks and dials for round n, and returns what Knock has sent. Every round except 0
// and 2 starts with an early SYN if the knocks of the previous round have left.
func (t *target) send(ctx context.Context, n int) (sent Sent) {
	dialer := t.race.dialer
	early := t.knocked && n != 2
	t.knocked = false
	if dialer.Knock == nil && n > 0 {
		t.roundLeft()
	}
	e := Event{To: t.addr, Round: n}
	if dialer.Source != nil {
		from, err := dialer.Source(t.addr.Addr())
		switch {
		case err == nil:
			e.From = from
		case !isPermanent(err) && t.survives(err):
			t.race.trace(Unreachable, err, e)
			return Sent{}
		default:
			t.fail(err, e)
			return Sent{}
		}
	}
	var first *dial
	if early {
		// The knocks of round n-1 may have opened the port just after the SYN behind
		// them was dropped. An early SYN finds that out before the knocks of round n
		// have left.
		first = t.dial(ctx, e, true)
	}
	if dialer.Knock != nil {
		var err error
		sent, err = dialer.Knock(ctx, e.From, t.addr.Addr(), n)
		if ctx.Err() != nil {
			return Sent{}
		}
		if err != nil {
			failure := &KnockError{To: t.addr.Addr(), Err: err}
			switch {
			case isTemporary(err):
				t.race.trace(Knocked, failure, e)
			case IsNoRoute(err) && t.survives(err):
				t.race.trace(Unreachable, failure, e)
			default:
				t.fail(failure, e)
			}
			return Sent{}
		}
		t.roundLeft()
		if !sent.None {
			t.race.trace(Knocked, nil, e)
			t.knocked = true
		} else if first != nil {
			t.keep(first)
			return sent
		}
	}
	t.dial(ctx, e, false)
	return sent
}

// roundLeft notes that a round has left this machine, so that an outage has ended.
func (t *target) roundLeft() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun, t.outage = true, nil
}

// survives reports whether the target goes on after the outage err. If it does,
// survives keeps err.
func (t *target) survives(err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.begun {
		t.outage = err
	}
	return t.begun
}

// dial opens one more socket and does not wait for its answer.
func (t *target) dial(ctx context.Context, e Event, early bool) *dial {
	ctx, cancel := context.WithCancel(ctx)
	d := &dial{cancel, make(chan struct{}), e.Round, early}
	t.addLive(d)
	t.race.trace(Dialing, nil, e)
	t.dials.Go(func() {
		defer cancel()
		connect := t.race.dialer.Dial
		if connect == nil {
			connect = dialTCP
		}
		began := time.Now()
		conn, err := connect(ctx, e.From, t.addr)
		canceled := ctx.Err() != nil
		t.removeLive(d)
		switch {
		case err == nil:
			if tcp, ok := conn.(*net.TCPConn); ok {
				e.RoundTrip = roundTrip(tcp, time.Since(began))
			}
			t.race.offer(conn, e)
		case canceled, isSilence(err):
			t.race.trace(Lost, nil, e)
		case IsNoRoute(err) && t.survives(err):
			t.race.trace(Unreachable, err, e)
		case isPermanent(err), IsNoRoute(err):
			t.fail(err, e)
		// Without knocks nothing opens the port, so the refusal is final.
		case t.race.dialer.Knock == nil && IsRefused(err):
			t.fail(newClosedError(t.addr.Port(), 0, err), e)
		default:
			t.mu.Lock()
			t.refusalDelay = min(time.Since(began), maxRefusalDelay)
			t.mu.Unlock()
			t.race.trace(Refused, err, e)
		}
	})
	return d
}

// keep makes an early dial a usual one, because no other SYN follows in its round.
func (t *target) keep(d *dial) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d.early = false
}

// addLive adds d to the live dials. Above maxLiveDials it cancels one dial and waits
// until that dial has ended. It cancels an early dial of a previous round. If no such
// dial is live, it cancels the oldest. The others may still wait for a distant server.
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

// sleep waits until end or until ctx is done. If the deadline of ctx is not after end,
// sleep waits until ctx is done, and not for a timer that may fire first.
func sleep(ctx context.Context, end time.Time) {
	if deadline, ok := ctx.Deadline(); ok && !end.Before(deadline) {
		<-ctx.Done()
		return
	}
	select {
	case <-time.After(time.Until(end)):
	case <-ctx.Done():
	}
}
