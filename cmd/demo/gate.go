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

// gate stands in for the firewall of a server. A firewall needs root and sees
// every packet; the gate needs nothing, and sees those to the ports it listens
// on. Nothing listens on the service's port until somebody has knocked.
type gate struct {
	addr       netip.Addr
	knockPorts []knockPort // in the order in which to knock
	service    netip.AddrPort
	openFor    time.Duration
	knocks     chan arrival
}

// knockPort is one port to knock at.
type knockPort struct {
	step  knock.Step
	await func() (from netip.Addr, err error) // returns at the next knock
	close func() error
}

// arrival is a knock at a port.
type arrival struct {
	from  netip.Addr
	place int // of the port in the sequence, from 0
}

// errTaken says that another program has got hold of the service's port while
// nothing listened on it. That is rare, and another port helps.
var errTaken = errors.New("another program has taken the port")

// transports is what the gate listens for. portknock sends a TCP knock as one
// SYN and closes the socket. On Linux a listener on loopback has answered by
// then and reports a connection; where the answer comes later, it finds nobody,
// and the listener never hears of the knock as a firewall would.
func transports() []knock.Transport {
	if runtime.GOOS == "linux" {
		return []knock.Transport{knock.UDP, knock.TCP, knock.UDP}
	}
	return []knock.Transport{knock.UDP, knock.UDP, knock.UDP}
}

// newGate returns a gate on loopback, with ports that the system has chosen. It
// opens the service's port for openFor at a time.
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
	// The gate overlooks all ports but its own, so a scan would find any
	// sequence that goes steadily up or down.
	overlooksAll := func(knock.Step) bool { return true }
	for g.sequence().SweepFinds(overlooksAll) {
		rand.Shuffle(len(g.knockPorts), func(i, j int) {
			g.knockPorts[i], g.knockPorts[j] = g.knockPorts[j], g.knockPorts[i]
		})
	}
	return g, nil
}

// freePort returns a TCP port of loopback on which nothing listens, over IPv6
// only on a machine without IPv4.
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
		buf := make([]byte, 1<<16) // Windows reports a datagram that does not fit as an error
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

// sequence returns the knocks that open.
func (g *gate) sequence() knock.Sequence {
	seq := make(knock.Sequence, len(g.knockPorts))
	for i, p := range g.knockPorts {
		seq[i] = p.step
	}
	return seq
}

// close is for a gate that does not run.
func (g *gate) close() {
	for _, p := range g.knockPorts {
		p.close()
	}
}

// run guards the port until ctx is done: then all that it listens on is closed.
// Connections go to serve, which must not block, and are its own from then on.
// What happens goes to report, in order.
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
	timer := time.NewTimer(0)
	timer.Stop()
	stages := make(map[netip.Addr]int) // how many of the knocks an address has made
	for {
		select {
		case k := <-g.knocks:
			report(event{who: "gate", kind: knocked, text: fmt.Sprintf("knock at %v from %v", g.knockPorts[k.place].step, k.from)})
			if stages[k.from] = advance(stages[k.from], k.place); stages[k.from] < len(g.knockPorts) {
				continue
			}
			delete(stages, k.from)
			timer.Reset(g.openFor)
			if service != nil {
				continue
			}
			var err error
			if service, err = net.Listen("tcp", g.service.String()); err != nil {
				return fmt.Errorf("%w: %w", errTaken, err)
			}
			report(event{who: "gate", kind: opened, text: fmt.Sprintf("all in order: port %d opens for %v", g.service.Port(), g.openFor)})
			tasks.Go(func() { admit(service, serve) })
		case <-timer.C:
			service.Close()
			service = nil
			report(event{who: "gate", kind: closed, text: fmt.Sprintf("%v are over: port %d closes", g.openFor, g.service.Port())})
		case <-ctx.Done():
			return nil
		}
	}
}

// advance returns how many knocks are made after one more. One that comes too
// early sends back to the start; one that was made before changes nothing.
func advance(stage, place int) int {
	switch {
	case place == stage:
		return stage + 1
	case place > stage:
		return 0
	}
	return stage
}

// watch passes on the knocks at a port until the port is closed.
func (g *gate) watch(ctx context.Context, place int, p knockPort) {
	for {
		from, err := p.await()
		if err != nil {
			return
		}
		select {
		case g.knocks <- arrival{from, place}:
		case <-ctx.Done():
			return
		}
	}
}

// admit accepts connections until the listener is closed.
func admit(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		serve(c)
	}
}
