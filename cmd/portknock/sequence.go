package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/spf13/pflag"
)

func sequenceFlags(a *app, f *pflag.FlagSet) {
	a.shared.profileFlags(f)
	f.StringVar(&a.at, "at", "", "the `TIME` to say it for, as 2006-01-02T15:04:05Z, instead of now")
	f.BoolVar(&a.json, "json", false, "print JSON")
}

// runSequence prints the sequence of a host: it is a secret, and asked for.
func runSequence(_ context.Context, a *app, args []string) error {
	if len(args) != 1 {
		return usageError("sequence takes one HOST")
	}
	at := time.Now()
	if a.at != "" {
		var err error
		if at, err = time.Parse(time.RFC3339, a.at); err != nil {
			return usageError("--at %q is not a time such as 2006-01-02T15:04:05Z", a.at)
		}
	}
	p, err := a.lookup(args[0])
	if err != nil {
		return err
	}
	schedule, err := p.Schedule()
	if err != nil {
		return &failure{code: exitProfile, err: err}
	}
	sequences, window, err := schedule.At(at)
	if err != nil {
		return &failure{code: exitProfile, err: fmt.Errorf("%s: %w", p.Name, err)}
	}
	if a.json {
		texts := make([]string, len(sequences))
		for i, s := range sequences {
			texts[i] = s.String()
		}
		return a.printJSON(struct {
			Name      string    `json:"name"`
			Scheme    string    `json:"scheme"`
			Sequences []string  `json:"sequences"`
			From      time.Time `json:"from,omitzero"`
			Until     time.Time `json:"until,omitzero"`
		}{p.Name, p.Scheme, texts, window.Start, window.End})
	}
	valid := "always"
	if window != (knock.Window{}) {
		valid = window.Start.UTC().Format(time.RFC3339) + " until " + window.End.UTC().Format(time.RFC3339)
	}
	for _, s := range sequences {
		if err := a.print("%s  (%s, %s)\n", s, p.Scheme, valid); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.stdout, format, args...)
	return err
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
