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

// vector is one example of the scheme rotating. They are fixed: servers run what
// they say.
type vector struct {
	About    string
	Key      string
	Host     string // if not empty, the key is this host's own
	Time     int64  // Unix
	Period   int64  // seconds
	Protocol string
	First    uint16
	Last     uint16
	Knocks   int
	Sequence string
}

const vectorFile = "../testdata/vectors/rotating.json"

func vectors(t *testing.T) (all []vector) {
	t.Helper()
	text, err := os.ReadFile(vectorFile)
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil || len(all) < 20 {
		t.Fatalf("%d vectors, %v", len(all), err)
	}
	return all
}

func TestRotatingVectors(t *testing.T) {
	for _, v := range vectors(t) {
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
		// Within a second nothing changes.
		for _, at := range []time.Time{time.Unix(v.Time, 0), time.Unix(v.Time, 999_999_999)} {
			seqs, w, err := r.At(at)
			if err != nil || len(seqs) != 1 || seqs[0].String() != v.Sequence {
				t.Errorf("%+v:\ngot %v, %v", v, seqs, err)
			}
			if at.Before(w.Start) || !at.Before(w.End) || w.End.Sub(w.Start) != r.Period || w.Start.Unix()%v.Period != 0 {
				t.Errorf("%+v: window %v", v, w)
			}
		}
	}
}

// TestRotatingReference holds the Python in testdata/vectors against them.
func TestRotatingReference(t *testing.T) {
	var want []string
	for _, v := range vectors(t) {
		want = append(want, v.Sequence)
	}
	if got := reference(t, vectorFile); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

// reference is what the Python in testdata/vectors makes of a file of vectors.
func reference(t *testing.T, path string) []string {
	t.Helper()
	program(t, "python3")
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

// missing skips a test for want of a program, where that is allowed.
func missing(t *testing.T, why any) {
	t.Helper()
	if os.Getenv("PORTKNOCK_LAB") == "require" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// program skips a test that needs one which is not there.
func program(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(t, err)
	}
}

func rotating(t testing.TB) Rotating {
	return Rotating{Key: mustKey(t, exampleKey), Ports: PortRange{UDP, 20000, 59999}, Knocks: 5, Period: time.Hour}
}

// The sequence is the window's from its first moment to its last, whatever the
// zone of the clock.
func TestRotatingWindow(t *testing.T) {
	r := rotating(t)
	start := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC)
	of := func(at time.Time) string {
		seqs, w, err := r.At(at)
		if err != nil || len(seqs) != 1 || w != WindowAt(at, r.Period) {
			t.Fatalf("%v: %v, %v, %v", at, seqs, w, err)
		}
		return seqs[0].String()
	}
	now := of(start)
	if now == of(start.Add(-1)) || now == of(start.Add(time.Hour)) {
		t.Error("two windows have one sequence")
	}
	for _, after := range []time.Duration{1, 30 * time.Minute, time.Hour - 1} {
		if of(start.Add(after).In(time.FixedZone("", 5*3600+45*60))) != now {
			t.Errorf("another sequence after %v", after)
		}
	}
}

func TestRotatingRefuses(t *testing.T) {
	for _, tt := range []struct {
		change func(*Rotating)
		want   string
	}{
		{func(r *Rotating) { r.Key = Key{} }, "no key"},
		{func(r *Rotating) { r.Key = KeyFrom(make([]byte, 31)) }, "the key has 31 bytes; at least 32 are needed"},
		{func(r *Rotating) { r.Period = 0 }, "Period 0s must be whole seconds"},
		{func(r *Rotating) { r.Period = 1500 * time.Millisecond }, "Period 1.5s must be whole seconds"},
		{func(r *Rotating) { r.Knocks = 0 }, "0 knocks: expected 1 to 32"},
		{func(r *Rotating) { r.Knocks = 33 }, "33 knocks: expected 1 to 32"},
		{func(r *Rotating) { r.Ports = PortRange{} }, "no ports to draw from"},
		{func(r *Rotating) { r.Ports = PortRange{UDP, 5, 4} }, "no ports to draw from"},
		{func(r *Rotating) { r.Ports = PortRange{UDP, 5, 8} }, "4 ports are too few for 5 knocks"},
	} {
		r := rotating(t)
		tt.change(&r)
		if seqs, _, err := r.At(time.Now()); err == nil || err.Error() != tt.want || seqs != nil {
			t.Errorf("got %v, %v; want %s", seqs, err, tt.want)
		}
	}
}

// TestRotatingIsUniform draws 10,000 sequences from ranges whose size does not
// divide 65536: different ports, all inside, none likelier than another.
func TestRotatingIsUniform(t *testing.T) {
	for _, ports := range []PortRange{{UDP, 20000, 59999}, {TCP, 1, 65535}, {TCP, 1, 32769}, {UDP, 10000, 10999}, {UDP, 40000, 40009}} {
		r := rotating(t)
		r.Ports = ports
		const cells = 10 // of as equal a size as can be
		var first, all [cells]float64
		for n := range 10_000 {
			seqs, _, err := r.At(time.Unix(int64(n)*3600+1800, 0))
			if err != nil {
				t.Fatal(err)
			}
			seen := map[uint16]bool{}
			for i, step := range seqs[0] {
				if !ports.Contains(step) || seen[step.Port] || len(step.Payload) > 0 {
					t.Fatalf("%v: %v", ports, seqs[0])
				}
				seen[step.Port] = true
				cell := int(step.Port-ports.First) * cells / ports.size()
				all[cell]++
				if i == 0 {
					first[cell]++
				}
			}
			if len(seen) != r.Knocks {
				t.Fatalf("%v: %v", ports, seqs[0])
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
			// 9 degrees of freedom: above 27.88 in one of a thousand cases.
			if chi > 27.88 {
				t.Errorf("%v, %s: chi-squared is %.1f", ports, name, chi)
			}
		}
	}
}
