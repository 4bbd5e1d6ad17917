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

// Connect returns the first connection to port on host, knocking as [Dialer]
// says. When it returns, all other sockets are closed.
//
// The error is a [*ResolveError] if host has no address; a [*KnockError] if the
// knocks could not be sent; a [*ClosedError] if the port did not open in time;
// or else what made the first address unreachable, such as a missing route,
// without waiting for the time to be up.
//
// If ctx is cancelled, Connect returns the error that it would return if its time
// ended then: a ClosedError holds the time so far and the last refusal. The error
// wraps [context.Canceled] too.
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
	if err != nil {
		return nil, orCancelled(parent, err)
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
	case ctx.Err() == nil:
		return nil, failure
	case r.unsent != nil && !r.sent:
		return nil, orCancelled(parent, r.unsent)
	}
	after := time.Since(r.began)
	if parent.Err() == nil {
		after = d.Timeout // and not what a busy machine adds to it
	}
	return nil, orCancelled(parent, &ClosedError{Port: port, After: after, Err: r.refusal})
}

// Addresses returns the addresses of host, at least one, in the order in which
// Connect tries them. The error is a [*ResolveError].
func (d *Dialer) Addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, err := d.resolve(ctx, host)
	if err != nil {
		return nil, &ResolveError{Host: host, Err: err}
	}
	return addrs, nil
}

// resolve is Addresses, but for what the error says.
func (d *Dialer) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	if literal, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{literal}
	} else if d.Resolve != nil {
		if addrs, err = d.Resolve(ctx, host); err != nil {
			return nil, err
		}
	} else if addrs, err = lookUp(ctx, d.Family, host); err != nil {
		return nil, err
	}
	addrs = interleave(addrs, d.Family)
	if len(addrs) == 0 {
		switch d.Family {
		case "ip4":
			return nil, errors.New("no IPv4 address")
		case "ip6":
			return nil, errors.New("no IPv6 address")
		}
		return nil, errors.New("no address")
	}
	return addrs, nil
}

// interleave returns each address of the family once, IPv4 and IPv6 in turn,
// the family of the first address first (RFC 8305, section 4).
func interleave(addrs []netip.Addr, family string) []netip.Addr {
	var first, second []netip.Addr
	seen := make(map[netip.Addr]bool)
	for _, a := range addrs {
		a = a.Unmap()
		if seen[a] || family == "ip4" && !a.Is4() || family == "ip6" && !a.Is6() {
			continue
		}
		seen[a] = true
		if len(first) == 0 || a.Is4() == first[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	merged := make([]netip.Addr, 0, len(seen))
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			merged = append(merged, first[i])
		}
		if i < len(second) {
			merged = append(merged, second[i])
		}
	}
	return merged
}

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
