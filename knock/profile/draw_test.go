package profile

import (
	"slices"
	"testing"

	"github.com/portknock/portknock/knock"
)

// draft returns a Draft with these settings, each "Keyword value".
func draft(t *testing.T, settings ...string) *Profile {
	t.Helper()
	var given []Setting
	for _, text := range settings {
		line, err := parseLine(text)
		if err != nil {
			t.Fatal(err)
		}
		s, err := newSetting(*line)
		if err != nil {
			t.Fatal(err)
		}
		given = append(given, s)
	}
	p, err := Draft("h", given)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDrawnSequencesAreFreeOfOtherPorts: a drawn sequence has different ports without another
// use, and no scan of all ports in order sends it.
func TestDrawnSequencesAreFreeOfOtherPorts(t *testing.T) {
	seen := map[string]bool{}
	for _, settings := range [][]string{
		nil,
		{"Port 33333", "OpenPorts 20000-33332/tcp", "IgnorePorts 33334-59990/tcp"}, // nine ports are left
		{"Sequence 59991/udp 59992 59993/udp 59994", "OpenPorts 20000-59990/tcp", "IgnorePorts 20000-59980/udp"},
	} {
		p := draft(t, settings...)
		for range 20 {
			seq, err := p.DrawSequence()
			if err != nil {
				t.Fatal(err)
			}
			if len(seq) != max(3, len(p.Sequence)) {
				t.Fatalf("%v: got %d knocks", settings, len(seq))
			}
			var ports []uint16
			for i, step := range seq {
				contains := func(r knock.PortRange) bool { return r.Contains(step) }
				wrong := step.Port < 20000 || step.Port > 59999 || step.Port == p.Port || slices.Contains(ports, step.Port) ||
					slices.ContainsFunc(slices.Concat(p.OpenPorts, p.IgnorePorts), contains) ||
					slices.ContainsFunc(p.Sequence, func(old knock.Step) bool { return old.Port == step.Port })
				if len(p.Sequence) > 0 && step.Transport != p.Sequence[i].Transport || len(p.Sequence) == 0 && step.Transport != knock.TCP || wrong {
					t.Fatalf("%v: got knock %d of %v", settings, i+1, seq)
				}
				ports = append(ports, step.Port)
			}
			if seq.SweepFinds(func(knock.Step) bool { return true }) {
				t.Fatalf("a scan sends %v", seq)
			}
			seen[seq.String()] = true
		}
	}
	if len(seen) < 30 {
		t.Errorf("only %d of 60 sequences differ", len(seen))
	}
	for _, settings := range [][]string{{"OpenPorts 1-65535/tcp"}, {"OpenPorts 20000-59997/tcp"}} {
		if seq, err := draft(t, settings...).DrawSequence(); err == nil {
			t.Errorf("%v: got %v, want an error", settings, seq)
		}
	}
	if seq, err := draft(t, "Sequence 7001 8003").DrawSequence(); err != nil || len(seq) != 2 {
		t.Errorf("got %v, %v; want two knocks", seq, err)
	}
}

func TestSecretsOfEachScheme(t *testing.T) {
	for scheme, want := range map[string][]Secret{
		"static":     {{Keyword: "Sequence"}},
		"rotating":   {{"KeyFile", true, ""}},
		"token":      {{"KeyFile", true, ""}},
		"md5-hourly": {{"KeyFile", true, ""}},
		"fwknop":     {{"KeyFile", true, ""}, {"HMACKeyFile", true, ""}},
	} {
		if got := draft(t, "Scheme "+scheme).Secrets(); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", scheme, got, want)
		}
	}
}
