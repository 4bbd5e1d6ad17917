// Package proxy connects to a port that a server opens after knocks, and joins the
// connection to a pair of streams.
//
// A [Dialer] resolves a name. It then knocks and connects, again and again, until the
// port has opened or its time is up. The connection can be used in two ways:
//
//   - [Splice] copies between the connection and a pair of streams, as netcat does as an
//     ssh ProxyCommand. [ReaderGone] reports when nobody reads the output any more.
//   - [PassFD] hands the connection itself over to another program.
//
// The package does not know what a knock is: the caller provides a function that knocks.
// With package knock, Dialer.Knock takes a round from a knock.Picker, and sends it by a
// knock.Sender whose From is the address from. Dialer.Source is then knock.Source, so that
// the knocks and the SYNs have the same source. The example of this package shows both.
package proxy

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// Dialer resolves a name, knocks and connects. The zero Dialer connects without
// knocking and without a time limit. Several goroutines may use a Dialer at once: its
// methods do not change it.
//
// # Targets
//
// A Dialer resolves the name once. Each address is a target. IPv4 and IPv6 targets
// alternate. A target starts 250 ms after the previous one, or at once when a
// target has failed for good (RFC 8305, sections 4 and 5). The first connection
// wins. Everything else has ended when Connect returns.
//
// At most four targets are in a round at the same time. The targets of a name with
// more addresses take turns, round by round and in order. The Dialer thus tries
// every address, and sends no more knocks per second than to four addresses.
//
// # Rounds
//
// A target works in rounds. A round sends the knocks, and a SYN right behind them.
// The diagram shows rounds 0 to 3 of a target that never answers. S1 to S6 are the
// SYNs. Each has a socket of its own, which waits for an answer until the Dialer
// gives it up (x). "live" counts the sockets that wait after a round's last SYN.
//
//	time    0 ms        150 ms         400 ms      900 ms
//	round   0           1              2           3
//	sent    knocks S1   S2 knocks S3   knocks S4   S5 knocks S6
//	live    1           3              3           3
//	S1             --------------------------------x
//	S2                  ----------------------x
//	S3                            ---------------------------x
//	S4                                        -------------------->
//	S5                                             --------------->
//	S6                                                       ----->
//
// The pause between two rounds begins with the SYN behind the knocks. After round 0 it is
// Hedge: the answer to the SYN is then overdue. If Hedge is not given, it is 150 ms. The mean
// pause after a later round is that of the first line which fits:
//
//	100 ms  after a round that only dials, and after a second one in a row
//	250 ms  after rounds 1, 3, 6, 9, 12 and 15: a daemon that polls may need this long
//	500 ms  after the other rounds up to 14: more packets are lost, or nothing opens the port
//	1 s     after round 16 and every later round
//
// The diagram shows the mean pauses without Hedge. The pauses after round 1 and later are
// random: each lasts 0.5 to 1.5 times as long as its mean. Two clients of one address that
// start at the same moment may send knocks of different profiles. The knocks of each client
// are then wrong knocks for the other one. If all pauses were fixed, the two clients would
// undo each other's knocks in every round.
//
// Every pause has a lower limit, because the next knocks should not leave while an answer is on
// its way. The limit is the largest of these times:
//
//   - 1.5 times as long as the last refusal took to come. A refusal means "not yet".
//   - Hedge, or a quarter of Timeout if that is less: several rounds must fit into Timeout.
//   - 350 to 390 ms, if Hedge is not given and a round has only dialed. The caller then takes
//     care not to send knocks again too soon. Up to round 7, the pause is not longer either.
//
// Every round except 0 and 2 starts with an early SYN, before the knocks, from a socket
// of its own: S2 and S5. Some servers, such as knockd and fwknopd, may open the port
// only after the SYN behind the knocks was dropped. The kernel would repeat that SYN
// after a full second. An early SYN finds such a port open sooner, because it does not
// wait until the new knocks have left. Round 2 has no early SYN, because it follows only
// 250 ms after round 1. An early SYN in round 2 would also make the Dialer give up S1 at
// 400 ms, and an answer to S1 that takes longer, such as 600 ms, would be lost. A round also
// has no early SYN if the round before has not sent knocks, or if Knock is nil.
//
// Knock can leave out the knocks of a round ([Sent]). Such a round has only one SYN.
//
// Knock can also ask to send the knocks of a round once more, 15 ms after the SYN (AgainAfter).
// A path such as a radio link may lose all packets for some milliseconds. One copy of each
// knock then still arrives. No other SYN follows: the SYN of the next round comes soon, and
// some firewalls refuse an address that sends many SYNs.
//
// At most three sockets of a target wait at the same time. Before a fourth SYN leaves,
// the Dialer gives up the socket of an early SYN of a previous round. If no such socket
// waits, the Dialer gives up the oldest socket.
//
// # Outages
//
// An outage is an error of this machine's routes or addresses, as [IsNoRoute] reports
// it. Every error of Source also counts as an outage, unless it is permanent. An outage
// ends a target at once if it comes before the first knocks have left. Without knocks,
// it ends a target at once if it comes before round 1.
//
// A later outage means "not yet": the link may be back a second later. The outage
// ends its round. Sockets that wait go on waiting, and the next round begins after
// the usual pause.
//
// Other errors of this machine do not depend on the round. A temporary error of Knock,
// such as ENOBUFS, always ends only its round. Any other error of Knock that is not an
// outage ends the target. So does a permanent error of Source or of a dial, such as
// EACCES or the error of a local firewall.
//
// # What a server's log shows
//
// A loser is a connection that comes after the winner. For sshd a loser would be a
// client that connects and leaves. The Dialer closes losers by RST, never by FIN.
// On Linux it also holds back the last ACK of the handshake until Connect has
// chosen the connection. No loser then reaches accept(2): sshd logs nothing and
// counts nothing.
//
// On other systems the RST usually comes with the handshake, and sshd sees nothing.
// At worst the RST is delayed. Each loser, at most two per address, then leaves a
// line "Connection reset by peer". With OpenSSH 9.8 or later it also leaves one
// second of PerSourcePenalties' noauth. sshd refuses connections only after fifteen
// such seconds. For each address of the server, at most three connections of one Connect
// can count towards sshd's MaxStartups (10:30:100), including the winner.
type Dialer struct {
	// Family is "ip4", "ip6", or "ip" or "" for both.
	Family string

	// Resolve returns the addresses of a host, the preferred address first. It is
	// not called for a literal address. If Resolve is nil, [net.DefaultResolver] is
	// used. If that resolver gets an answer for one family only, Connect uses this
	// answer, at the earliest 0.35 s after the start of the lookup. The addresses of a
	// later answer for the other family become targets too. Connect does so for
	// names with a final dot, and for names with enough dots that a resolver tries them
	// before any search domain. For other names, Connect waits for the answers for both
	// families. If the resolver does not know the name, Connect runs /usr/bin/getent.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)

	// Source returns the local address for the knocks and dials of one round.
	// If Source is nil, or the address is the zero Addr, the kernel chooses. The
	// section Outages says whether an error ends the attempts on the destination, or
	// only its round.
	Source func(to netip.Addr) (netip.Addr, error)

	// Knock sends the knocks of a round to the destination, and returns when they have
	// left. The first round of each destination has the number 0. The section Outages
	// says whether an error ends the attempts on the destination, or only its round.
	// Knock must ignore ICMP messages that answer earlier knocks, and must not return
	// them as errors: the ports of the knocks are meant to look closed. The result tells
	// what the Dialer does next in the round.
	//
	// If Knock is nil, no knocks are sent. Nothing then opens the port, so the error
	// "connection refused" is final too.
	Knock func(ctx context.Context, from, to netip.Addr, round int) (Sent, error)

	// Dial opens one connection. It must end as soon as ctx is done. If Dial is nil,
	// the Dialer opens a TCP connection itself. Only a connection that the Dialer has
	// opened itself is closed by RST if it loses.
	Dial func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error)

	// Timeout limits the time from the start to the connection, including the
	// resolution and all rounds. If it is not positive, only the context sets a limit.
	Timeout time.Duration

	// Hedge is the time after which the answer to a SYN is overdue. [Hedge] returns it for a
	// path whose round trip is known. If it is not positive, round 1 begins 150 ms after the
	// SYN of round 0.
	Hedge time.Duration

	// Trace, if not nil, is called for each event, one call at a time. It must not
	// block, because the attempts wait for it.
	Trace func(Event)

	random func(n time.Duration) time.Duration // replaces rand.N in tests; nil otherwise
	lookup lookupFunc                          // replaces net.DefaultResolver in tests; nil otherwise
}

// Sent tells what Dialer.Knock has sent in a round. The zero Sent means that the knocks have
// left once.
type Sent struct {
	// None means that Knock has sent no knocks: the round only dials.
	None bool

	// Again sends the knocks of the round once more. The Dialer calls it AgainAfter the SYN,
	// if it is not connected by then. Again is nil if the knocks should not leave once more.
	Again func(ctx context.Context) error
}

// Hedge returns the Hedge of a Dialer for a path with this round trip. It is a little more
// than the time of an answer, so that a link without losses never sees a second SYN. It is
// at least 20 ms, because a server needs time too. It is at most 1 s, after which every
// system sends a SYN again.
func Hedge(roundTrip time.Duration) time.Duration {
	return min(max(roundTrip*5/4+10*time.Millisecond, 20*time.Millisecond), time.Second)
}
