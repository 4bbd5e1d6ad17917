package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/spf13/pflag"
)

// sequence is the command that prints what a client sends.
type sequence struct {
	config
	startTime string // value of --at; "" for now
	windows   int    // value of --windows; 0 if the flag is not given
	json      bool
	as        string // value of --as; "" for the sequence itself
}

func (c *sequence) flags(a *app, f *pflag.FlagSet) {
	c.config.flags(a, f)
	f.StringVar(&c.startTime, "at", "", "use this `TIME` instead of now, such as 2006-01-02T15:04:05Z")
	f.Func("windows", "show the sequences of `N` windows, from now or from --at on, each\nwithout that of the previous window", func(s string) (err error) {
		if c.windows, err = strconv.Atoi(s); err != nil || c.windows < 1 || c.windows > maxWindows {
			return fmt.Errorf("not a number from 1 to %d", maxWindows)
		}
		return nil
	})
	f.BoolVar(&c.json, "json", false, "print JSON; with --windows, a list")
	f.StringVar(&c.as, "as", "", "print a script in the `LANGUAGE` sh, which sends these knocks from a\ncomputer without portknock; keep it secret")
}

const maxWindows = 100_000 // limit of --windows: more than 11 years of windows of an hour

// windowOutput is the output for one window.
type windowOutput struct {
	Name      string    `json:"name"`
	Scheme    string    `json:"scheme"`
	Sequences []string  `json:"sequences"` // each one opens; the second half may be of the previous window
	From      time.Time `json:"from,omitzero"`
	Until     time.Time `json:"until,omitzero"`
	Once      time.Time `json:"once,omitzero"` // about when the SPA packet, which works once, is valid

	text string // the text to print, a line for each of Sequences
}

// add adds a sequence. The text valid tells when the sequence is valid.
func (w *windowOutput) add(sequence, valid string) {
	w.Sequences = append(w.Sequences, sequence)
	w.text += fmt.Sprintf("%s  (%s, %s)\n", sequence, w.Scheme, valid)
}

// packet formats the knock of the scheme fwknop, with its payload as text.
func packet(s knock.Sequence) string {
	step, payload := s[0], string(s[0].Payload)
	step.Payload = nil
	if quoted := strconv.Quote(payload); quoted != `"`+payload+`"` {
		payload = quoted
	}
	return step.String() + " " + payload
}

// run prints the sequence of a host. The sequence is secret, but the user asks for it here.
func (c *sequence) run(ctx context.Context, a *app, args []string) error {
	switch {
	case c.as != "" && c.as != "sh":
		return usageError("--as %q: the only language is sh", c.as)
	case c.as != "" && (c.json || c.windows > 0):
		return usageError("--as cannot be used with --json or --windows")
	}
	t := now()
	if c.startTime != "" {
		var err error
		if t, err = time.Parse(time.RFC3339, c.startTime); err != nil {
			return usageError("--at %q is not a time such as 2006-01-02T15:04:05Z", c.startTime)
		}
	}
	p, err := c.profile(ctx, a, args[0])
	if err != nil {
		return err
	}
	if c.as != "" {
		return c.printScript(ctx, a, p, t)
	}
	picker, err := p.Picker(ctx)
	if err != nil {
		return keyFailure(p, err)
	}
	var windows []windowOutput
	var text strings.Builder
	for range max(c.windows, 1) {
		w := windowOutput{Name: p.Name, Scheme: p.Scheme}
		if err := w.addAt(picker, t, c.windows == 0); err != nil {
			return keyFailure(p, err)
		}
		windows = append(windows, w)
		text.WriteString(w.text)
		if t = w.Until; t.IsZero() { // this profile does not have windows
			break
		}
	}
	switch {
	case c.json && c.windows > 0:
		return a.printJSON(windows)
	case c.json:
		return a.printJSON(windows[0])
	}
	return a.print("%s", &text)
}

// addAt adds the sequences that open the port at the time t. With overlap, it also adds the
// sequences of the previous window that still open the port at t.
func (w *windowOutput) addAt(picker knock.Picker, t time.Time, overlap bool) error {
	client, scheduled := picker.(knock.Client)
	if !scheduled {
		r, err := picker.Round(t, netip.IPv4Unspecified(), netip.IPv4Unspecified(), 0)
		if err == nil {
			w.Once = t.UTC().Truncate(time.Second)
			w.add(packet(r.Send), "once, at about "+utc(w.Once))
		}
		return err
	}
	current, previous, window, err := client.Open(t)
	w.From, w.Until = window.Start, window.End
	valid := "always"
	if !w.Until.IsZero() {
		valid = utc(w.From) + " until " + utc(w.Until)
	}
	for _, s := range current {
		w.add(s.String(), valid)
	}
	for _, s := range previous {
		if overlap {
			w.add(s.String(), "of the previous window")
		}
	}
	return err
}
