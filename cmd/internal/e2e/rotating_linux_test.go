package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

// TestRotatingOnTheWire: the knocks that leave are those that portknock sequence
// says, for round after round. Within Skew of the window's start they take turns
// with the window's before; nothing else is sent, least of all the next one's.
func TestRotatingOnTheWire(t *testing.T) {
	lab.Require(t)
	key := secret(t, "key", windowKey)
	period := standing(t, early) / time.Second
	rotating := fmt.Sprintf("Scheme rotating\nKeyFile %s\nPeriod %d\nSkew ", key, period)
	fresh := fmt.Sprint(rotating, int(period/2-1))
	// Half past an hour, for windows whose length is not ours to choose.
	toHalfPast := time.Until(time.Now().Truncate(time.Hour).Add(30 * time.Minute))
	for name, tt := range map[string]struct {
		settings string
		proto    uint8
		turns    int
		shift    time.Duration // of the clock
	}{
		"udp":        {fresh, unix.IPPROTO_UDP, 2, 0},
		"tcp":        {fresh + "\nProtocol tcp\nPortRange 10000-10099\nKnocks 7", unix.IPPROTO_TCP, 2, 0},
		"derived":    {fresh + "\nDeriveHostKey yes", unix.IPPROTO_UDP, 2, 0},
		"no skew":    {rotating + "0", unix.IPPROTO_UDP, 1, 0},
		"md5-hourly": {"Scheme md5-hourly\nPortRange 10000-10999\nSkew 0\nKeyFile " + secret(t, "secret", "f00b4r"), unix.IPPROTO_TCP, 1, toHalfPast},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := lab.New(t)
			profile := secret(t, "config", "Host vps", "HostName "+n.Server.Addr(lab.IPv4).String(), "ConnectTimeout 2", tt.settings)
			shift := shiftVariable + "=" + tt.shift.String()
			said := n.Client.Run(t, "env", shift, "portknock", "sequence", "-c", profile, "vps")
			capture := n.Client.Capture(t)
			if _, err := n.Client.Try("env", shift, "portknock", "-c", profile, "vps", "22"); err == nil {
				t.Fatal("a port without a service has opened")
			}
			if again := n.Client.Run(t, "env", shift, "portknock", "sequence", "-c", profile, "vps"); again != said {
				t.Fatal("a new window has begun meanwhile")
			}
			var turns [][]string
			for line := range strings.Lines(said) {
				sequence, _, _ := strings.Cut(line, "  (")
				turns = append(turns, strings.Fields(sequence))
			}
			if len(turns) != tt.turns {
				t.Fatalf("%d sequences, want %d:\n%s", len(turns), tt.turns, said)
			}
			var sent []string
			for _, p := range capture.Packets(t) {
				if p.Out && p.Proto == tt.proto && p.Dst.Port() != 22 {
					sent = append(sent, fmt.Sprintf("%d/%s", p.Dst.Port(), map[uint8]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp"}[p.Proto]))
				}
			}
			knocks, rounds := len(turns[0]), 0
			for ; len(sent) >= knocks; rounds++ {
				if want := turns[rounds%len(turns)]; !slices.Equal(sent[:knocks], want) {
					t.Fatalf("round %d: sent %v, want %v", rounds, sent[:knocks], want)
				}
				sent = sent[knocks:]
			}
			if rounds < 2 {
				t.Errorf("only %d rounds", rounds)
			}
		})
	}
}
