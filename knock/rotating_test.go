package knock

import (
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// rotatingVector is an example of the scheme rotating. Vectors never change, because servers
// run these sequences.
type rotatingVector struct {
	About    string
	Key      string
	Host     string // if not empty, the key of this host is derived from Key
	Time     int64  // Unix time in seconds
	Period   int64  // length of a window in seconds
	Protocol string
	First    uint16
	Last     uint16
	Knocks   int
	Sequence string
}

const rotatingVectorFile = "../testdata/vectors/rotating.json"

func rotatingVectors(t *testing.T) (all []rotatingVector) {
	t.Helper()
	text, err := os.ReadFile(rotatingVectorFile)
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil || len(all) < 20 {
		t.Fatalf("got %d vectors, error %v; want at least 20", len(all), err)
	}
	return all
}

func TestRotatingMatchesVectors(t *testing.T) {
	for _, v := range rotatingVectors(t) {
		transport, err := ParseTransport(v.Protocol)
		if err != nil {
			t.Fatal(err)
		}
		key := mustKey(t, v.Key)
		if v.Host != "" {
			key = key.Derive(v.Host)
		}
		ports := PortRange{transport, v.First, v.Last}
		r := Rotating{Key: key, Ports: ports, Knocks: v.Knocks, Period: time.Duration(v.Period) * time.Second}
		// The sequence stays the same for a whole second.
		for _, now := range []time.Time{time.Unix(v.Time, 0), time.Unix(v.Time, 999_999_999)} {
			seqs, w, err := r.At(now)
			if err != nil || len(seqs) != 1 || seqs[0].String() != v.Sequence {
				t.Errorf("%+v:\ngot sequences %v, error %v", v, seqs, err)
			}
			if now.Before(w.Start) || !now.Before(w.End) || w.End.Sub(w.Start) != r.Period || w.Start.Unix()%v.Period != 0 {
				t.Errorf("%+v:\ngot the wrong window %v", v, w)
			}
		}
	}
}

// TestPythonMatchesRotatingVectors compares the Python in testdata/vectors with the vectors.
func TestPythonMatchesRotatingVectors(t *testing.T) {
	var want []string
	for _, v := range rotatingVectors(t) {
		want = append(want, v.Sequence)
	}
	if got := pythonOutput(t, rotatingVectorFile); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

// pythonOutput returns the lines that the Python in testdata/vectors prints for a file of
// vectors.
func pythonOutput(t *testing.T, path string) []string {
	t.Helper()
	needProgram(t, "python3")
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c := exec.Command("python3", "../testdata/vectors/portknock.py")
	c.Stdin, c.Stderr = file, os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(strings.ReplaceAll(string(out), "\r", "")), "\n")
}

// skipForMissing skips a test because a program is missing. The test fails instead if
// PORTKNOCK_LAB is "require".
func skipForMissing(t *testing.T, why any) {
	t.Helper()
	if os.Getenv("PORTKNOCK_LAB") == "require" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// needProgram calls skipForMissing if the program name is not installed.
func needProgram(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		skipForMissing(t, err)
	}
}

func exampleRotating(t testing.TB) Rotating {
	return Rotating{Key: mustKey(t, exampleKey), Ports: PortRange{UDP, 20000, 59999}, Knocks: 5, Period: time.Hour}
}

// The sequence stays the same from the first to the last moment of a window, in every time
// zone.
func TestRotatingSequenceLastsOneWindow(t *testing.T) {
	r := exampleRotating(t)
	start := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC)
	sequenceAt := func(now time.Time) string {
		seqs, w, err := r.At(now)
		if err != nil || len(seqs) != 1 || w != WindowAt(now, r.Period) {
			t.Fatalf("At(%v): got sequences %v, window %v, error %v", now, seqs, w, err)
		}
		return seqs[0].String()
	}
	want := sequenceAt(start)
	if want == sequenceAt(start.Add(-1)) || want == sequenceAt(start.Add(time.Hour)) {
		t.Error("two windows have the same sequence")
	}
	for _, after := range []time.Duration{1, 30 * time.Minute, time.Hour - 1} {
		if sequenceAt(start.Add(after).In(time.FixedZone("", 5*3600+45*60))) != want {
			t.Errorf("the sequence changed within %v of the start of its window", after)
		}
	}
}

