// Package knock says what a port knock is and puts it on the wire.
//
// A [Step] is one knock, a [Sequence] the knocks that open a port, and a
// [Schedule] says which sequences open at a given time: always the same one (a
// Sequence is such a Schedule), or others as time goes by ([Rotating], [Token],
// [MD5Hourly]). A [Sender] sends a sequence. Nothing here reads a file, looks up a name or needs a
// privilege.
//
// # The scheme rotating
//
// Client and server share a key, and derive each window's sequence from it and
// the clock. All numbers are big-endian; time is Unix time in seconds, UTC.
//
//	window  w = floor(time / period)
//	block n = HMAC-SHA256(key, "portknock/1 rotating" ‖ 0 ‖ period ‖ w ‖ n)
//
// where 0 is one byte, period and w have 8 bytes (w is signed: it is negative
// before 1970), and n has 4 and counts the blocks of a window from 0. The blocks,
// one after the other, are read as numbers v of 2 bytes, 16 in each block. Of a
// range of size ports beginning with first,
//
//   - v is rejected if v ≥ floor(65536 / size) · size, so that no port is likelier
//     than another,
//   - the port is first + v mod size,
//   - one that is in the sequence already is skipped,
//
// until the sequence has as many knocks as agreed, in the order of the draw. The
// server accepts it in its window and, since clocks differ, for Skew before and
// after. testdata/vectors has examples, and the same in Python.
//
// # The scheme token
//
// Key, window and numbers are those of the scheme rotating.
//
//	token n = the first 16 bytes of HMAC-SHA256(key, "portknock/1 token" ‖ 0 ‖ period ‖ w ‖ n)
//
// A window has as many tokens as agreed, n counting from 0. A client sends one of
// them, alone in a UDP datagram, to the port agreed. The server opens to whoever
// sends a token of the window, or for Skew of a neighbour, and from then on takes
// that token from no other address. So a client that gets no answer, that comes
// from another address, or that tries a second way at the same time, sends
// another. By IPv4 it begins with those of even n, by IPv6 with those of odd n: a
// server whose firewall keeps the families apart may take no others from them.
//
// # Keys
//
// A key is 32 to 64 random bytes. Its text is "portknock-key-1:" and, in base32
// (RFC 4648) in lower case without padding, the bytes followed by their CRC-32
// (the one of Ethernet and zip, 4 bytes, big-endian): 58 characters for 32 bytes.
// The checksum notices every single wrong letter and every swap of neighbours.
// One key can serve many hosts as a master key: each has its own by [Key.Derive].
package knock

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Transport is the protocol of one knock.
type Transport uint8

// The transports a knock can use.
const (
	TCP    Transport = iota // exactly one SYN
	UDP                     // exactly one datagram
	Stream                  // a TCP connection that carries the payload
)

var transports = [...]string{TCP: "tcp", UDP: "udp", Stream: "stream"}

// String returns "tcp", "udp" or "stream".
func (t Transport) String() string {
	if int(t) < len(transports) {
		return transports[t]
	}
	return "unknown"
}

// ParseTransport reads "tcp" or "udp" in any case. A Stream is for schemes that
// have a payload, and no sequence that people write has one.
func ParseTransport(s string) (Transport, error) {
	switch strings.ToLower(s) {
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	}
	return 0, fmt.Errorf("%q is not tcp or udp", s)
}

// Step is one knock: a packet to a port, or a connection with a payload.
type Step struct {
	Transport Transport
	Port      uint16 // 1 to 65535
	Payload   []byte // what the datagram or the connection carries; a SYN carries none
}

// String returns the step as a profile writes it: "7000/udp". A payload, which no
// profile writes, follows in hexadecimal: "62202/udp=0f1e2d".
func (s Step) String() string {
	if len(s.Payload) > 0 {
		return fmt.Sprintf("%d/%s=%x", s.Port, s.Transport, s.Payload)
	}
	return fmt.Sprintf("%d/%s", s.Port, s.Transport)
}

// Sequence is the knocks that open a port, in order.
type Sequence []Step

// MaxSteps is the longest sequence: knockd's limit.
const MaxSteps = 32

// ParseSequence reads "7000/udp 8000:tcp 9000": knocks in order, parted by
// blanks or commas, each a port with its transport behind a slash or a colon,
// tcp where none is given. Its errors name a knock by its place and quote nothing:
// they end up in logs, and a sequence with a typo is nearly the sequence.
func ParseSequence(s string) (Sequence, error) {
	fields := listed(s)
	if len(fields) == 0 {
		return nil, errors.New("a sequence needs at least one knock, such as 7000/udp")
	}
	if len(fields) > MaxSteps {
		return nil, fmt.Errorf("%d knocks are too many; at most %d are allowed", len(fields), MaxSteps)
	}
	seq := make(Sequence, len(fields))
	for i, f := range fields {
		text, transport, err := cutTransport(f)
		port, portErr := parsePort(text)
		if err := cmp.Or(err, portErr); err != nil {
			return nil, fmt.Errorf("knock %d of %d: %w", i+1, len(fields), err)
		}
		seq[i] = Step{Transport: transport, Port: port}
	}
	return seq, nil
}

