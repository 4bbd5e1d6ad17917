package proxy

import (
	"net/netip"
	"time"
)

// Kind names what happened in an [Event], in lower case.
type Kind string

// The kinds of events. Err is set only for the kinds that mention it here.
const (
	Resolved    Kind = "resolved"    // the addresses are known; Addrs has the order in which Connect tries them; again if a late answer adds some
	Knocked     Kind = "knocked"     // the knocks of a round have left; if Err is set, a temporary error stopped them
	Dialing     Kind = "dialing"     // a SYN leaves
	Refused     Kind = "refused"     // a dial failed, usually because RST or ICMP answered its SYN: Err says why
	Lost        Kind = "lost"        // a socket got no answer in time, or connected after the winner
	Unreachable Kind = "unreachable" // no route or no local address in a later round: Err says which; the attempts go on
	Failed      Kind = "failed"      // the attempts on this address have ended: Err says why
	Connected   Kind = "connected"   // Connect returns this connection
)

// Event describes a step on the way to a connection.
type Event struct {
	Kind  Kind
	At    time.Duration  // time since Connect was called
	Addrs []netip.Addr   // the addresses of the host, for Resolved only; if it comes again, only the added ones
	More  bool           // one family has not answered yet, and may add addresses later; for Resolved only
	From  netip.Addr     // the local address; the zero Addr if the kernel chooses
	To    netip.AddrPort // the address of the knocks and the SYN, and the port to be opened
	Round int            // the number of the round; 0 is the first round of each address
	Err   error          // the cause, for the kinds that set it; otherwise nil

	// RoundTrip is how long the answer to the SYN took, for Connected only. It is 0 if the
	// Dialer does not know it, for example because the system had to send the SYN again.
	RoundTrip time.Duration
}
