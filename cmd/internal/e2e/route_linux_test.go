package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestConnectsAfterShortLinkOutage: the client's link goes down after the first SYN has
// left, and comes up again about 0.9 s later. portknock connects, whether the outage
// affects the choice of the source address, a knock or a dial.
func TestConnectsAfterShortLinkOutage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		guarded bool
		args    func(r *rig) []string
	}{
		{"the source address", true, func(r *rig) []string {
			return []string{"-c", r.profile, "vps"}
		}},
		{"a knock", true, func(r *rig) []string {
			return []string{"-c", r.profile, "-o", "BindAddress=" + r.client.Addr(r.family).String(), "vps"}
		}},
		{"a dial", false, func(r *rig) []string {
			return []string{"-c", "/nonexistent", "--optional", r.addr().String()}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nftables, lab.IPv4, threeKnocks)
			// The server does not answer knocks and SYNs until the link is up again.
			r.server.Shell(t, dropAllInput)
			capture := r.server.Capture(t)
			var out, stderr lab.Log
			c := r.client.Command("portknock", append([]string{"-vv", "-o", "ConnectTimeout=30"}, append(tt.args(r), "22")...)...)
			c.Stdout, c.Stderr = &out, &stderr
			in, err := c.StdinPipe() // this pipe stays open until the banner has arrived
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			stderr.Await(t, "round 0: dialing", 1)
			awaitSYN(t, capture, 22)
			r.client.Shell(t, "ip link set eth0 down")
			stderr.Await(t, ": unreachable ", 2)
			stderr.Await(t, "round 3: ", 1) // round 3 begins 0.9 s after the start
			if tt.guarded {
				r.runHeaderLine(t, "load")
			}
			r.server.Shell(t, "nft delete table inet silent")
			r.client.Shell(t, "ip link set eth0 up")
			out.Await(t, "SSH-2.0-", 1)
			t.Logf("portknock has printed\n%s", &stderr)
			c.End()
		})
	}
}

// awaitSYN waits until a capture contains a SYN to a port.
func awaitSYN(t testing.TB, c *lab.Capture, port uint16) {
	t.Helper()
	isSYN := func(p lab.Packet) bool { return p.Dst.Port() == port && p.Flags == lab.SYN }
	lab.Await(t, time.Minute, func() string {
		if slices.ContainsFunc(c.Packets(t), isSYN) {
			return ""
		}
		return fmt.Sprintf("the capture has no SYN to port %d", port)
	})
}
