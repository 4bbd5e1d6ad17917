package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// Report is what was measured in one run.
type Report struct {
	Machine Machine
	Runs    int // of each contestant in each cell, at most
	Cells   []Cell
	Streams []Stream
	Figures []Figure
	Targets []Target
	Missing []string `json:",omitempty"` // what was not measured, and why
}

// Machine is where.
type Machine struct {
	Date   string // YYYY-MM-DD
	CPU    string // model
	Cores  int
	Kernel string
	Go     string
}

// Cell is how long a contestant took from the start of its process to the SSH
// banner on its standard output. A run that took more than ten seconds failed.
type Cell struct {
	Link, Server, Contestant string
	Runs                     int
	Times                    []float64 // of the runs that succeeded, in ms
	Failures                 []string  `json:",omitempty"` // of the others, what they said
}

func (c *Cell) name() string { return c.Link + "/" + c.Server + "/" + c.Contestant }

// Stream is what it costs a contestant to carry a stream on a link that adds
// nothing. Each figure is the median of some runs.
type Stream struct {
	Contestant string
	Direction  string  // down or up
	CPU        float64 // seconds per GiB, of user and system together
	Rate       float64 // MB/s
	Memory     float64 // MB, the most that was resident
}

func (s *Stream) name() string { return "stream/" + s.Direction + "/" + s.Contestant }

// Figure is a single one.
type Figure struct {
	Name  string
	Value float64
	Unit  string
}

// figure returns a figure, or NaN.
func (r *Report) figure(name string) float64 {
	for _, f := range r.Figures {
		if f.Name == name {
			return f.Value
		}
	}
	return math.NaN()
}

// The figures that targets are about.
const (
	figureStalled     = "a stalled reader, CPU"
	figureCrowd       = "connected at once"
	figureCrowdMemory = "connected at once, resident memory of the largest"
	figureGuesses     = "a million guesses at a token"
	figureEmit        = "a year of hourly windows, to write"
	figureLoad        = "a year of hourly windows, to load by nft"
	figureLoadMemory  = "a year of hourly windows, resident memory of nft"
	figureDay         = "a stranger's packet, rules of a day"
	figureYear        = "a stranger's packet, rules of a year"
	figureSize        = "binary, stripped"
)

// Target is what portknock is to reach, beside what was measured.
type Target struct {
	What, Want, Got, Verdict string
}

// The verdicts.
const (
	met     = "met"
	missed  = "NOT MET"
	unknown = "not measured"
)

// table is a heading and rows, all cells text.
type table struct {
	title string
	head  []string
	rows  [][]string
}

func (r *Report) tables() []table {
	cells := table{
		title: "From the start of the process to the SSH banner",
		head:  []string{"link", "server", "contestant", "median ms", "p95 ms", "succeeded"},
	}
	for _, c := range r.Cells {
		cells.rows = append(cells.rows, []string{c.Link, c.Server, c.Contestant, formatNumber(median(c.Times)),
			formatNumber(quantile(c.Times, 0.95)), fmt.Sprintf("%d of %d", len(c.Times), c.Runs)})
	}
	streams := table{"A stream", []string{"direction", "contestant", "CPU-s/GiB", "MB/s", "MB resident"}, nil}
	for _, s := range r.Streams {
		streams.rows = append(streams.rows, []string{s.Direction, s.Contestant, fmt.Sprintf("%.3f", s.CPU), formatNumber(s.Rate), formatNumber(s.Memory)})
	}
	figures := table{"Footprint", []string{"what", "value", "unit"}, nil}
	for _, f := range r.Figures {
		figures.rows = append(figures.rows, []string{f.Name, formatNumber(f.Value), f.Unit})
	}
	targets := table{"Targets", []string{"what", "target", "measured", "verdict"}, nil}
	for _, t := range r.Targets {
		targets.rows = append(targets.rows, []string{t.What, t.Want, t.Got, t.Verdict})
	}
	missing := table{"Not measured", []string{"what"}, nil}
	for _, m := range r.Missing {
		missing.rows = append(missing.rows, []string{m})
	}
	var list []table
	for _, t := range []table{cells, streams, figures, targets, missing} {
		if len(t.rows) > 0 {
			list = append(list, t)
		}
	}
	return list
}

// number prints a value with three digits or more, and NaN as a dash.
func formatNumber(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 1000:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// where is the report's headline.
func (r *Report) headline() string {
	m := r.Machine
	return fmt.Sprintf("%s, %d cores, Linux %s, %s, on %s; up to %d runs of each, in turn", m.CPU, m.Cores, m.Kernel, m.Go, m.Date, r.Runs)
}

// print writes aligned tables.
func (r *Report) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, r.headline())
	for _, t := range r.tables() {
		fmt.Fprintf(tw, "\n%s\n", t.title)
		for _, row := range append([][]string{t.head}, t.rows...) {
			fmt.Fprintln(tw, strings.Join(row, "\t"))
		}
	}
	return tw.Flush()
}

func (r *Report) printMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# portknock beside its peers\n\n%s.\n", r.headline())
	for _, t := range r.tables() {
		fmt.Fprintf(&b, "\n## %s\n\n| %s |\n|%s\n", t.title, strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
		for _, row := range t.rows {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) printJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	return e.Encode(r)
}
