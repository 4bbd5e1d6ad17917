package proxy

import (
	"net/netip"
	"time"
)

// Kind is what an [Event] is about, in lower case.
type Kind string

// The kinds of events. Err is set where it says so.
const (
	Resolved    Kind = "resolved"    // the addresses are known, in the order in which they are tried
	Knocked     Kind = "knocked"     // the knocks of a round have left; with Err, they could not be sent
	Dialing     Kind = "dialing"     // a SYN leaves
	Refused     Kind = "refused"     // it was answered, but not by a connection: Err says by what
	Lost        Kind = "lost"        // a socket had no answer in time, or connected after another
	Unreachable Kind = "unreachable" // no route or no local address in a later round: Err says which, and the attempts go on
	Failed      Kind = "failed"      // the attempts on this address are over: Err says why
	Connected   Kind = "connected"   // the connection that Connect returns
)

// Event is one thing that happened on the way to a connection.
type Event struct {
	Kind  Kind
	At    time.Duration  // since Connect was called
	Addrs []netip.Addr   // Resolved only
	From  netip.Addr     // the local address; the zero Addr if the kernel chooses
	To    netip.AddrPort // where the knocks and the SYN go; its port is the one to be opened
	Round int            // from 0, for each address
	Err   error
}
