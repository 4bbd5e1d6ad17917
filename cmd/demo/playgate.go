package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"time"
)

// gateIntroduction follows the reason why this system cannot run the real firewall.
const gateIntroduction = `A small program, the gate, replaces the firewall here. It listens on the server's port only
after the right knocks. The gate is not a firewall: it rejects connections to a closed port,
but the real rules drop them without an answer.
`

// playGate starts the gate, the SSH server and ssh, prints the story, and stops all of them
// before it returns.
func (d *demo) playGate(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel(nil)
	st := newStory(d.out)

	g, err := newGate(gateOpenFor)
	if err != nil {
		return err
	}
	profile := fmt.Sprintf("Host demo\n    HostName %v\n    Sequence %v\n    KnockDelay %v\n", g.addr, g.sequence(), knockDelay)
	l, err := d.newLogin(ctx, g.service, profile, (*exec.Cmd).Start)
	if err != nil {
		g.close()
		return err
	}
	tasks.Go(func() {
		serve := func(c net.Conn) { tasks.Go(func() { l.server.serve(ctx, c) }) }
		if err := g.run(ctx, serve, func(e event) { st.report(ctx, e) }); err != nil {
			cancel(err)
		}
	})
	fmt.Fprint(d.out, "\n", l)

	st.began = time.Now()
	st.chapter("1. The port is closed")
	if err := st.tryPort(ctx, g.service); err != nil {
		return err
	}
	st.chapter("2. ssh demo hello")
	st.tell(l.actor, "starts; portknock sends the knocks")
	tasks.Go(func() { l.run(ctx, st) })
	if err := st.until(ctx, func() bool { return st.said > 0 }); err != nil {
		return err
	}
	st.chapter("3. The opening ends; the session stays open")
	if err := st.until(ctx, func() bool { return !st.open }); err != nil {
		return err
	}
	if err := st.tryPort(ctx, g.service); err != nil {
		return err
	}
	l.finish()
	if err := st.until(ctx, func() bool { return st.ended }); err != nil {
		return err
	}
	st.chapter("4. The port is closed again")
	return st.tryPort(ctx, g.service)
}

// tryPort connects to the service without knocks and prints how that fails. If it does not
// fail, another program has taken the port, and the error is errPortTaken.
func (s *story) tryPort(ctx context.Context, service netip.AddrPort) error {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	answer := answerOf(dialer.DialContext(ctx, "tcp", service.String()))
	switch {
	case answer == "connected":
		return errPortTaken
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	s.tell("you", "connect to %v without knocks: %s", service, answer)
	return nil
}
