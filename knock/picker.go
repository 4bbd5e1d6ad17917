package knock

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// Round tells a client what to do in one round. The client sends the knocks of Send, waits
// for Pause after each knock, and then dials. If Send is empty, the client only dials.
type Round struct {
	Send  Sequence      // knocks of the round; may be empty
	Pause time.Duration // wait after each knock

	// Repeat means that the client sends each knock twice, the second copy right behind the
	// first. A few milliseconds after the dial it sends all knocks once more in this way, if
	// it is not connected yet. Only one knock can then be lost if a single packet is lost or
	// if the path loses everything for some milliseconds.
	Repeat bool
}

// Picker decides what a client does in each round.
type Picker interface {
	// Round returns what the client sends in round n, at the time now, from one address
	// to another. Rounds are counted from 0 for each destination.
	Round(now time.Time, from, to netip.Addr, n int) (Round, error)
}

// Client is the [Picker] of a client that knows the server's [Schedule].
//
// For Skew after the start of a window by the client's clock, the clock of the server may
// still be in the previous window. In that time, rounds 1, 3, 5 and so on send a sequence
// of the previous window. Two kinds of servers need it: a server that accepts only the
// sequences of its own current window, and a server whose clock is behind by more than
// Skew. A server that accepts a sequence for Skew before its window, and whose clock is
// behind by at most Skew, accepts the new sequence in round 0. A client never sends a
// sequence of a future window.
//
// A window can have several sequences, such as tokens. Each round then sends another
// sequence. An address always begins with the same token for the same target, because a
// server that accepted this token from the address accepts it from this address again. An
// address first sends the tokens that belong to its family by [IsTokenOf]. After all of
// these, it continues with the tokens of the other family. After the last token, it begins
// again with the first.
//
// The name of a server may have several addresses, and one of them may belong to an
// attacker. He can spend the tokens that he receives at the other addresses, where the
// client can then not use them. Therefore a client never sends a token to two of its
// Targets: each target has its own share of the tokens of a window. If there are more
// targets than tokens, the last targets get no token.
//
// Rounds 0, 3, 6 and so on are fast: the pause between their knocks is KnockDelay. Another
// client of the same address may send other knocks at the same time, and an attacker may
// forge knocks from this address. Such a knock undoes the round if it arrives between two
// knocks of the round. A fast round is over before most of them arrive.
//
// The other rounds are slow, because a path that reorders packets makes fast rounds fail.
// The pause between their knocks is 10 ms in round 1 and doubles in each slow round up to
// 160 ms. All pauses of a round together last at most 400 ms, and a single pause at most
// half of KnockTimeout. KnockDelay takes precedence over these limits.
//
// Among the odd rounds, every third is fast, and among the even rounds too. Sequences of
// the current and of the previous window therefore leave in fast and in slow rounds.
//
// # Repeat
//
// With Repeat, two of three rounds send their knocks as [Round.Repeat] says. Rounds 2, 5, 8 and
// so on send each knock once: Repeat may be wrong for the server, because knockd 0.8 opens
// nothing to repeated knocks. The client then connects some rounds later.
//
// # Redial
//
// Redial is for a Schedule with a single sequence. The client then supposes that the server
// reacts to each knock, as knockd does. Knocks that are sent again can do harm there:
//
//   - If the sequence A B C arrives twice, knockd runs its command twice, and may leave a
//     second rule in the firewall that nothing removes.
//   - If A is lost, the C that follows can begin another sequence of the same server. The
//     default file of knockd has such a sequence, which closes the port. The next A only
//     ends that attempt, so that A B C fails in each later round too.
//
// So round 0 sends A B C, and rounds 1 and 2 only dial, because perhaps only a SYN was lost. From
// round 3 on, the odd rounds send A A B C, A A B C, A B C, and so on, and the even rounds
// only dial. What A A B C does depends on the server:
//
//   - It has begun another sequence: the first A ends that attempt, and A B C opens the port.
//   - It has opened the port already: the second A ends the attempt that the first A has begun,
//     so that the command does not run twice.
//   - It waits for a first knock: the second A ends the attempt too, and the port stays closed.
//     The later A B C opens it.
//
// Among the rounds that send knocks, every other one is slow. A B C and A A B C thus leave in
// fast and in slow rounds.
type Client struct {
	Schedule     Schedule
	Skew         time.Duration // largest difference between the clocks of server and client
	KnockDelay   time.Duration // pause after each knock in fast rounds, and the shortest pause of slow rounds
	KnockTimeout time.Duration // how long the server waits for the next knock; 0 sets no limit to the pause
	Repeat       bool          // send each knock several times, as the section Repeat describes
	Redial       bool          // dial before knocks are sent again, as the section Redial describes; not with Repeat

	// Targets are all addresses to which the client sends tokens, in any order. It may be
	// empty if there is only one. Only the Schedule [Token] needs Targets. A Dialer of
	// package proxy reports the addresses of a name as the event Resolved. If there are more
	// Targets than tokens, some get no token: the client dials them without knocks.
	Targets []netip.Addr
}

