package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/portknock/portknock/knock"
)

// gate stands in for the firewall of a server. A firewall needs root and sees every packet.
// The gate needs no privileges and sees only packets to the ports on which it listens. It
// does not listen on the service's port until a client has knocked.
type gate struct {
	addr       netip.Addr
	knockPorts []knockPort    // ports to knock at, in the order of the sequence
	service    netip.AddrPort // address and port of the service that the gate guards
	openFor    time.Duration  // duration of an opening
	knocks     chan arrival   // knocks at all ports
}

const (
	gateOpenFor = 2 * time.Second // duration of an opening

	// knockDelay is longer than the default. The gate receives UDP and TCP knocks on
	// different sockets. On a busy machine, with the default pause, the gate could
	// receive two knocks in the wrong order.
	knockDelay = 20 * time.Millisecond
)

// after is the clock that ends openings. Tests replace it.
var after = time.After

// knockPort is a port to knock at.
type knockPort struct {
	step  knock.Step
	await func() (from netip.Addr, err error) // waits for the next knock
	close func() error
}

// arrival is a knock that the gate has received.
type arrival struct {
	from     netip.Addr
	position int // position of the knock in the sequence, from 0
}

// errPortTaken means that another program has taken the service's port while the gate did not
// listen on it. This is rare. Another port helps.
var errPortTaken = errors.New("another program has taken the port")

// transports returns the transports of the gate's knock ports: TCP only on Linux.
//
// portknock sends a TCP knock as one SYN and closes the socket. On Linux, a listener on
// loopback has answered by then and reports a connection. On a system that answers later,
// the answer finds the socket closed. The listener then never reports the knock, which a
// firewall would see.
func transports() []knock.Transport {
	if runtime.GOOS == "linux" {
		return []knock.Transport{knock.UDP, knock.TCP, knock.UDP}
	}
	return []knock.Transport{knock.UDP, knock.UDP, knock.UDP}
}

// newGate returns a gate on loopback, with ports that the system has chosen. Each opening
// of the service's port lasts openFor.
func newGate(openFor time.Duration) (*gate, error) {
	g := &gate{openFor: openFor, knocks: make(chan arrival)}
	var err error
	if g.service, err = freePort(); err != nil {
		return nil, err
	}
	g.addr = g.service.Addr()
	for _, t := range transports() {
		p, err := openKnockPort(g.addr, t)
		if err != nil {
			g.close()
			return nil, err
		}
		g.knockPorts = append(g.knockPorts, p)
	}
	// The gate does not see packets to other ports. So a scan of all ports would find a
	// sequence whose ports only ascend or only descend: shuffle the ports.
	overlooksAll := func(knock.Step) bool { return true }
	for g.sequence().SweepFinds(overlooksAll) {
		rand.Shuffle(len(g.knockPorts), func(i, j int) {
			g.knockPorts[i], g.knockPorts[j] = g.knockPorts[j], g.knockPorts[i]
		})
	}
	return g, nil
}

// freePort returns a TCP port on loopback on which no program listens. It uses IPv6 only
// on a machine without IPv4.
func freePort() (netip.AddrPort, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		var err6 error
		if l, err6 = net.Listen("tcp", "[::1]:0"); err6 != nil {
			return netip.AddrPort{}, err
		}
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

// openKnockPort listens for knocks at a port that the system chooses.
func openKnockPort(addr netip.Addr, t knock.Transport) (knockPort, error) {
	local := netip.AddrPortFrom(addr, 0).String()
	if t == knock.UDP {
		c, err := net.ListenPacket("udp", local)
		if err != nil {
			return knockPort{}, err
		}
		buf := make([]byte, 1<<16) // Windows reports an error for a datagram that does not fit
		return knockPort{
			step: knock.Step{Transport: t, Port: c.LocalAddr().(*net.UDPAddr).AddrPort().Port()},
			await: func() (netip.Addr, error) {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return netip.Addr{}, err
				}
				return from.(*net.UDPAddr).AddrPort().Addr(), nil
			},
			close: c.Close,
		}, nil
	}
	l, err := net.Listen("tcp", local)
	if err != nil {
		return knockPort{}, err
	}
	return knockPort{
		step: knock.Step{Transport: t, Port: l.Addr().(*net.TCPAddr).AddrPort().Port()},
		await: func() (netip.Addr, error) {
			c, err := l.Accept()
			if err != nil {
				return netip.Addr{}, err
			}
			defer c.Close()
			return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(), nil
		},
		close: l.Close,
	}, nil
}

// sequence returns the sequence that opens the service's port.
func (g *gate) sequence() knock.Sequence {
	seq := make(knock.Sequence, len(g.knockPorts))
	for i, p := range g.knockPorts {
		seq[i] = p.step
	}
	return seq
}

// close closes the knock ports. A caller needs it only for a gate that does not run,
// because run closes them too.
func (g *gate) close() {
	for _, p := range g.knockPorts {
		p.close()
	}
}

// run guards the service's port until ctx is done, and closes all its sockets before it
// returns. run passes each connection to serve, which owns the connection and must not
// block. It passes each event to report, in order.
func (g *gate) run(ctx context.Context, serve func(net.Conn), report func(event)) error {
	ctx, cancel := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer g.close()
	defer cancel()
	for i, p := range g.knockPorts {
		tasks.Go(func() { g.watch(ctx, i, p) })
	}

	var service net.Listener // nil while the port is closed
	defer func() {
		if service != nil {
			service.Close()
		}
	}()
	var end <-chan time.Time           // receives a value at the end of the opening
	stages := make(map[netip.Addr]int) // stage of each address: how many knocks it has made in order
	for {
		select {
		case k := <-g.knocks:
			report(event{actor: "gate", kind: knocked, text: fmt.Sprintf("received knock %v from %v", g.knockPorts[k.position].step, k.from)})
			if stages[k.from] = advance(stages[k.from], k.position); stages[k.from] < len(g.knockPorts) {
				continue
			}
			delete(stages, k.from)
			end = after(g.openFor)
			if service != nil {
				continue
			}
			var err error
			if service, err = net.Listen("tcp", g.service.String()); err != nil {
				return fmt.Errorf("%w: %w", errPortTaken, err)
			}
			report(event{actor: "gate", kind: opened, text: fmt.Sprintf("all knocks arrived in order: port %d opens for %v", g.service.Port(), g.openFor)})
			tasks.Go(func() { acceptConnections(service, serve) })
		case <-end:
			service.Close()
			service = nil
			report(event{actor: "gate", kind: closed, text: fmt.Sprintf("%v have passed: port %d closes", g.openFor, g.service.Port())})
		case <-ctx.Done():
			return nil
		}
	}
}

// advance returns the stage of an address after a knock at a position of the sequence. A
// knock that comes too early resets the stage to 0. A repeated knock does not change it.
func advance(stage, position int) int {
	switch {
	case position == stage:
		return stage + 1
	case position > stage:
		return 0
	}
	return stage
}

// watch sends each knock at p to g.knocks until p is closed or ctx is done.
func (g *gate) watch(ctx context.Context, position int, p knockPort) {
	for {
		from, err := p.await()
		if err != nil {
			return
		}
		select {
		case g.knocks <- arrival{from, position}:
		case <-ctx.Done():
			return
		}
	}
}

// acceptConnections passes connections to serve until the listener is closed.
func acceptConnections(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		serve(c)
	}
}
