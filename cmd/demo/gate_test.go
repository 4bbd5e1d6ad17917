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

// testGate is a gate that runs, and what it reports.
type testGate struct {
	t      *testing.T
	gate   *gate
	events chan event
	conns  chan net.Conn
	done   chan error
}

func startGate(t *testing.T, openFor time.Duration) *testGate {
	t.Helper()
	g, err := newGate(openFor)
	if err != nil {
		t.Fatal(err)
	}
	tg := &testGate{t, g, make(chan event, 100), make(chan net.Conn, 100), make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tg.done <- g.run(ctx, func(c net.Conn) { tg.conns <- c }, func(e event) { tg.events <- e })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return tg
}

// next waits for what the gate reports.
func (g *testGate) next() kind {
	g.t.Helper()
	select {
	case e := <-g.events:
		return e.kind
	case <-time.After(10 * time.Second):
		g.t.Fatal("the gate reports nothing")
		return 0
	}
}

// knock knocks at ports by their place in the sequence, each after the gate has
// noticed the one before, and returns how often the gate opened. In the end it
// knocks at the first port, which never opens the service: with that knock reported, all
// that came of the others has been.
func (g *testGate) knock(places ...int) (openings int) {
	g.t.Helper()
	for _, p := range append(slices.Clone(places), 0) {
		if err := knockAt(g.gate, p); err != nil {
			g.t.Fatal(err)
		}
		for g.next() != knocked {
			openings++
		}
	}
	return openings
}

// knockAt makes sure that a TCP knock arrives, as a lone SYN need not.
func knockAt(g *gate, place int) error {
	step := g.knockPorts[place].step
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

func TestGateOrder(t *testing.T) {
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
		{[]int{0, 2, 1, 2}, false},      // sent back, and not just held
		{[]int{0, 2, 0, 1, 2}, true},    // sent back, and again
		{[]int{2, 2, 0, 1, 2}, true},    // noise before
		{[]int{0, 0, 1, 0, 1, 2}, true}, // repeats, as of two clients at once
	} {
		t.Run(fmt.Sprint(test.knocks), func(t *testing.T) {
			g := startGate(t, time.Hour)
			if got := g.knock(test.knocks...) == 1; got != test.opens {
				t.Errorf("opened: %v", got)
			}
			if got := g.isOpen(); got != test.opens {
				t.Errorf("is open: %v", got)
			}
		})
	}
}

func TestGateCloses(t *testing.T) {
	g := startGate(t, 4*time.Second)
	if g.isOpen() {
		t.Error("open before the knocks")
	}
	for range 2 { // it opens again as well
		if g.knock(0, 1, 2) != 1 {
			t.Fatal("did not open")
		}
		ours, err := net.Dial("tcp", g.gate.service.String())
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		theirs := <-g.conns
		defer theirs.Close()
		if g.next() != closed {
			t.Fatal("did something else than close")
		}
		if g.isOpen() {
			t.Error("open afterwards")
		}
		if _, err := theirs.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := ours.Read(make([]byte, 1)); err != nil {
			t.Errorf("the connection has not survived: %v", err)
		}
	}
}

func TestGatePortTaken(t *testing.T) {
	g := startGate(t, time.Hour)
	l, err := net.Listen("tcp", g.gate.service.String())
	for tries := 0; err != nil && tries < 10; tries++ { // somebody was faster
		g = startGate(t, time.Hour)
		l, err = net.Listen("tcp", g.gate.service.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for place := range g.gate.knockPorts {
		if err := knockAt(g.gate, place); err != nil {
			t.Fatal(err)
		}
		g.next()
	}
	if err := <-g.done; !errors.Is(err, errTaken) {
		t.Errorf("error %v", err)
	}
}

// No scan finds the sequence, whichever ports the system has chosen.
func TestGateSequence(t *testing.T) {
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
