package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// Report holds everything that one run of bench measured.
type Report struct {
	Machine Machine
	Runs    int // maximum number of runs of each contestant in each cell
	Cells   []Cell
	Streams []Stream
	Loaded  []Loaded
	Figures []Figure
	Targets []Target
	Missing []string `json:",omitempty"` // names of what was not measured, and the reasons
}

// Machine describes the machine that measured, and the date.
type Machine struct {
	Date   string // YYYY-MM-DD
	CPU    string // model of the processor
	Cores  int
	Kernel string
	Go     string
}

// Cell tells how long a contestant took from the start of its process to the SSH banner on
// its standard output. A run that took more than ten seconds failed.
type Cell struct {
	Link, Server, Contestant string
	Runs                     int
	Times                    []float64 // times of the successful runs, in ms
	Failures                 []string  `json:",omitempty"` // errors of the failed runs
}

func (c *Cell) name() string { return c.Link + "/" + c.Server + "/" + c.Contestant }

// Stream tells what a contestant needs to carry a stream on a link without delay. Each
// figure is the median of some runs.
type Stream struct {
	Contestant string
	Direction  string  // down or up
	CPU        float64 // CPU time, seconds per GiB, user and system together
	Rate       float64 // throughput, MB/s
	Memory     float64 // peak resident memory, MB
}

func (s *Stream) name() string { return "stream/" + s.Direction + "/" + s.Contestant }

// Loaded tells how long a key waits while the same ssh connection transfers data over a
// slow link. Each figure is the median of some runs.
type Loaded struct {
	Link    string
	Carrier string
	Echo    float64 // time of a key and its echo, ms
	Rate    float64 // throughput of the transfer, kB/s
}

// Figure is a single measured value.
type Figure struct {
	Name  string
	Value float64
	Unit  string
}

// figure returns the value of a figure, or NaN if it was not measured.
func (r *Report) figure(name string) float64 {
	for _, f := range r.Figures {
		if f.Name == name {
			return f.Value
		}
	}
	return math.NaN()
}

// The names of the figures that have targets.
const (
	figureStalled     = "stalled reader, CPU use"
	figureCrowd       = "connections at once"
	figureCrowdMemory = "connections at once, resident memory of the largest client"
	figureGuesses     = "a million guessed tokens, admitted addresses"
	figureEmit        = "a year of hourly windows, time to write the rules"
	figureLoad        = "a year of hourly windows, time to load the rules with nft"
	figureLoadMemory  = "a year of hourly windows, resident memory of nft"
	figureDay         = "a scanner's packet, rules for a day"
	figureYear        = "a scanner's packet, rules for a year"
	figureSize        = "binary, stripped"
)

// Target is a figure that portknock should reach, with the measured value.
type Target struct {
	What, Want, Got, Verdict string
}

// The verdicts.
const (
	met     = "met"
	missed  = "NOT MET"
	unknown = "not measured"
)

// table is a table of text for the report.
type table struct {
	title string
	head  []string
	rows  [][]string
}

func (r *Report) tables() []table {
	cells := table{
		title: "From the start of the process to the SSH banner",
		head:  []string{"link", "server", "contestant", "median ms", "p95 ms", "worst ms", "succeeded"},
	}
	for _, c := range r.Cells {
		cells.rows = append(cells.rows, []string{c.Link, c.Server, c.Contestant, formatNumber(median(c.Times)),
			formatNumber(quantile(c.Times, 0.95)), formatNumber(quantile(c.Times, 1)), fmt.Sprintf("%d of %d", len(c.Times), c.Runs)})
	}
	streams := table{"Streams", []string{"direction", "contestant", "CPU-s/GiB", "MB/s", "MB resident"}, nil}
	for _, s := range r.Streams {
		streams.rows = append(streams.rows, []string{s.Direction, s.Contestant, fmt.Sprintf("%.3f", s.CPU), formatNumber(s.Rate), formatNumber(s.Memory)})
	}
	loaded := table{"Keys during a transfer", []string{"link", "carrier", "ms for a key and its echo", "kB/s of the transfer"}, nil}
	for _, l := range r.Loaded {
		loaded.rows = append(loaded.rows, []string{l.Link, l.Carrier, formatNumber(l.Echo), formatNumber(l.Rate)})
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
	for _, t := range []table{cells, streams, loaded, figures, targets, missing} {
		if len(t.rows) > 0 {
			list = append(list, t)
		}
	}
	return list
}

// formatNumber formats a value with three digits or more, and NaN as a dash.
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

// headline returns the report's first line: the machine, the date and the number of runs.
func (r *Report) headline() string {
	m := r.Machine
	return fmt.Sprintf("%s, %d cores, Linux %s, %s, on %s; up to %d runs of each contestant, in turn", m.CPU, m.Cores, m.Kernel, m.Go, m.Date, r.Runs)
}

// print writes the report as aligned tables.
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
	fmt.Fprintf(&b, "# portknock and comparable programs\n\n%s.\n", r.headline())
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
