package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Connect knocks as described at [Dialer], and returns the first connection to port on
// host. When Connect returns, all other sockets are closed. Keep-alive probes are on, at
// the system's own intervals.
//
// The errors of Connect are:
//
//   - a [*ResolveError] if no address of host was found;
//   - a [*KnockError] if the knocks could not be sent;
//   - a [*ClosedError] if the port did not open in time;
//   - otherwise the reason why the first address was unreachable at the start, such as a
//     missing route. Connect then returns before its time is up.
//
// If ctx is canceled, Connect returns the error that it would return if its time
// ended then: a ClosedError holds the time so far and the last refusal. The error also
// wraps [context.Canceled].
func (d *Dialer) Connect(ctx context.Context, host string, port uint16) (net.Conn, error) {
	conn, err := d.connect(ctx, host, port)
	if err == nil {
		settle(conn)
	}
	return conn, err
}

// Probe finds out whether the port opens. It does what Connect does, returns the same
// errors, and closes the connection like a loser. On Linux the program behind the port
// never sees a connection that the Dialer has opened itself. On other systems it rarely
// does. The section "What a server's log shows" of [Dialer] says why.
func (d *Dialer) Probe(ctx context.Context, host string, port uint16) error {
	conn, err := d.connect(ctx, host, port)
	if err == nil {
		err = conn.Close()
	}
	return err
}

// connect is Connect without settle. A caller can still close the connection without
// a trace at the server.
func (d *Dialer) connect(parent context.Context, host string, port uint16) (_ net.Conn, err error) {
	defer func() {
		if err != nil && errors.Is(parent.Err(), context.Canceled) {
			err = canceled{err}
		}
	}()
	r := &race{
		dialer: d,
		began:  time.Now(),
		slots:  make(chan struct{}, targetsInRound),
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

	addrs, late, err := d.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	r.trace(Resolved, nil, Event{Addrs: addrs, More: late != nil})
	failure := r.run(ctx, addrs, late, port)

	select {
	case conn := <-r.won:
		if !errors.Is(parent.Err(), context.Canceled) {
			return conn, nil
		}
		conn.Close()
	default:
	}
	switch {
	case ctx.Err() == nil:
		return nil, failure
	case r.unsent != nil && !r.sent:
		return nil, r.unsent
	}
	after := d.Timeout // without the time that a busy machine adds
	if parent.Err() != nil {
		after = time.Since(r.began)
	}
	return nil, newClosedError(port, after, r.refusal)
}

const (
	targetDelay    = 250 * time.Millisecond // RFC 8305, section 5: the connection attempt delay
	targetsInRound = 4
)

// race holds the state of a call of Connect: its targets compete for one connection.
type race struct {
	dialer *Dialer
	began  time.Time
	stop   context.CancelFunc // ends all targets
	slots  chan struct{}      // a target holds a slot during a round; the first to wait gets the first free slot
	tried  chan struct{}      // closed when every target has a slot for round 0, or can have one without waiting
	won    chan net.Conn      // has room for the winner only

	mu      sync.Mutex // guards the fields below, and calls Trace once at a time
	refusal error      // the last refusal; if every target has failed or ends in an outage, the error of the first
	sent    bool       // the knocks of at least one round have left
	unsent  error      // why the knocks of a round could not be sent
}

// run runs the targets until one has connected, ctx is done, or all targets have failed
// for good. Addresses from late become targets too. If the others have failed because of
// this machine, run waits for late, because perhaps this machine has only routes of the
// other family. If the server has refused, run does not wait. When run returns, all targets
// have ended. The error is that of the first target.
func (r *race) run(ctx context.Context, addrs []netip.Addr, late <-chan answer, port uint16) error {
	last := len(addrs) - 1
	if len(addrs) <= targetsInRound {
		last = -1
		close(r.tried)
	}
	var lateErrs []error
	var lateTargets sync.WaitGroup
	refused := make(chan struct{})
	if late != nil {
		lateTargets.Go(func() {
			select {
			case a := <-late:
				if more := interleave(a.addrs, ""); len(more) > 0 {
					r.trace(Resolved, nil, Event{Addrs: more})
					lateErrs = r.runTargets(ctx, more, port, -1)
				}
			case <-refused:
			case <-ctx.Done():
			}
		})
	}
	errs := r.runTargets(ctx, addrs, port, last)
	if IsRefused(errs[0]) {
		close(refused)
	}
	lateTargets.Wait()
	if !slices.Contains(slices.Concat(errs, lateErrs), nil) { // each target has failed, or its last round met an outage
		r.refusal = errs[0]
	}
	return errs[0]
}

// runTargets runs a target for each address, and returns their errors when all have ended.
// The target with the index last is the last to get a slot for round 0.
func (r *race) runTargets(ctx context.Context, addrs []netip.Addr, port uint16, last int) []error {
	var targets sync.WaitGroup
	errs := make([]error, len(addrs))
	failed := make(chan struct{}, len(addrs))
	for i, addr := range addrs {
		if i > 0 {
			select {
			case <-time.After(targetDelay):
			case <-failed:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			break
		}
		targets.Go(func() {
			t := target{race: r, addr: netip.AddrPortFrom(addr, port), last: i == last}
			errs[i] = t.run(ctx)
			failed <- struct{}{}
		})
	}
	targets.Wait()
	return errs
}

// offer makes conn the winner, or closes it if there is a winner already.
func (r *race) offer(conn net.Conn, e Event) {
	select {
	case r.won <- conn:
		r.trace(Connected, nil, e)
		r.stop()
	default:
		conn.Close()
		r.trace(Lost, nil, e)
	}
}

// trace passes e to Dialer.Trace with this kind and this error. It also stores the
// errors from which connect makes its own.
func (r *race) trace(kind Kind, err error, e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case kind == Refused:
		r.refusal = err
	case kind == Knocked && err != nil:
		r.unsent = err
	case kind == Knocked:
		r.sent = true
	}
	if r.dialer.Trace != nil {
		e.Kind, e.Err, e.At = kind, err, time.Since(r.began)
		r.dialer.Trace(e)
	}
}