func TestRotatingChecksItsFields(t *testing.T) {
	for _, tt := range []struct {
		change func(*Rotating)
		want   string
	}{
		{func(r *Rotating) { r.Key = Key{} }, "no key"},
		{func(r *Rotating) { r.Key = KeyFrom(make([]byte, 31)) }, "the key has 31 bytes; at least 32 are needed"},
		{func(r *Rotating) { r.Period = 0 }, "the Period (0s) must be whole seconds, at least 1s"},
		{func(r *Rotating) { r.Period = 1500 * time.Millisecond }, "the Period (1.5s) must be whole seconds, at least 1s"},
		{func(r *Rotating) { r.Knocks = 0 }, "0 knocks: expected 1 to 32"},
		{func(r *Rotating) { r.Knocks = 33 }, "33 knocks: expected 1 to 32"},
		{func(r *Rotating) { r.Ports = PortRange{} }, "no ports to draw from"},
		{func(r *Rotating) { r.Ports = PortRange{UDP, 5, 4} }, "no ports to draw from"},
		{func(r *Rotating) { r.Ports = PortRange{UDP, 5, 8} }, "4 ports are too few for 5 knocks"},
	} {
		r := exampleRotating(t)
		tt.change(&r)
		if seqs, _, err := r.At(time.Now()); err == nil || err.Error() != tt.want || seqs != nil {
			t.Errorf("got sequences %v, error %v; want the error %s", seqs, err, tt.want)
		}
	}
}

// TestRotatingIsUniform draws 10,000 sequences from each of several ranges whose size does
// not divide 65536. The ports of a sequence must differ and must be in the range. All
// ports must be equally likely.
func TestRotatingIsUniform(t *testing.T) {
	for _, ports := range []PortRange{{UDP, 20000, 59999}, {TCP, 1, 65535}, {TCP, 1, 32769}, {UDP, 10000, 10999}, {UDP, 40000, 40009}} {
		r := exampleRotating(t)
		r.Ports = ports
		const cells = 10 // parts of the range, with sizes as equal as possible
		var first, all [cells]float64
		for n := range 10_000 {
			seqs, _, err := r.At(time.Unix(int64(n)*3600+1800, 0))
			if err != nil {
				t.Fatal(err)
			}
			seen := map[uint16]bool{}
			for i, step := range seqs[0] {
				if !ports.Contains(step) || seen[step.Port] || len(step.Payload) > 0 {
					t.Fatalf("ports %v: %v has a repeated or foreign port, or a payload", ports, seqs[0])
				}
				seen[step.Port] = true
				cell := int(step.Port-ports.First) * cells / ports.size()
				all[cell]++
				if i == 0 {
					first[cell]++
				}
			}
			if len(seen) != r.Knocks {
				t.Fatalf("ports %v: %v has a wrong number of knocks", ports, seqs[0])
			}
		}
		for name, counts := range map[string][cells]float64{"first knocks": first, "knocks": all} {
			var sum, chi float64
			for _, n := range counts {
				sum += n
			}
			for cell, n := range counts {
				share := float64((cell+1)*ports.size()/cells-cell*ports.size()/cells) / float64(ports.size())
				chi += (n - share*sum) * (n - share*sum) / (share * sum)
			}
			// With 9 degrees of freedom, chi is above 27.88 in one of a thousand cases.
			if chi > 27.88 {
				t.Errorf("ports %v, %s: chi-squared is %.1f, want at most 27.88", ports, name, chi)
			}
		}
	}
}
