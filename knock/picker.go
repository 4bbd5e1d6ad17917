package knock

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// Round tells a client what to do in one round, before the SYN that follows the knocks.
// The client sends the knocks of Send, and waits for Pause after each knock. If Send is
// empty, the client sends no knocks in this round and only dials. A [Client] returns an
// empty Send only if its Schedule contains an empty [Sequence], or if it has more Targets
// than tokens.
type Round struct {
	Send  Sequence      // knocks of the round; may be empty
	Pause time.Duration // wait after each knock
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
type Client struct {
	Schedule     Schedule
	Skew         time.Duration // largest difference between the clocks of server and client
	KnockDelay   time.Duration // pause after each knock in fast rounds, and the shortest pause of slow rounds
	KnockTimeout time.Duration // how long the server waits for the next knock; 0 sets no limit to the pause

	// Targets are all addresses to which the client sends tokens, in any order. It may be
	// empty if there is only one. Only the Schedule [Token] needs Targets. A Dialer of
	// package proxy reports the addresses of a name as the event Resolved.
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
	var send Sequence
	if tokens := c.share(to, len(sequences)); len(tokens) > 0 {
		send = sequences[tokenIndex(from, attempt, tokens)]
	}
	return Round{send, c.pause(n, len(send))}, nil
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

// pause returns the pause after each knock of round n. The doc comment of Client says which
// rounds are fast, and why. The pauses of slow rounds are shorter than KnockTimeout. They
// are also short enough for several rounds in the time that the client has. A pause is
// never shorter than KnockDelay.
func (c Client) pause(n, knocks int) time.Duration {
	if n%3 == 0 || knocks == 0 {
		return c.KnockDelay
	}
	slow := n - n/3 // counts the slow rounds up to this one
	slower := min(5*time.Millisecond<<min(slow, 5), 400*time.Millisecond/time.Duration(knocks))
	if c.KnockTimeout > 0 {
		slower = min(slower, c.KnockTimeout/2)
	}
	return max(c.KnockDelay, slower)
}
