package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
)

// testGate is a running gate, with its events and the connections that it accepted.
type testGate struct {
	t      *testing.T
	gate   *gate
	events chan event
	conns  chan net.Conn
	ends   chan time.Time // a value ends the opening
	done   chan error     // receives the result of gate.run
}

// startGate starts a gate whose openings last until the test ends them.
func startGate(t *testing.T) *testGate {
	t.Helper()
	g, err := newGate(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	tg := &testGate{t, g, make(chan event, 100), make(chan net.Conn, 100), make(chan time.Time), make(chan error, 1)}
	endOpeningsBy(t, g.openFor, tg.ends)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tg.done <- g.run(ctx, func(c net.Conn) { tg.conns <- c }, func(e event) { tg.events <- e })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return tg
}

// endOpeningsBy makes values of a channel end openings, in place of the clock.
func endOpeningsBy(t *testing.T, openFor time.Duration, ends <-chan time.Time) {
	after = func(d time.Duration) <-chan time.Time {
		if d != openFor {
			t.Errorf("an opening lasts for %v, want %v", d, openFor)
		}
		return ends
	}
	t.Cleanup(func() { after = time.After })
}

// next waits for the gate's next event and returns the kind of the event.
func (g *testGate) next() kind {
	g.t.Helper()
	select {
	case e := <-g.events:
		return e.kind
	case <-time.After(time.Minute):
		g.t.Fatal("the gate reported no event within a minute")
		return 0
	}
}

// knock sends the knocks at these positions of the sequence and returns how often the gate
// opened. It sends each knock after the gate has reported the knock before.
//
// At the end, knock knocks at the first port, which never opens the service. When the gate
// has reported this last knock, it has reported all results of the other knocks.
func (g *testGate) knock(positions ...int) (openings int) {
	g.t.Helper()
	for _, p := range append(slices.Clone(positions), 0) {
		if err := knockAt(g.gate, p); err != nil {
			g.t.Fatal(err)
		}
		for g.next() != knocked {
			openings++
		}
	}
	return openings
}

// knockAt sends the knock at one position of the sequence. It makes a TCP knock a full
// connection, because the gate does not always notice a lone SYN.
func knockAt(g *gate, position int) error {
	step := g.knockPorts[position].step
	if step.Transport == knock.UDP {
		return knock.Sender{From: g.addr}.Send(context.Background(), g.addr, knock.Sequence{step}, 0)
	}
	c, err := net.Dial("tcp", net.JoinHostPort(g.addr.String(), fmt.Sprint(step.Port)))
	if err == nil {
		c.Close()
	}
	return err
}

func (g *testGate) isOpen() bool {
	c, err := net.Dial("tcp", g.gate.service.String())
	if err == nil {
		c.Close()
	}
	return err == nil
}

func TestGateOpensOnlyAfterKnocksInOrder(t *testing.T) {
	for _, test := range []struct {
		knocks []int
		opens  bool
	}{
		{nil, false},
		{[]int{0, 1, 2}, true},
		{[]int{0, 2, 1}, false},
		{[]int{1, 0, 2}, false},
		{[]int{1, 2, 0}, false},
		{[]int{2, 0, 1}, false},
		{[]int{2, 1, 0}, false},
		{[]int{0, 1}, false},
		{[]int{0, 2}, false},
		{[]int{1, 2}, false},
		{[]int{0, 2, 1, 2}, false},      // a knock that comes too early resets the stage
		{[]int{0, 2, 0, 1, 2}, true},    // after a reset, the whole sequence opens
		{[]int{2, 2, 0, 1, 2}, true},    // wrong knocks before the sequence
		{[]int{0, 0, 1, 0, 1, 2}, true}, // repeated knocks, as from two clients at once
	} {
		t.Run(fmt.Sprint(test.knocks), func(t *testing.T) {
			g := startGate(t)
			if got := g.knock(test.knocks...) == 1; got != test.opens {
				t.Errorf("the gate reported one opening: %v", got)
			}
			if got := g.isOpen(); got != test.opens {
				t.Errorf("the port is open afterwards: %v", got)
			}
		})
	}
}

func TestGateClosesPortButKeepsConnections(t *testing.T) {
	g := startGate(t)
	if g.isOpen() {
		t.Error("the port is open before the knocks")
	}
	for range 2 { // the gate can open the port again after it has closed the port
		if g.knock(0, 1, 2) != 1 {
			t.Fatal("the gate did not open the port after the sequence")
		}
		clientConn, err := net.Dial("tcp", g.gate.service.String())
		if err != nil {
			t.Fatal(err)
		}
		defer clientConn.Close()
		serverConn := <-g.conns
		defer serverConn.Close()
		g.ends <- time.Now()
		if g.next() != closed {
			t.Fatal("the gate reported another event than closing the port")
		}
		if g.isOpen() {
			t.Error("the port is open after the gate has closed it")
		}
		if _, err := serverConn.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := clientConn.Read(make([]byte, 1)); err != nil {
			t.Errorf("the connection did not stay open when the gate closed the port: %v", err)
		}
	}
}

func TestGateReportsTakenPort(t *testing.T) {
	g := startGate(t)
	l, err := net.Listen("tcp", g.gate.service.String())
	for tries := 0; err != nil && tries < 10; tries++ { // another program took the port first
		g = startGate(t)
		l, err = net.Listen("tcp", g.gate.service.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for position := range g.gate.knockPorts {
		if err := knockAt(g.gate, position); err != nil {
			t.Fatal(err)
		}
		g.next()
	}
	if err := <-g.done; !errors.Is(err, errPortTaken) {
		t.Errorf("the gate ended with error %v, want errPortTaken", err)
	}
}

// TestScanCannotFindGateSequence: a scan does not find the sequence, whichever ports the
// system has chosen.
func TestScanCannotFindGateSequence(t *testing.T) {
	for range 50 {
		g, err := newGate(time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if seq := g.sequence(); seq.SweepFinds(func(knock.Step) bool { return true }) {
			t.Errorf("a scan finds %v", seq)
		}
		g.close()
	}
}
