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

// sequence prints what a client sends.
type sequence struct {
	config
	at      string
	windows int // 0 if the flag is not given
	json    bool
}

func (c *sequence) flags(a *app, f *pflag.FlagSet) {
	c.config.flags(a, f)
	f.StringVar(&c.at, "at", "", "show the sequence for this `TIME`, such as 2006-01-02T15:04:05Z, instead of now")
	f.Func("windows", "show the sequences of `N` windows from that time on, as the server expects them", func(s string) (err error) {
		if c.windows, err = strconv.Atoi(s); err != nil || c.windows < 1 || c.windows > maxWindows {
			return fmt.Errorf("not a number from 1 to %d", maxWindows)
		}
		return nil
	})
	f.BoolVar(&c.json, "json", false, "print JSON; with --windows, a list")
}

const maxWindows = 100_000 // of --windows: more than eleven years of hours

// answer is what is said of one window.
type answer struct {
	Name      string    `json:"name"`
	Scheme    string    `json:"scheme"`
	Sequences []string  `json:"sequences"` // any one opens; the second half may be of the window before
	From      time.Time `json:"from,omitzero"`
	Until     time.Time `json:"until,omitzero"`
	Once      time.Time `json:"once,omitzero"` // for a single use at about that time

	text string // a line for each of Sequences
}

// add adds a sequence, and says when it is valid.
func (w *answer) add(sequence, valid string) {
	w.Sequences = append(w.Sequences, sequence)
	w.text += fmt.Sprintf("%s  (%s, %s)\n", sequence, w.Scheme, valid)
}

// packet is the knock of the scheme fwknop with its payload as text.
func packet(s knock.Sequence) string {
	step, payload := s[0], string(s[0].Payload)
	step.Payload = nil
	if quoted := strconv.Quote(payload); quoted != `"`+payload+`"` {
		payload = quoted
	}
	return step.String() + " " + payload
}

// run prints the sequence of a host: it is a secret, and asked for.
func (c *sequence) run(ctx context.Context, a *app, args []string) error {
	at := now()
	if c.at != "" {
		var err error
		if at, err = time.Parse(time.RFC3339, c.at); err != nil {
			return usageError("--at %q is not a time such as 2006-01-02T15:04:05Z", c.at)
		}
	}
	p, err := c.profile(ctx, a, args[0])
	if err != nil {
		return err
	}
	picker, err := p.Picker(ctx)
	if err != nil {
		return keyFailure(p, err)
	}
	var answers []answer
	var text strings.Builder
	for range max(c.windows, 1) {
		w := answer{Name: p.Name, Scheme: p.Scheme}
		if err := w.addAt(picker, at, c.windows == 0); err != nil {
			return keyFailure(p, err)
		}
		answers = append(answers, w)
		text.WriteString(w.text)
		if at = w.Until; at.IsZero() { // for ever
			break
		}
	}
	switch {
	case c.json && c.windows > 0:
		return a.printJSON(answers)
	case c.json:
		return a.printJSON(answers[0])
	}
	return a.print("%s", &text)
}

// addAt adds the sequences that open at a time. With overlap, it also adds the
// sequences of the previous window that still open.
func (w *answer) addAt(picker knock.Picker, at time.Time, overlap bool) error {
	client, scheduled := picker.(knock.Client)
	if !scheduled {
		r, err := picker.Round(at, netip.IPv4Unspecified(), netip.IPv4Unspecified(), 0)
		if err == nil {
			w.Once = at.UTC().Truncate(time.Second)
			w.add(packet(r.Send), "once, at about "+utc(w.Once))
		}
		return err
	}
	current, previous, window, err := client.Open(at)
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
			w.add(s.String(), "of the window before")
		}
	}
	return err
}
