package knock

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// Round is what a client does before it dials in one round: it sends the knocks
// of Send and waits for Pause after each of them. If Send is empty, the client only
// dials again.
type Round struct {
	Send  Sequence
	Pause time.Duration
}

// Picker decides what a client does in each round.
type Picker interface {
	// Round returns what the client sends at the time now, from one address to
	// another, in round n. Rounds are counted from 0 for each destination.
	Round(now time.Time, from, to netip.Addr, n int) (Round, error)
}

// Client is the [Picker] of a client that knows the server's [Schedule].
//
// Within Skew of a window's start, every other round is for a server whose clock is
// behind: rounds 1, 3, 5 and so on send a sequence of the previous window. A client
// never sends a sequence of a future window.
//
// Where a window has several sequences, such as tokens, each round sends another
// one. An address begins with the same one every time, because a server that has
// let this address through accepts that token from it again. IPv4 begins with the
// tokens for which [IsTokenOf] is true, IPv6 with the others. When an address has
// sent all tokens of its family, it continues with those of the other family.
type Client struct {
	Schedule     Schedule
	Skew         time.Duration // how far the server's clock may differ from the client's
	KnockDelay   time.Duration // the pause in round 0, and the shortest pause of later rounds
	KnockTimeout time.Duration // how long the server waits between two knocks; 0 if it does not matter
}

// Open returns what the client may send at a time: the sequences of the current
// window, and within Skew of its start also those of the previous window.
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

// Round implements [Picker]. The destination does not matter.
func (c Client) Round(now time.Time, from, _ netip.Addr, n int) (Round, error) {
	sequences, previous, _, err := c.Open(now)
	if err != nil {
		return Round{}, err
	}
	turn := n // counts the rounds that a window has had
	if len(previous) > 0 {
		if n%2 == 1 {
			sequences = previous
		}
		turn /= 2
	}
	send := sequences[tokenIndex(from, turn, len(sequences))]
	return Round{send, c.pause(n, len(send))}, nil
}

// IsTokenOf reports whether an address family begins with the token of number n,
// counted from 0: IPv4 with even numbers, IPv6 with odd ones. A server whose
// firewall keeps the families apart accepts no others from it.
func IsTokenOf(ipv6 bool, n int) bool { return n%2 == 1 == ipv6 }

// tokenIndex returns which of a window's sequences an address sends in a turn. The
// address alone decides where it begins.
func tokenIndex(from netip.Addr, turn, count int) int {
	var own, others []int
	for n := range count {
		if IsTokenOf(from.Is6(), n) {
			own = append(own, n)
		} else {
			others = append(others, n)
		}
	}
	sum := sha256.Sum256(from.AsSlice())
	begin := int(binary.BigEndian.Uint16(sum[:]))
	if turn %= count; turn < len(own) {
		return own[(begin+turn)%len(own)]
	}
	return others[(begin+turn-len(own))%len(others)]
}

// pause returns the pause after each knock of a round. Round 0 is fast. On a path
// that reorders packets it fails, so later rounds are slower. They stay within what
// the server waits for, and short enough that several rounds fit into the time.
func (c Client) pause(n, knocks int) time.Duration {
	if n == 0 || knocks == 0 {
		return c.KnockDelay
	}
	slower := min(5*time.Millisecond<<min(n, 5), 400*time.Millisecond/time.Duration(knocks))
	if c.KnockTimeout > 0 {
		slower = min(slower, c.KnockTimeout/2)
	}
	return max(c.KnockDelay, slower)
}
