package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Connect returns the first connection to port on host, knocking as [Dialer]
// says. When it returns, all other sockets are closed.
//
// The error is a [*ResolveError] if host has no address; a [*KnockError] if the
// knocks could not be sent; a [*ClosedError] if the port did not open in time;
// one that wraps [context.Canceled] if ctx was cancelled; or else what made the
// first address unreachable, such as a missing route, without waiting for the
// time to be up.
func (d *Dialer) Connect(ctx context.Context, host string, port uint16) (net.Conn, error) {
	conn, err := d.connect(ctx, host, port)
	if err != nil {
		return nil, err
	}
	settle(conn)
	return conn, nil
}

// Probe does what Connect does, with the same errors, and leaves the port as a
// socket that has lost: it finds out whether the port opens, and the program
// behind it does not notice.
func (d *Dialer) Probe(ctx context.Context, host string, port uint16) error {
	conn, err := d.connect(ctx, host, port)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (d *Dialer) connect(parent context.Context, host string, port uint16) (net.Conn, error) {
	r := &race{
		Dialer: d,
		began:  time.Now(),
		slots:  make(chan struct{}, lanesAtATime),
		won:    make(chan net.Conn, 1),
		tried:  make(chan struct{}),
	}
	ctx, stop := context.WithCancel(parent)
	defer stop()
	if d.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.Timeout)
		defer cancel()
	}
	r.stop = stop

	addrs, err := d.Addresses(ctx, host)
	switch {
	case errors.Is(parent.Err(), context.Canceled):
		return nil, interrupted(parent)
	case err != nil:
		return nil, err
	}
	r.trace(Event{Kind: Resolved, Addrs: addrs})
	failure := r.run(ctx, addrs, port)

	select {
	case conn := <-r.won:
		if !errors.Is(parent.Err(), context.Canceled) {
			return conn, nil
		}
		conn.Close()
	default:
	}
	switch {
	case errors.Is(parent.Err(), context.Canceled):
		return nil, interrupted(parent)
	case ctx.Err() == nil:
		return nil, failure
	case r.unsent != nil && !r.sent:
		return nil, r.unsent
	}
	after := time.Since(r.began)
	if parent.Err() == nil {
		after = d.Timeout // and not what a busy machine adds to it
	}
	return nil, &ClosedError{Port: port, After: after, Err: r.refusal}
}

func interrupted(ctx context.Context) error { return fmt.Errorf("interrupted: %w", ctx.Err()) }

// race is one call of Connect: lanes that run for one connection.
type race struct {
	*Dialer
	began time.Time
	stop  context.CancelFunc
	slots chan struct{} // held by a lane for a round; the first to wait is the first to get one
	won   chan net.Conn // has room for the winner only
	tried chan struct{} // closed when each lane has had its first turn, or has room for it

	mu      sync.Mutex // guards what follows, and has Trace called once at a time
	refusal error      // the last one; at the end, what keeps every lane from leaving
	sent    bool       // the knocks of one round at least
	unsent  error      // why knocks could not be sent
}

// run returns when there is a winner, when ctx is done, or when all lanes have
// failed for good: then with the error of the first. Nothing of it is left.
func (r *race) run(ctx context.Context, addrs []netip.Addr, port uint16) error {
	var lanes sync.WaitGroup
	errs := make([]error, len(addrs))
	failed := make(chan struct{}, len(addrs))
	crowded := len(addrs) > lanesAtATime
	if !crowded {
		close(r.tried)
	}
	for i, addr := range addrs {
		if i > 0 {
			select {
			case <-time.After(laneDelay):
			case <-failed:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			break
		}
		last := crowded && i == len(addrs)-1
		lanes.Go(func() {
			l := lane{race: r, to: netip.AddrPortFrom(addr, port), last: last}
			errs[i] = l.run(ctx)
			failed <- struct{}{}
		})
	}
	lanes.Wait()
	if !slices.Contains(errs, nil) { // no address can be reached at the end
		r.refusal = errs[0]
	}
	return errs[0]
}

// offer makes conn the winner, or closes it if there is one already.
func (r *race) offer(conn net.Conn, e Event) {
	select {
	case r.won <- conn:
		e.Kind = Connected
		r.trace(e)
		r.stop()
	default:
		conn.Close()
		e.Kind = Lost
		r.trace(e)
	}
}

// trace passes on what happened and keeps what Connect's error will be made of.
func (r *race) trace(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Kind {
	case Refused:
		r.refusal = e.Err
	case Knocked:
		if e.Err != nil {
			r.unsent = e.Err
		} else {
			r.sent = true
		}
	}
	if r.Trace != nil {
		e.At = time.Since(r.began)
		r.Trace(e)
	}
}
