// Package proxy reaches a port that opens to a knock, and joins the connection
// to a pair of streams.
//
// A [Dialer] resolves a name, knocks, and connects, again and again until the
// port has opened or its time is up. [Splice] then does what netcat does as an
// ssh ProxyCommand, and [ReaderGone] says when there is nobody left to do it
// for; or [PassFD] hands the connection itself over. What a knock is, the package
// does not know: it is a function that the caller hands in.
package proxy

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// Dialer resolves, knocks and connects. The zero Dialer connects without
// knocking and without a time limit. A Dialer is not changed by its use and may
// be used by several goroutines at once.
//
// # What it does
//
// The name is resolved once. Its addresses, the families taking turns, become
// lanes that start 250 ms apart, or at once when a lane has failed for good
// (RFC 8305, sections 4 and 5). A lane works in rounds: the knocks, and a SYN at
// once. The second round begins after Hedge, the third a quarter of a second
// later, further ones half a second, from the eighth on a second. Each but the
// third, which comes soon, begins with a SYN from another socket, for servers
// that changed their rules only after the SYN before was dropped; the kernel
// would repeat that one after a full second. Then come the knocks anew, and a SYN
// behind them. A refusal means "not yet", and tells how long an answer takes: no
// round is shorter from then on. At most three sockets of a lane wait at once. One
// that another followed at once gives way to a fourth, or else the oldest. The
// first connection wins, and everything else has ended when Connect returns.
//
// An error of this machine's routes or addresses ends a lane at once if it comes
// before the first knocks have left, or, without knocks, before the second round.
// Later it means "not yet": the link may be back a second later. The round ends,
// sockets that wait go on waiting, and the next round begins after its pause. Only
// what time never mends is final in every round, such as a local firewall.
//
// Four lanes are in a round at once. A name with more addresses has them take
// turns, round by round, in order: each is tried, whatever the others do, and
// the knocks of one second stay as few as four servers deserve.
//
// # What a server's log shows
//
// A connection that comes second is a stranger to sshd: one that connects and
// leaves. [DialTCP] has it leave by RST, never by FIN. On Linux it also holds
// back the last ACK of the handshake until the connection has been chosen, so
// that no loser ever reaches accept(2): sshd logs nothing and counts nothing.
// On other systems sshd sees nothing if the RST comes with the handshake, which
// is the rule. At worst, with an RST that is delayed, each of at most two losers
// per address leaves a line "Connection reset by peer" and, with OpenSSH 9.8 or
// later, one second of PerSourcePenalties' noauth, of which fifteen are needed
// before anything is refused. MaxStartups (10:30:100) sees at most three
// connections from one address, the winner among them.
type Dialer struct {
	// Family is "ip4", "ip6", or "ip" or "" for both.
	Family string

	// Resolve returns the addresses of a host, the preferred one first. It is
	// not asked about a literal address. If nil, [net.DefaultResolver] answers.
	// If that resolver gets an answer for one family only, Connect uses the answer
	// after 0.35 s. It does so for names with a final dot, and for names with the
	// dots that make a resolver try them before any search domain.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)

	// Source returns the local address for the knocks and dials of one round.
	// If it is nil, or the address is the zero Addr, the kernel chooses. An
	// error ends the attempts on that address. After the first knocks have left,
	// an error ends only its round, unless time never mends it, such as EACCES.
	Source func(to netip.Addr) (netip.Addr, error)

	// Knock sends the knocks of a round, counted from 0 for each address, and
	// returns when they have left. An error ends the attempts on that address. Two
	// kinds of errors end only the round: those that pass, such as ENOBUFS, and,
	// after the first knocks have left, a missing route or source address. ICMP
	// messages about earlier knocks are not errors: those ports are meant to look
	// closed.
	//
	// If Knock is nil nothing is sent, and as nothing then opens the port a
	// refusal is final too.
	Knock func(ctx context.Context, from, to netip.Addr, round int) error

	// Dial opens one connection. It must end as soon as ctx does. If nil,
	// [DialTCP] is used.
	Dial func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error)

	// Timeout is the time from the start to the connection, resolution and all
	// rounds together. If it is not positive, only the context ends the search.
	Timeout time.Duration

	// Hedge is the time from the first SYN to the second round. If it is not
	// positive, it is 150 ms.
	Hedge time.Duration

	// Trace, if not nil, is told what happens, one event at a time. It must not
	// block: the attempts wait for it.
	Trace func(Event)
}

const (
	laneDelay    = 250 * time.Millisecond // RFC 8305, section 5: the connection attempt delay
	lanesAtATime = 4

	// From the SYN of a round to the next round. The first round may fail
	// because packets came out of order or the server was slow; then the second
	// opens. Further ones mean that packets are lost, or that nothing will
	// open it.
	hedgeDefault = 150 * time.Millisecond // the first
	roundPolled  = 250 * time.Millisecond // the one before roundSoon: a daemon that polls may need as long
	roundSoon    = 2
	roundShort   = 500 * time.Millisecond
	roundsFast   = 7 // so many until the pauses get long
	roundLong    = time.Second

	socketsLive = 3
)