// String returns the sequence as [ParseSequence] reads it.
func (s Sequence) String() string {
	words := make([]string, len(s))
	for i, step := range s {
		words[i] = step.String()
	}
	return strings.Join(words, " ")
}

// SweepFinds reports whether a scan of all ports in ascending or in descending
// order would send the sequence by chance: every knock is then a neighbour of
// the one before, not counting ports that the server overlooks. A lone knock is
// always found; a payload never.
func (s Sequence) SweepFinds(overlooked func(Step) bool) bool {
	hasPayload := func(step Step) bool { return len(step.Payload) > 0 }
	// finds reports whether a scan that adds dir to the port, from the first knock
	// on, reaches every knock and sends no packet in between that counts.
	finds := func(dir int) bool {
		for i := 1; i < len(s); i++ {
			for at := (Step{Transport: s[i].Transport, Port: s[i-1].Port}); at.Port != s[i].Port; {
				at.Port += uint16(dir)
				if at.Port == 0 || at.Port != s[i].Port && !overlooked(at) {
					return false
				}
			}
		}
		return true
	}
	return !slices.ContainsFunc(s, hasPayload) && (finds(1) || finds(-1))
}

// PortRange is the ports from First to Last, both included.
type PortRange struct {
	Transport   Transport
	First, Last uint16
}

// ParsePortRanges reads "22/tcp 60000-61000/udp": ports and ranges of ports,
// parted by blanks or commas, tcp where no transport is given.
func ParsePortRanges(s string) ([]PortRange, error) {
	fields := listed(s)
	if len(fields) == 0 {
		return nil, errors.New("no port given; expected ports such as 22/tcp")
	}
	ranges := make([]PortRange, len(fields))
	for i, f := range fields {
		r, err := parsePortRange(f)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", f, err)
		}
		ranges[i] = r
	}
	return ranges, nil
}

func parsePortRange(s string) (r PortRange, err error) {
	if s, r.Transport, err = cutTransport(s); err != nil {
		return r, err
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	if r.First, err = parsePort(first); err != nil {
		return r, err
	}
	if r.Last, err = parsePort(last); err == nil && r.First > r.Last {
		err = errors.New("the first port of the range is above the last")
	}
	return r, err
}

// String returns the range as [ParsePortRanges] reads it.
func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprintf("%d/%s", r.First, r.Transport)
	}
	return fmt.Sprintf("%d-%d/%s", r.First, r.Last, r.Transport)
}

// Contains reports whether a knock falls into the range.
func (r PortRange) Contains(s Step) bool {
	return s.Transport == r.Transport && r.First <= s.Port && s.Port <= r.Last
}

// listed parts a list at blanks and commas.
func listed(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' })
}

// cutTransport parts "7000/udp" or "7000:udp" at its separator.
func cutTransport(s string) (ports string, t Transport, err error) {
	i := strings.IndexAny(s, "/:")
	if i < 0 {
		return s, TCP, nil
	}
	if t, err = ParseTransport(s[i+1:]); err != nil {
		err = errors.New("the protocol is not tcp or udp") // which quotes nothing
	}
	return s[:i], t, err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New("not a port from 1 to 65535")
	}
	return uint16(n), nil
}

// size returns how many ports there are.
func (r PortRange) size() int { return int(r.Last) - int(r.First) + 1 }

// Window is a span of time, from Start up to but not including End. The zero
// Window is for ever.
type Window struct{ Start, End time.Time }

// WindowAt returns the window around t of those that are a period long, counted
// from 1970 in UTC. The period is at least a second; what exceeds whole seconds
// is not counted.
func WindowAt(t time.Time, period time.Duration) Window {
	length, now := int64(period/time.Second), t.Unix()
	start := now - (now%length+length)%length
	return Window{time.Unix(start, 0).UTC(), time.Unix(start+length, 0).UTC()}
}

// Schedule says which sequences open at a time.
type Schedule interface {
	// At returns the sequences of the window around t, at least one, of which any
	// one opens, and that window. By how much two clocks may differ is no matter
	// of the schedule: a server accepts a window's sequences for that long before
	// its Start and after its End as well, and a client whose clock may be ahead
	// also tries those of the moment that was so long ago.
	At(t time.Time) ([]Sequence, Window, error)
}

// At returns the sequence itself, for ever: a Sequence is the [Schedule] that never
// changes.
func (s Sequence) At(time.Time) ([]Sequence, Window, error) {
	return []Sequence{s}, Window{}, nil
}
