package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
)

// ResolveError is the error of Connect and Addresses if no address of a host was found.
type ResolveError struct {
	Host string
	Err  error

	// NoServer reports whether the lookup failed because /etc/resolv.conf is missing or
	// names no name server, as on Android.
	NoServer bool
}

func (e *ResolveError) Error() string {
	return fmt.Sprintf("cannot resolve %q: %s", e.Host, plain(e.Err))
}

func (e *ResolveError) Unwrap() error { return e.Err }

// KnockError is the error of Connect if knocks could not be sent.
type KnockError struct {
	To  netip.Addr
	Err error
}

func (e *KnockError) Error() string {
	return fmt.Sprintf("cannot send the knocks to %v: %s", e.To, plain(e.Err))
}

func (e *KnockError) Unwrap() error { return e.Err }

// ClosedError is the error of Connect if the port did not open in time, or did not open
// before ctx was canceled.
type ClosedError struct {
	Port uint16

	// After is how long Connect tried. It is 0 if a refusal was final, because no knocks
	// are sent.
	After time.Duration

	// Err is the last refusal, or nil if no answer came. If on every address the last
	// round met an outage, or the attempts had failed for good, Err is the error of the
	// first address.
	Err error

	// Refused reports whether the last answer was a RST, or the ICMP message with the
	// same meaning. A host sends it if no program listens on the port. A firewall may
	// send it too.
	Refused bool

	// Rejected reports whether the last answer was another ICMP message: a router or
	// a firewall on the way has rejected the connection. Rejected is also true if no
	// machine in the local network has the address.
	Rejected bool
}

// newClosedError returns a ClosedError for the last answer err, which is nil if no
// answer came.
func newClosedError(port uint16, after time.Duration, err error) *ClosedError {
	return &ClosedError{Port: port, After: after, Err: err, Refused: IsRefused(err), Rejected: IsRejected(err)}
}

func (e *ClosedError) Error() string {
	why := "no answer"
	switch {
	case e.Rejected:
		why = fmt.Sprintf("rejected on the way (%s)", plain(e.Err))
	case e.Refused:
		why = "connection refused"
	case e.Err != nil:
		why = plain(e.Err)
	}
	within := ""
	if e.After > 0 {
		within = fmt.Sprintf(" within %v", e.After.Round(10*time.Millisecond))
	}
	return fmt.Sprintf("port %d did not open%s: %s", e.Port, within, why)
}

func (e *ClosedError) Unwrap() error { return e.Err }

// canceled is an error that Connect returns because ctx was canceled.
type canceled struct{ error }

func (c canceled) Unwrap() []error { return []error{c.error, context.Canceled} }

// IsNoRoute reports whether an error means that this machine has no route to the
// address, or no local address to send from. A Dialer calls this an outage.
func IsNoRoute(err error) bool { return isOneOf(err, errnosNoRoute) }

// plain returns the text of a network error without the parts that the message around
// it contains already.
func plain(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return "no answer in time"
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.Err
	}
	if call, ok := errors.AsType[*os.SyscallError](err); ok {
		return call.Err.Error()
	}
	return err.Error()
}

// IsRefused reports whether RST, or the ICMP message with the same meaning, answered a
// dial.
func IsRefused(err error) bool { return isOneOf(err, errnosRefused) }

// isSilence reports whether a dial ended because no answer came. Package net ends a
// dial at the deadline of its context, a moment before the context is done.
func isSilence(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// isPermanent reports whether a dial failed for a reason that waiting does not change,
// such as a local firewall.
func isPermanent(err error) bool {
	_, mismatch := errors.AsType[*net.AddrError](err) // from and to are of two families
	return mismatch || isOneOf(err, errnosPermanent)
}

// isTemporary reports whether knocks that failed with err may succeed a second
// later.
func isTemporary(err error) bool {
	return isOneOf(err, errnosTemporary) || errors.Is(err, os.ErrDeadlineExceeded)
}

// rejection wraps an error that a router or firewall on the way has caused by ICMP.
// The error looks as if this machine had no route. A rejection means "not yet", as RST
// does: firewalld rejects closed ports by ICMP.
type rejection struct{ error }

func (r *rejection) Unwrap() error { return r.error }

// IsRejected reports whether another ICMP message answered a dial: a router or a firewall on
// the way has rejected the connection. Only the errors of events and of a [ClosedError] are
// rejections.
func IsRejected(err error) bool {
	_, ok := errors.AsType[*rejection](err)
	return ok
}

// isOneOf reports whether err contains one of errnos and is not a rejection. The errno
// of a rejection comes from another machine.
func isOneOf(err error, errnos []syscall.Errno) bool {
	is := func(errno syscall.Errno) bool { return errors.Is(err, errno) }
	return !IsRejected(err) && slices.ContainsFunc(errnos, is)
}
