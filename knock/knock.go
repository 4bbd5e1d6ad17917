// Package knock defines port knocks and sends them.
//
// A [Step] describes one knock, and a [Sequence] lists the knocks that open a port.
// A [Schedule] tells which sequences open the port at a given time. A Sequence is also
// a Schedule: it is valid at all times. The sequences of [Rotating], [Token] and
// [MD5Hourly] change with time. A [Sender] sends a sequence. The package does not read
// files, does not look up host names and needs no privileges.
//
// # The scheme rotating
//
// Client and server share a key. They derive the sequence of each window from the key
// and the clock. All numbers are big-endian. Time is Unix time in seconds, UTC. The period
// is the length of a window in whole seconds.
//
//	window  w = floor(time / period)
//	block n = HMAC-SHA256(key, "portknock/1 rotating" ‖ 0 ‖ period ‖ w ‖ n)
//
// ‖ joins bytes, and 0 is a single byte. The numbers period and w have 8 bytes each; w is
// signed, because it is negative before 1970. The number n has 4 bytes and counts the
// blocks of a window from 0. The blocks, in order, are read as numbers v of 2 bytes,
// 16 in each block. Let first be the first port of the range, and size the number of its
// ports. For each number v:
//
//   - If v ≥ floor(65536 / size) · size, v is discarded. This makes all ports equally likely.
//   - Otherwise, the port is first + v mod size.
//   - A port that is already in the sequence is skipped.
//
// The draw ends when the sequence has the agreed number of knocks. The knocks have the
// order of the draw. The server accepts a sequence in its window. Because clocks
// differ, the server also accepts the sequence for Skew before and after the window.
// Skew is the largest difference between the clocks that both sides allow. The folder
// testdata/vectors has examples, and an implementation in Python.
//
// # The scheme token
//
// Key, window and numbers are those of the scheme rotating.
//
//	token n = the first 16 bytes of HMAC-SHA256(key, "portknock/1 token" ‖ 0 ‖ period ‖ w ‖ n)
//
// Each window has the agreed number of tokens. The number n has 4 bytes and counts the
// tokens of a window from 0. A client sends one token to the agreed port, as the only
// content of a UDP datagram. The server opens to the address that sends a token of the
// current window. For Skew before and after a window, the server also accepts the tokens
// of that window. Once an address has used a token, the server does not accept this token
// from any other address. A client therefore chooses its tokens as follows:
//
//   - Without an answer, the client sends another token in the next round. Another
//     address may have used the first token, or the datagram was lost.
//   - The address of the client decides which token is the first. A token that the client
//     used with an old address belongs to the old address. If two addresses have the same
//     first token, the second address can succeed in the next round.
//   - Over IPv4, the client begins with the tokens of even n; over IPv6, with those of
//     odd n. A client that tries IPv4 and IPv6 at the same time has two addresses, and
//     one token opens to only one of them.
//   - If the server's name has several addresses, the client sends each token to only one of
//     them, because an attacker may have one of the addresses and spend the token at the
//     others. The tokens of even n are dealt to the IPv4 addresses, one by one and in
//     ascending order of the addresses, and those of odd n to the IPv6 addresses. If all
//     addresses belong to one family, the tokens of the other family are dealt after these.
//
// A server whose firewall separates the families, such as iptables, accepts only tokens
// of even n over IPv4, and only tokens of odd n over IPv6. nftables accepts all tokens
// over both.
//
// # Keys
//
// A key has 32 to 64 random bytes. The text of a key is "portknock-key-1:" and the
// base32 form (RFC 4648, in lower case, without padding) of the bytes and their CRC-32.
// The CRC-32 is that of Ethernet and zip: 4 bytes, big-endian. For a key of 32 bytes, the
// base32 form has 58 characters, including the CRC-32. The checksum detects every single
// wrong letter and every swap of neighboring letters. One key can serve many hosts as a
// master key: [Key.Derive] gives each host its own key.
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
	TCP    Transport = iota // the knock is exactly one SYN
	UDP                     // the knock is exactly one datagram
	Stream                  // the knock is a TCP connection that carries the payload
)

var transports = [...]string{TCP: "tcp", UDP: "udp", Stream: "stream"}

// String returns "tcp", "udp" or "stream".
func (t Transport) String() string {
	if int(t) < len(transports) {
		return transports[t]
	}
	return "unknown"
}

// ParseTransport reads "tcp" or "udp" in upper or lower case. It does not read "stream": a
// Stream knock needs a payload, and a sequence that a user writes has no payloads.
func ParseTransport(s string) (Transport, error) {
	switch strings.ToLower(s) {
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	}
	return 0, fmt.Errorf("%q is not tcp or udp", s)
}

// Step describes one knock: a packet to a port, or a connection with a payload.
type Step struct {
	Transport Transport
	Port      uint16 // 1 to 65535
	Payload   []byte // content of the datagram or the connection; a SYN has no payload
}

// String returns the step in the form that a profile uses, such as "7000/udp". If the
// step has a payload, String adds "=" and the payload in hexadecimal, as in
// "62202/udp=0f1e2d". A profile never contains a payload.
func (s Step) String() string {
	if len(s.Payload) > 0 {
		return fmt.Sprintf("%d/%s=%x", s.Port, s.Transport, s.Payload)
	}
	return fmt.Sprintf("%d/%s", s.Port, s.Transport)
}

