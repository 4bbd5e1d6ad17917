package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

// noAnswer is the answer of a guarded port to a client that has not knocked.
const noAnswer = "no answer"

// event is something that happens during a login.
type event struct {
	time  time.Time
	kind  kind
	actor string // who acts: you, attacker, server, gate, ssh, or go for Go's SSH client
	text  string
	err   error // how ssh failed; set only if kind is ended
}

type kind int

const (
	knocked kind = iota // the gate received a knock
	opened              // the gate opened the service's port
	closed              // the gate closed the service's port
	said                // the SSH server sent a line, and ssh printed it
	ended               // ssh ended
)

// story prints what happens, in columns: the time since the story began, who acts, and what
// this actor does.
type story struct {
	out    io.Writer
	color  bool
	began  time.Time // set when the first chapter begins
	events chan event

	open  bool // the service's port is open; only the gate reports it
	said  int  // number of lines that ssh has printed
	ended bool // ssh has ended
}

func newStory(out io.Writer) *story {
	return &story{out: out, color: isColorTerminal(out), events: make(chan event, 16)}
}

// isColorTerminal reports whether out is a terminal that shows colors, and the user wants
// them. TERM is not set in a Windows console, which may not show them.
func isColorTerminal(out io.Writer) bool {
	f, isFile := out.(*os.File)
	kind := os.Getenv("TERM")
	return isFile && os.Getenv("NO_COLOR") == "" && kind != "" && kind != "dumb" && term.IsTerminal(int(f.Fd()))
}

// colors has the terminal's code for each actor, and for titles.
var colors = map[string]string{"you": "32", "ssh": "32", "go": "32", "attacker": "31", "server": "36", "gate": "36", "title": "1"}

// paint returns text in the color of an actor.
func (s *story) paint(actor, text string) string {
	if !s.color {
		return text
	}
	return "\x1b[" + colors[actor] + "m" + text + "\x1b[0m"
}

func (s *story) chapter(title string) { fmt.Fprintf(s.out, "\n%s\n", s.paint("title", title)) }

// tell prints what an actor does now.
func (s *story) tell(actor, format string, args ...any) {
	s.tellEvent(event{time: time.Now(), actor: actor, text: fmt.Sprintf(format, args...)})
}

func (s *story) tellEvent(e event) {
	fmt.Fprintf(s.out, "%6d ms  %s  %s\n", e.time.Sub(s.began).Milliseconds(), s.paint(e.actor, fmt.Sprintf("%-8s", e.actor)), e.text)
}

// report passes an event to [story.until], at the latest when ctx is done.
func (s *story) report(ctx context.Context, e event) {
	e.time = time.Now()
	select {
	case s.events <- e:
	case <-ctx.Done():
	}
}

// until prints events until done returns true. It calls done before each event.
func (s *story) until(ctx context.Context, done func() bool) error {
	for !done() {
		select {
		case e := <-s.events:
			switch e.kind {
			case opened:
				s.open = true
			case closed:
				s.open = false
			case said:
				s.said++
			case ended:
				if ctx.Err() != nil {
					return context.Cause(ctx) // the end of ctx has ended ssh
				}
				if e.err != nil {
					return e.err
				}
				s.ended = true
			}
			s.tellEvent(e)
			if s.ended && !done() {
				return errors.New("ssh ended before the SSH server had sent everything")
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// answerOf returns what a connection attempt tells a client. It closes the connection.
func answerOf(c net.Conn, err error) string {
	if err == nil {
		c.Close()
		return "connected"
	}
	if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
		return noAnswer
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "connection refused"
	}
	return err.Error()
}

// indent puts four spaces before each line of text.
func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n    ") + "\n"
}
