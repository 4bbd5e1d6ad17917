package knock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Source returns the local address from which the system sends to the destination. Source
// does not send a packet. Knocks and the connection that follows must leave from the
// same address, and a host can have several addresses (IPv6 privacy addresses, VPNs).
func Source(to netip.Addr) (netip.Addr, error) {
	// Connecting a UDP socket only makes the kernel choose a route. Port 9 is the port of
	// discard (RFC 863); no packet goes to it.
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return netip.Addr{}, cause(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// Sender sends sequences. It needs no privileges.
type Sender struct {
	// From is the local address of the knocks. If From is the zero Addr, the system
	// chooses an address for each knock.
	From netip.Addr

	// Repeat means that Send sends each TCP or UDP knock twice. The second copy follows
	// the first at once.
	Repeat bool
}

// Send sends the knocks of a sequence in order to the destination. Send waits pause after
// every knock, including the last, so that the caller's next packet does not overtake it.
//
// A TCP or UDP knock is a single packet, or two with Repeat. Send does not wait for its answer, because a
// knock has no answer. A [Stream] knock is a connection: Send waits until it is connected
// and the payload is written, at most 0.9 s, but not for a reply.
//
// If a knock cannot be sent, Send does not send the knocks after it, and returns an error.
// For example, the route is missing, a local firewall forbids the packet, or a Stream does
// not connect. The error names the knock by its position in the sequence, never by its
// port. After 0.9 s without success, the error of a Stream wraps
// [os.ErrDeadlineExceeded].
//
// If ctx ends, Send does not send further knocks. The error is then the cause of ctx, or
// wraps it, even if ctx ends in the pause after the last knock.
func (s Sender) Send(ctx context.Context, to netip.Addr, seq Sequence, pause time.Duration) error {
	to = to.Unmap()
	// One socket sends all datagrams of this call, and no datagrams of another call. If a
	// real service answers a knock, a repeated knock from the same port belongs to an
	// established flow. The server would no longer count it as a knock.
	var datagrams *net.UDPConn
	defer func() {
		if datagrams != nil {
			datagrams.Close()
		}
	}()
	for i, step := range seq {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		dest := netip.AddrPortFrom(to, step.Port)
		send := func() (err error) {
			switch step.Transport {
			case TCP:
				return s.sendSYN(dest)
			case UDP:
				if datagrams == nil {
					datagrams, err = s.listen(to)
				}
				if err == nil {
					_, err = datagrams.WriteToUDPAddrPort(step.Payload, dest)
				}
				return err
			case Stream:
				return s.sendStream(ctx, dest, step.Payload)
			}
			return fmt.Errorf("unknown transport %d", step.Transport)
		}
		err := send()
		if err == nil && s.Repeat && step.Transport != Stream {
			err = send()
		}
		if err != nil {
			return fmt.Errorf("knock %d of %d: %w", i+1, len(seq), cause(err))
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	return nil
}

// listen opens the socket for the datagrams. The socket stays unconnected, because a
// closed port may answer the first knock with an ICMP error. A connected socket would
// report that error as a failure of the second knock.
func (s Sender) listen(to netip.Addr) (*net.UDPConn, error) {
	local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.From, 0)) // without an address if From is the zero Addr
	if to.Is6() {
		return net.ListenUDP("udp6", local)
	}
	return net.ListenUDP("udp4", local)
}

// errSent makes the net package stop after our own connect.
var errSent = errors.New("knock sent")

// sendSYN sends exactly one SYN. The system repeats a SYN while its socket is open (Linux
// after one second), and a repeated knock makes knockd discard the whole sequence. So
// the socket is closed as soon as connect has sent the first SYN.
//
// The net package has no call for this. The package makes the socket, our Control function
// connects it, and errSent makes the package close it. These steps do not wait, so
// sendSYN takes no context. Near the deadline of a context, the package would report a
// timeout for a knock that was sent.
func (s Sender) sendSYN(dest netip.AddrPort) error {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = s.startConnect(socket(fd), dest) })
		return cmp.Or(err, failed, errSent)
	}}
	if _, err := d.Dial("tcp", dest.String()); !errors.Is(err, errSent) {
		return err
	}
	return nil
}

// startConnect binds a socket to From, if From is valid, and starts to connect it without
// waiting. If startConnect returns nil, the SYN has been sent.
func (s Sender) startConnect(fd socket, dest netip.AddrPort) error {
	err := prepare(fd)
	if err == nil && s.From.IsValid() {
		err = syscall.Bind(fd, sockaddr(netip.AddrPortFrom(s.From, 0)))
	}
	if err == nil {
		err = syscall.Connect(fd, sockaddr(dest))
	}
	if slices.Contains(errnosSent, err) {
		return nil
	}
	return err
}

// streamLimit limits the time of a Stream knock's connection, because the rest of the
// round waits for it. The limit is below the time after which the system repeats a lost
// SYN. This repetition is not needed, because the next round makes another connection.
const streamLimit = 900 * time.Millisecond

// sendStream connects, writes the payload and closes the connection in order, so that the
// system continues until the whole payload has arrived. It does not wait for an answer.
// If the time limit passes first, the error is [os.ErrDeadlineExceeded].
func (s Sender) sendStream(ctx context.Context, dest netip.AddrPort, payload []byte) error {
	deadline := time.Now().Add(streamLimit)
	d := net.Dialer{Deadline: deadline, KeepAlive: -1}
	if s.From.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.From, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", dest.String())
	if err == nil {
		defer conn.Close()
		_ = conn.SetWriteDeadline(deadline) // a failure shows up in Write
		_, err = conn.Write(payload)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	// The net package reports a deadline a moment before the context is done.
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return os.ErrDeadlineExceeded
	}
	return err
}

func sockaddr(a netip.AddrPort) syscall.Sockaddr {
	if a.Addr().Is4() {
		return &syscall.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &syscall.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zoneID(a.Addr().Zone())}
}

// zoneID returns the index of the interface that an IPv6 zone names, or 0 without a zone.
func zoneID(zone string) uint32 {
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

// cause removes the net package's description of an operation. The description would put
// the port of a knock into the text of an error.
func cause(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Err
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	switch {
	case d <= 0:
	case d < minTimerPause:
		pauseShortly(d)
	default:
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}
