package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	runLabHost()
	os.Exit(m.Run())
}

func TestQuantileAndMedian(t *testing.T) {
	t.Parallel()
	twenty := make([]float64, 20)
	for i := range twenty {
		twenty[i] = float64(20 - i)
	}
	for _, tt := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{twenty, 0.95, 19}, {twenty, 0, 1}, {twenty, 1, 20}, {twenty, 0.5, 10},
		{[]float64{7}, 0.95, 7}, {[]float64{7}, 0, 7},
	} {
		if got := quantile(tt.values, tt.q); got != tt.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", tt.values, tt.q, got, tt.want)
		}
	}
	if twenty[0] != 20 {
		t.Error("quantile changes its argument")
	}
	if !math.IsNaN(quantile(nil, 0.5)) || !math.IsNaN(median(nil)) {
		t.Error("the quantile or median of no values is not NaN")
	}
	for want, values := range map[float64][]float64{2: {3, 1, 2}, 2.5: {4, 1, 3, 2}, 5: {5}} {
		if got := median(values); got != want {
			t.Errorf("median(%v) = %v, want %v", values, got, want)
		}
	}
}

// sample returns a report in which some targets are met, missed or not measured.
func sample() *Report {
	cell := func(link, server, contestant string, runs int, times ...float64) Cell {
		return Cell{Link: link, Server: server, Contestant: contestant, Runs: runs, Times: times}
	}
	const pk = "portknock, 3 knocks"
	return &Report{
		Machine: Machine{"2026-11-21", "Some CPU", 2, "6.18", "go1.26"},
		Runs:    2,
		Cells: []Cell{
			cell("clean", "open port", "nc", 2, 80, 82), cell("clean", "nftables", pk, 2, 82, 84),
			cell("clean", "nftables", "portknock, 10 knocks", 2, 90, 92),
			cell("loss 5 %", "open port", "nc", 2, 80, 1000), cell("loss 5 %", "nftables", pk, 2, 90),
		},
		Streams: []Stream{{"nc", "down", 1, 300, 2}, {"portknock", "down", 0.3, 900, 6}},
		Loaded:  []Loaded{{"upload at 250 kB/s", "ssh alone", 1000, 240}, {"upload at 250 kB/s", "ssh with portknock", 700, 230}},
		Figures: []Figure{{figureCrowd, 200, "of 200"}, {figureCrowdMemory, 12.5, "MB"}},
		Targets: []Target{{"binary, stripped", "at most 5 MB", "-", unknown}},
		Missing: []string{"clean/fwknopd/fwknop + nc: not installed"},
	}
}

func TestPrintAlignsTables(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := sample().print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Some CPU, 2 cores, Linux 6.18, go1.26, on 2026-11-21; up to 2 runs of each contestant, in turn\n",
		"link      server     contestant            median ms  p95 ms  worst ms  succeeded\n",
		"loss 5 %  nftables   portknock, 3 knocks   90.0       90.0    90.0      1 of 2\n",
		"down       portknock   0.300      900.0  6.00\n",
		"binary, stripped  at most 5 MB  -         not measured\n",
		"clean/fwknopd/fwknop + nc: not installed\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &b)
		}
	}
}

func TestWriteJSONAndMarkdown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for path, base := range map[string]string{dir: "bench", filepath.Join(dir, "other"): "other"} {
		r := sample()
		if err := r.write(path); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, base+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var back Report
		err = json.Unmarshal(text, &back)
		if err != nil || len(back.Targets) != len(r.Targets) || back.Cells[0].name() != "clean/open port/nc" {
			t.Errorf("the JSON file does not contain the report: %v: %s", err, text)
		}
		markdown, err := os.ReadFile(filepath.Join(dir, base+".md"))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"\n| link | server |",
			"\n| loss 5 % | nftables | portknock, 3 knocks | 90.0 | 90.0 | 90.0 | 1 of 2 |\n",
			"|---|---|",
		} {
			if !strings.Contains(string(markdown), want) {
				t.Errorf("%q is missing in\n%s", want, markdown)
			}
		}
	}
	if err := sample().write(filepath.Join(dir, "no", "such")); err == nil {
		t.Error("write into a missing folder did not fail")
	}
}

func TestParseFlags(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"--quick", "--only", "^clean/", "--output", "x"})
	if err != nil || o.runs != 1 || !o.wants("clean/a") || o.wants("unclean/a") || o.output != "x" {
		t.Errorf("parse of --quick --only --output: %+v, error %v", o, err)
	}
	if o, err := parse([]string{"--quick", "-n", "3"}); err != nil || o.runs != 3 || !o.wants("anything") {
		t.Errorf("parse of --quick -n 3: %+v, error %v", o, err)
	}
	if _, err := parse([]string{"--help"}); !errors.Is(err, errHelp) {
		t.Error(err)
	}
	for _, args := range [][]string{{"-n", "0"}, {"--only", "("}, {"x"}, {"--nothing"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("parse accepts %q", args)
		}
	}
}
