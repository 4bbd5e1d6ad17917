package knock

import (
	"strings"
	"testing"
)

func TestParseSequence(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"7000", "7000/tcp"},
		{"7000/udp 8000:tcp 9000", "7000/udp 8000/tcp 9000/tcp"},
		{"7000:UDP,8000, 9000/Tcp", "7000/udp 8000/tcp 9000/tcp"},
		{"\t1  65535/udp ", "1/tcp 65535/udp"},
		{"22 22 22", "22/tcp 22/tcp 22/tcp"},
	} {
		got, err := ParseSequence(tt.in)
		if err != nil || got.String() != tt.want {
			t.Errorf("ParseSequence(%q) = %v, %v; want %v", tt.in, got, err, tt.want)
		}
	}
	for in, want := range map[string]string{
		"":                           "at least one",
		" , ":                        "at least one",
		"0":                          "port from 1",
		"65536":                      "port from 1",
		"-1":                         "port from 1",
		"+7":                         "port from 1",
		"7000/":                      "the protocol is not tcp or udp",
		"7000/icmp":                  "the protocol is not tcp or udp",
		"/udp":                       "port from 1",
		"7000;8000":                  "port from 1",
		"7000-7002":                  "port from 1",
		"7000/udp/tcp":               "the protocol is not tcp or udp",
		strings.Repeat("1 ", 33):     "33 knocks",
		"7000 99999999999999999999x": "port from 1",
	} {
		if got, err := ParseSequence(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSequence(%q) = %v, %v; want an error with %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"17001 17002/udo":         "knock 2 of 2: the protocol is not tcp or udp",
		"tcp:17001 17002":         "knock 1 of 2: the protocol is not tcp or udp",
		"17001 17002;17003 17004": "knock 2 of 3: not a port from 1 to 65535",
	} {
		if _, err := ParseSequence(in); err == nil || err.Error() != want {
			t.Errorf("ParseSequence(%q): %v, want %s", in, err, want)
		}
	}
}

func TestParsePortRanges(t *testing.T) {
	got, err := ParsePortRanges("22 60000-61000/udp,443:tcp")
	want := []PortRange{{TCP, 22, 22}, {UDP, 60000, 61000}, {TCP, 443, 443}}
	if err != nil || len(got) != len(want) {
		t.Fatal(got, err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("range %d: %v, want %v", i, got[i], want[i])
		}
	}
	for in, want := range map[string]string{
		"":        "no port",
		"9-8":     "above the last",
		"1-":      "port from 1",
		"-5":      "port from 1",
		"1-2-3":   "port from 1",
		"1-65536": "port from 1",
		"22/sctp": "the protocol is not tcp or udp",
	} {
		if got, err := ParsePortRanges(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePortRanges(%q) = %v, %v; want an error with %q", in, got, err, want)
		}
	}
}

func TestSweepFinds(t *testing.T) {
	isWebPort := func(s Step) bool { return s.Transport == TCP && (s.Port == 80 || s.Port == 443) }
	for _, tt := range []struct {
		seq  string
		want bool
	}{
		{"7000", true},
		{"7000 7001 7002", true},
		{"7002 7001 7000", true},
		{"7000/udp 7001/tcp", true},
		{"7000/tcp 7000/udp", true},
		{"79 81", true},          // the server overlooks tcp 80
		{"81 79", true},          // the server also overlooks tcp 80 in a descending scan
		{"79/udp 81/udp", false}, // the server does not overlook udp 80
		{"7000 7002 7001", false},
		{"7000 7001 9000", false},
		{"7001 7000 7001", false},
		{"1 65535", false},
	} {
		seq, err := ParseSequence(tt.seq)
		if err != nil {
			t.Fatal(err)
		}
		if got := seq.SweepFinds(isWebPort); got != tt.want {
			t.Errorf("%s: SweepFinds = %v, want %v", tt.seq, got, tt.want)
		}
	}
	token := Sequence{{Transport: UDP, Port: 62202, Payload: []byte("0123456789abcdef")}}
	if token.SweepFinds(isWebPort) {
		t.Error("SweepFinds = true for a token, but a scan cannot guess a payload")
	}
}

func FuzzParseSequence(f *testing.F) {
	for _, s := range []string{"7000/udp 8000:tcp 9000", "1,2,3", "", "65536", "7000/udp/tcp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		seq, err := ParseSequence(s)
		if err != nil {
			return
		}
		again, err := ParseSequence(seq.String())
		if err != nil || again.String() != seq.String() {
			t.Fatalf("%q reads as %q, which reads as %q, %v", s, seq, again, err)
		}
	})
}

func FuzzParsePortRanges(f *testing.F) {
	f.Add("22/tcp 60000-61000/udp")
	f.Fuzz(func(t *testing.T, s string) {
		ranges, err := ParsePortRanges(s)
		for _, r := range ranges {
			if r.First < 1 || r.First > r.Last || err != nil {
				t.Fatalf("ParsePortRanges(%q) returns the range %v and the error %v", s, r, err)
			}
		}
	})
}
