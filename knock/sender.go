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

// Source returns the local address from which the system sends to an address.
// It sends nothing. Knocks and the connection that follows must leave from the
// same address, and a host can have several (IPv6 privacy addresses, VPNs).
func Source(to netip.Addr) (netip.Addr, error) {
	// Connecting a UDP socket only makes the kernel choose a route. The port
	// is discard's (RFC 863); no packet goes there.
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return netip.Addr{}, cause(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// Sender puts sequences on the wire. It needs no privilege.
type Sender struct {
	// From is the local address the knocks leave from; the zero Addr leaves
	// the choice to the system, for each knock anew.
	From netip.Addr
}

// Send sends the knocks of a sequence in order to a literal address, one packet
// each but for a Stream's, and waits pause after every one, also after the last,
// so that what the caller sends next does not overtake it. It does not wait for
// answers: to a knock there are none. A knock the system refuses to send (no
// route, a local firewall) ends it with that error, which names the knock by its
// place in the sequence and never by its port.
func (s Sender) Send(ctx context.Context, to netip.Addr, seq Sequence, pause time.Duration) error {
	to = to.Unmap()
	// One socket carries all datagrams of this call and none of another's: if
	// a real service answered a knock, a repeat from the same port would pass
	// as part of an established flow and no longer count as a knock.
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
		var err error
		switch step.Transport {
		case TCP:
			err = s.sendSYN(dest)
		case UDP:
			if datagrams == nil {
				datagrams, err = s.listen(to)
			}
			if err == nil {
				_, err = datagrams.WriteToUDPAddrPort(step.Payload, dest)
			}
		case Stream:
			err = s.sendStream(ctx, dest, step.Payload)
		default:
			err = fmt.Errorf("unknown transport %d", step.Transport)
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

// listen opens the socket for the datagrams. It stays unconnected: on a
// connected one, the ICMP error that a closed port answers to the first knock
// would be reported as a failure of the second.
func (s Sender) listen(to netip.Addr) (*net.UDPConn, error) {
	local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.From, 0)) // no address if From is the zero Addr
	if to.Is6() {
		return net.ListenUDP("udp6", local)
	}
	return net.ListenUDP("udp4", local)
}

// errSent stops the net package after our own connect.
var errSent = errors.New("knock sent")

// sendSYN sends exactly one SYN. The system repeats a SYN for as long as its
// socket lives (Linux after one second), and a doubled knock makes knockd drop
// the whole sequence; so the socket is closed as soon as connect has sent the
// first. The net package has no call for that: it makes the socket, our
// Control function connects it, and the error makes the package close it. None of
// this waits, so that no context has a say: near a deadline, the package would
// report a timeout for a knock that has left.
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

// startConnect binds a socket to From, if that is valid, and starts its connection
// without waiting. When it returns nil, the SYN is out.
func (s Sender) startConnect(fd socket, dest netip.AddrPort) error {
	err := unblock(fd)
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

// streamLimit is how long a connection for a knock may take to come about: the
// rest of the round waits for it. It is less than the system takes to repeat a
// lost SYN, which the next round's connection does as well.
const streamLimit = 900 * time.Millisecond

// sendStream makes a connection, writes the payload and closes in order, so that
// the system goes on until all of it has arrived. An answer is not waited for.
// One that does not come about in time is [os.ErrDeadlineExceeded].
func (s Sender) sendStream(ctx context.Context, dest netip.AddrPort, payload []byte) error {
	deadline := time.Now().Add(streamLimit)
	d := net.Dialer{Deadline: deadline, KeepAlive: -1}
	if s.From.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.From, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", dest.String())
	if err == nil {
		defer conn.Close()
		_ = conn.SetWriteDeadline(deadline) // what can fail shows in the write
		_, err = conn.Write(payload)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	// A deadline makes itself felt in net a moment before the context is done.
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

// zoneID returns the index of the interface that an IPv6 zone names, 0 for no zone.
func zoneID(zone string) uint32 {
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

// cause strips the net package's description of an operation, which would put
// the port of a knock into an error text.
func cause(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Err
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	switch {
	case d <= 0:
	case d < coarse:
		pauseShortly(d)
	default:
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}
