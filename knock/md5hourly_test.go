package knock

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestMD5HourlySequenceOfAnHour(t *testing.T) {
	m := MD5Hourly{Secret: KeyFrom([]byte("f00b4r")), Ports: PortRange{TCP, 10000, 10999}, Knocks: 5}
	seqs, w, err := m.At(time.Date(2026, 11, 21, 0, 30, 0, 0, time.FixedZone("", 3600)))
	if err != nil || len(seqs) != 1 || seqs[0].String() != "10421/tcp 10697/tcp 10556/tcp 10459/tcp 10205/tcp" {
		t.Errorf("got sequences %v, error %v", seqs, err)
	}
	start := time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC)
	if w != (Window{start, start.Add(time.Hour)}) {
		t.Errorf("got the wrong window %v", w)
	}
}

// pipeline is the original code of calc_knock_ports, with three changes. It reads the time
// from its input, its output differs, and its names are not global. Each line of the
// input is a call.
const pipeline = `
while read -r at secret bottomport topport; do
    nbports=$(( $topport - $bottomport + 1 ))
    hash=$(TZ=UTC date -d @$at +%Y-%m-%d-%H-$secret | md5sum | awk '{print $1}' | tr a-z A-Z)
    num=$(echo 16i $hash f | dc)
    for i in 0 1 2 3 4; do
        echo $num $nbports $i ^ / $nbports % $bottomport + f | dc
    done | tr '\n' ' '
    echo
done`

// TestMD5HourlyMatchesShell compares MD5Hourly with calc_knock_ports, run by the programs of
// the system's shell.
func TestMD5HourlyMatchesShell(t *testing.T) {
	for _, name := range []string{"sh", "date", "md5sum", "awk", "dc"} {
		needProgram(t, name)
	}
	if exec.Command("date", "-d", "@0").Run() != nil {
		skipForMissing(t, "the date command does not support -d")
	}
	random := rand.New(rand.NewPCG(0, 0))
	letters := []rune("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-.,:/+=@~^!ß€")
	var calls, want strings.Builder
	for range 150 {
		secret := make([]rune, 1+random.IntN(30))
		for i := range secret {
			secret[i] = letters[random.IntN(len(letters))]
		}
		first := 1 + random.IntN(65535)
		last := first + random.IntN(65536-first)
		if last-first < 5 {
			continue
		}
		// The times go up to 2100, and about half of them are at an edge of the hour.
		unix := random.Int64N(4102444800)
		if random.IntN(2) == 0 {
			unix = unix/3600*3600 - random.Int64N(2)
		}
		m := MD5Hourly{Secret: KeyFrom([]byte(string(secret))), Ports: PortRange{TCP, uint16(first), uint16(last)}, Knocks: 5}
		seqs, _, err := m.At(time.Unix(unix, 0))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&calls, unix, string(secret), first, last)
		for _, step := range seqs[0] {
			fmt.Fprintf(&want, "%d ", step.Port)
		}
		want.WriteString("\n")
	}
	c := exec.Command("sh", "-c", pipeline)
	c.Stdin, c.Stderr = strings.NewReader(calls.String()), os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := func(text string) []string { return strings.Split(text, "\n") }
	gotLines, wantLines, callLines := lines(string(out)), lines(want.String()), lines(calls.String())
	if len(gotLines) != len(wantLines) || len(wantLines) < 100 {
		t.Fatalf("the shell printed %d lines, want %d lines", len(gotLines), len(wantLines))
	}
	for i := range wantLines {
		if gotLines[i] != wantLines[i] {
			t.Errorf("call %q: MD5Hourly gives %s, the shell gives %s", callLines[i], wantLines[i], gotLines[i])
		}
	}
}

func TestMD5HourlyChecksItsFields(t *testing.T) {
	const blank = "the secret contains a space or control character, which the shell would change"
	for _, tt := range []struct {
		secret string
		ports  PortRange
		knocks int
		want   string
	}{
		{"", PortRange{TCP, 10000, 10999}, 5, "no secret"},
		{"a%Yb", PortRange{TCP, 10000, 10999}, 5, "the secret contains a percent sign, which the server's date would expand"},
		{"a b", PortRange{TCP, 10000, 10999}, 5, blank},
		{"f00b4r\r", PortRange{TCP, 10000, 10999}, 5, blank},
		{"f00b4r", PortRange{TCP, 10000, 10999}, 13, "an MD5 sum is too short for 13 knocks from 1000 ports; use fewer knocks or ports"},
		{"f00b4r", PortRange{TCP, 0, 10999}, 5, "no ports to draw from"},
		{"f00b4r", PortRange{TCP, 10000, 10999}, 0, "0 knocks: expected 1 to 32"},
	} {
		m := MD5Hourly{Secret: KeyFrom([]byte(tt.secret)), Ports: tt.ports, Knocks: tt.knocks}
		if seqs, _, err := m.At(time.Now()); err == nil || err.Error() != tt.want {
			t.Errorf("secret %q: got sequences %v, error %v; want the error %s", tt.secret, seqs, err, tt.want)
		}
	}
	m := MD5Hourly{Secret: KeyFrom([]byte("f00b4r")), Ports: PortRange{TCP, 10000, 10999}, Knocks: 12}
	if _, _, err := m.At(time.Now()); err != nil {
		t.Error(err)
	}
}