// Open does not send anything; it returns the sequences that may open the port at the time
// now, and the current window w. The sequences current belong to w, and the sequences
// previous belong to the window before w. The result previous is empty unless w began
// less than Skew ago.
func (c Client) Open(now time.Time) (current, previous []Sequence, w Window, err error) {
	current, w, err = c.Schedule.At(now)
	if err == nil && w != (Window{}) && now.Sub(w.Start) < c.Skew {
		previous, _, err = c.Schedule.At(now.Add(-c.Skew))
	}
	if err == nil && len(current) == 0 {
		err = errors.New("the schedule has no sequence for this time")
	}
	return current, previous, w, err
}

// Round implements [Picker]. The result depends on the destination only if there are several
// Targets.
func (c Client) Round(now time.Time, from, to netip.Addr, n int) (Round, error) {
	sequences, previous, _, err := c.Open(now)
	if err != nil {
		return Round{}, err
	}
	attempt := n // counts the earlier rounds that used the same window
	if len(previous) > 0 {
		if n%2 == 1 {
			sequences = previous
		}
		attempt /= 2
	}
	tokens := c.share(to, len(sequences))
	if len(tokens) == 0 {
		return Round{}, nil
	}
	send := sequences[tokenIndex(from, attempt, tokens)]
	if c.Redial {
		return c.redialRound(send, n), nil
	}
	pause := c.KnockDelay
	if n%3 > 0 {
		pause = c.slowPause(n-n/3, len(send))
	}
	return Round{Send: send, Pause: pause, Repeat: c.Repeat && n%3 < 2}, nil
}

// redialRound returns round n of a client with Redial. The sequence send is that of the
// current window.
func (c Client) redialRound(send Sequence, n int) Round {
	if n == 1 || n > 0 && n%2 == 0 {
		return Round{}
	}
	sent := n / 2 // counts the earlier rounds that sent knocks
	r := Round{Send: send, Pause: c.KnockDelay}
	if sent%2 == 1 {
		r.Pause = c.slowPause((sent+1)/2, len(send))
	}
	// A single knock opens the port each time, so sending it twice would open the port twice.
	if sent%3 > 0 && len(send) > 1 {
		r.Send = append(send[:1:1], send...)
	}
	return r
}

// IsTokenOf reports whether token n, counted from 0, belongs to an address family. If
// ipv6 is true, the family is IPv6, otherwise IPv4. Even tokens belong to IPv4, and odd
// tokens belong to IPv6. A client begins with the tokens of its family. A server whose
// firewall separates the families, such as iptables, accepts only even tokens over IPv4,
// and only odd tokens over IPv6. nftables accepts all tokens over both.
func IsTokenOf(ipv6 bool, n int) bool { return n%2 == 1 == ipv6 }

// share returns the indexes of the sequences that the client may send to a target, among
// the count sequences of a window. These are all of them, except for tokens if there are
// several Targets. No two targets then have a token in common.
//
// The tokens of a family are dealt to the targets of that family, in the order of their
// addresses. A target thus keeps its tokens if a name server changes the order of its
// answer. If all targets belong to one family, they also get the tokens of the other one.
func (c Client) share(to netip.Addr, count int) (tokens []int) {
	rank, targets, bothFamilies := 0, 1, false
	if _, ok := c.Schedule.(Token); ok {
		for _, other := range c.Targets {
			switch {
			case other.Is4() != to.Is4():
				bothFamilies = true
			case other.Less(to):
				rank++
				targets++
			case other != to:
				targets++
			}
		}
	}
	var all []int // those of the family first
	for _, ipv6 := range []bool{to.Is6(), !to.Is6()} {
		for n := range count {
			if IsTokenOf(ipv6, n) && (ipv6 == to.Is6() || !bothFamilies) {
				all = append(all, n)
			}
		}
	}
	for i := rank; i < len(all); i += targets {
		tokens = append(tokens, all[i])
	}
	return tokens
}

// tokenIndex returns the index of the sequence that the address from sends. It is one of
// tokens, which are the indexes of the sequences that the client may send. The number
// attempt counts the earlier rounds that used the window. The index for attempt 0 depends
// only on the address and on tokens.
func tokenIndex(from netip.Addr, attempt int, tokens []int) int {
	var family, others []int
	for _, n := range tokens {
		if IsTokenOf(from.Is6(), n) {
			family = append(family, n)
		} else {
			others = append(others, n)
		}
	}
	sum := sha256.Sum256(from.AsSlice())
	begin := int(binary.BigEndian.Uint16(sum[:]))
	if attempt %= len(tokens); attempt < len(family) {
		return family[(begin+attempt)%len(family)]
	}
	return others[(begin+attempt-len(family))%len(others)]
}

// slowPause returns the pause after each knock of a slow round. Slow is the number of the
// slow round, counted from 1. The doc comment of Client says why slow rounds exist. The pause
// is shorter than KnockTimeout. It is also short enough for several rounds in the time that
// the client has. It is never shorter than KnockDelay.
func (c Client) slowPause(slow, knocks int) time.Duration {
	pause := min(5*time.Millisecond<<min(slow, 5), 400*time.Millisecond/time.Duration(max(knocks, 1)))
	if c.KnockTimeout > 0 {
		pause = min(pause, c.KnockTimeout/2)
	}
	return max(c.KnockDelay, pause)
}