// Sequence lists the knocks that open a port, in order.
type Sequence []Step

// MaxSteps is the largest number of knocks in a sequence, because knockd has this limit.
const MaxSteps = 32

// ParseSequence reads knocks in order, such as "7000/udp 8000:tcp 9000". Spaces, tabs or
// commas separate the knocks. Each knock is a port, followed by a slash or a colon and
// the transport. The transport may be missing; the default is tcp. Errors name a knock
// by its position and do not quote the text, because errors end up in logs. A sequence
// with a typo would almost reveal the right sequence.
func ParseSequence(s string) (Sequence, error) {
	fields := splitList(s)
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

// String returns the steps, each as by [Step.String], with spaces between them.
// [ParseSequence] reads this text only if every step is TCP or UDP without a payload.
func (s Sequence) String() string {
	words := make([]string, len(s))
	for i, step := range s {
		words[i] = step.String()
	}
	return strings.Join(words, " ")
}

// SweepFinds reports whether a scan of all ports would send the sequence by chance. The
// scan goes through all ports in ascending or in descending order, and does not turn back.
// On the way from one knock to the next, it sends a packet to each port, with the
// transport of the next knock. A sequence of mixed transports can therefore be found.
//
// The scan sends the sequence if each knock follows directly on the previous knock: at the
// next port in the direction of the scan, or at the same port. Between two knocks there
// may also be ports that the server overlooks. The function overlooked reports whether
// the server ignores a packet, so that the packet does not disturb a sequence.
//
// A scan never sends a payload. SweepFinds returns false for a sequence with a payload,
// and always true for a sequence of one knock without a payload.
func (s Sequence) SweepFinds(overlooked func(Step) bool) bool {
	hasPayload := func(step Step) bool { return len(step.Payload) > 0 }
	// finds reports whether a scan sends every knock, and between two knocks only packets
	// that the server overlooks. The scan starts at the first knock and adds dir to the
	// port each time.
	finds := func(dir int) bool {
		for i := 1; i < len(s); i++ {
			for probe := (Step{Transport: s[i].Transport, Port: s[i-1].Port}); probe.Port != s[i].Port; {
				probe.Port += uint16(dir)
				if probe.Port == 0 || probe.Port != s[i].Port && !overlooked(probe) {
					return false
				}
			}
		}
		return true
	}
	return !slices.ContainsFunc(s, hasPayload) && (finds(1) || finds(-1))
}

// PortRange holds the ports from First to Last, both included.
type PortRange struct {
	Transport   Transport
	First, Last uint16
}

// ParsePortRanges reads ports and ranges of ports, such as "22/tcp 60000-61000/udp".
// Spaces, tabs or commas separate them. A slash or a colon may stand before the transport,
// so "22:tcp" is valid too. The default transport is tcp.
func ParsePortRanges(s string) ([]PortRange, error) {
	fields := splitList(s)
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

// Contains reports whether the range contains the transport and the port of a knock.
func (r PortRange) Contains(s Step) bool {
	return s.Transport == r.Transport && r.First <= s.Port && s.Port <= r.Last
}

// splitList splits a list at spaces, tabs and commas.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' })
}

// cutTransport splits "7000/udp" or "7000:udp" at the separator. Without a separator,
// the transport is TCP.
func cutTransport(s string) (ports string, t Transport, err error) {
	i := strings.IndexAny(s, "/:")
	if i < 0 {
		return s, TCP, nil
	}
	if t, err = ParseTransport(s[i+1:]); err != nil {
		err = errors.New("the protocol is not tcp or udp") // this error does not quote s
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

// size returns the number of ports in the range.
func (r PortRange) size() int { return int(r.Last) - int(r.First) + 1 }

// Window is a span of time, from Start up to but not including End. The zero Window
// lasts forever.
type Window struct{ Start, End time.Time }

// WindowAt returns the window that contains t. All windows last one period and are
// counted from 1970 in UTC. WindowAt first cuts the period to whole seconds: a period of
// 1.5 s counts as 1 s. The period must be at least one second.
func WindowAt(t time.Time, period time.Duration) Window {
	length, now := int64(period/time.Second), t.Unix()
	start := now - (now%length+length)%length
	return Window{time.Unix(start, 0).UTC(), time.Unix(start+length, 0).UTC()}
}

// Schedule tells which sequences open the port at a given time.
type Schedule interface {
	// At returns the window that contains t, and at least one sequence. Each of the
	// sequences opens the port in that window. At ignores clock skew; callers handle it.
	// A server also accepts the sequences of a window for the skew before its Start and
	// after its End. A client whose clock may be ahead also tries the sequences of
	// At(t - skew).
	At(t time.Time) ([]Sequence, Window, error)
}

// At returns the sequence itself and the zero Window, because a Sequence is the
// [Schedule] that never changes.
func (s Sequence) At(time.Time) ([]Sequence, Window, error) {
	return []Sequence{s}, Window{}, nil
}
