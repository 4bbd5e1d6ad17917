package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/portknock/portknock/proxy"
	"golang.org/x/term"
)

// This file tells a user what a Dialer does: one line after some seconds, one line for each
// round with -v, and all events with -vv.

// slowAfter is how long a login may take before portknock tells a user at a terminal that it
// still tries.
const slowAfter = 2 * time.Second

// watch tells the user what the Dialer does from now until the returned function is called. No
// event may come after that.
func (d *hostDialer) watch(log *logger) (done func()) {
	r := &rounds{log: log, current: map[netip.AddrPort]*round{}}
	note := d.Trace
	d.Trace = func(e proxy.Event) {
		note(e)
		log.trace(e)
		r.add(e)
	}
	stop := func() bool { return true }
	if isTerminal(os.Stderr) {
		activity, end := "knocking", time.Now().Add(d.Timeout)
		if d.Knock == nil {
			activity = "trying"
		}
		stop = time.AfterFunc(slowAfter, func() {
			log.say(always, "%s: not connected yet; still %s until %s", d.host, activity, end.Format(time.TimeOnly))
		}).Stop
	}
	return func() {
		stop()
		for to := range r.current {
			r.print(to)
		}
	}
}

// isTerminal reports whether a file is a terminal. It does not make the file blocking, as Fd
// would.
func isTerminal(f *os.File) (is bool) {
	if c, err := f.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { is = term.IsTerminal(int(fd)) })
	}
	return is
}

// rounds makes a line of each round of each target.
type rounds struct {
	log     *logger
	current map[netip.AddrPort]*round // round of each target that has no line yet
}

// round is what has happened in a round of a target.
type round struct {
	number  int
	began   time.Duration
	sent    []string // what has left, in order
	answers []string // what has come back in this round, also to the SYNs of earlier rounds
}

// add adds an event to its round. The first event of the next round ends a round.
func (r *rounds) add(e proxy.Event) {
	if e.Kind == proxy.Resolved || r.log.level >= details { // with -vv, the events say it all
		return
	}
	now := r.current[e.To]
	if now == nil || e.Round > now.number {
		r.print(e.To)
		now = &round{number: e.Round, began: e.At}
		r.current[e.To] = now
	}
	switch answer := fmt.Sprintf("%v after %s", e.Kind, milliseconds(e.At-now.began)); {
	case e.Kind == proxy.Lost: // no answer
	case e.Err != nil:
		now.answers = append(now.answers, answer+": "+strings.TrimPrefix(withoutAddress(e.Err).Error(), "connect: "))
	case e.Kind == proxy.Connected:
		now.answers = append(now.answers, answer)
	case e.Kind == proxy.Dialing:
		now.sent = append(now.sent, "SYN")
	default:
		now.sent = append(now.sent, string(e.Kind))
	}
}

// print prints the line of a target's current round.
func (r *rounds) print(to netip.AddrPort) {
	now := r.current[to]
	if now == nil {
		return
	}
	if len(now.answers) == 0 {
		now.answers = []string{"no answer"}
	}
	text := strings.Join(now.answers, ", ")
	if len(now.sent) > 0 {
		text = strings.Join(now.sent, ", ") + "; " + text
	}
	r.log.say(verbose, "%s: round %d to %v: %s", milliseconds(now.began), now.number, to, text)
}

// trace prints an event. The addresses of the host are of interest with -v, too.
func (l *logger) trace(e proxy.Event) {
	level, text := details, fmt.Sprintf("round %d: %v %v", e.Round, e.Kind, e.To)
	switch {
	case e.Kind == proxy.Resolved:
		level, text = verbose, "resolved: "+strings.Trim(fmt.Sprint(e.Addrs), "[]")
	case e.Err != nil:
		text += ": " + withoutAddress(e.Err).Error()
	case e.From.IsValid():
		text += " from " + e.From.String()
	}
	l.say(level, "%s: %s", milliseconds(e.At), text)
}

// withoutAddress removes the description of an operation from an error of package net. It has
// the address, which the line has already, or which is a knock.
func withoutAddress(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
