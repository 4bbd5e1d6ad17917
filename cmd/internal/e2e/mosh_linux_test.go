package e2e

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestMoshRoamsAfterKnock: mosh logs in through portknock as "portknock help ssh" says. If the
// client's address changes, a guarded UDP port drops the session's datagrams until the new
// address has knocked. Then the session goes on.
func TestMoshRoamsAfterKnock(t *testing.T) {
	t.Parallel()
	lab.Require(t, "mosh", "mosh-server", "script")
	r := newGuardedRig(t, nftables, lab.IPv4, threeKnocks, "OpenPorts 22/tcp 60000-60010/udp")

	// The session writes to a FIFO each line that it gets.
	path := filepath.Join(t.TempDir(), "lines")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	lines := bufio.NewReader(fifo)

	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// By default, mosh gives ssh a ProxyCommand of its own instead of portknock.
	mosh := "stty rows 24 cols 80; mosh --experimental-remote-ip=remote --ssh='ssh -F " + r.config + "' vps -- dd bs=1k of=" + path
	c := r.client.Command("script", "-qfec", mosh, "/dev/null")
	c.Env = append(c.Env, "TERM=xterm", "LC_ALL=C.UTF-8")
	screen := &lab.Log{}
	c.Stdin, c.Stdout, c.Stderr = in, screen, screen
	err = c.Start()
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer c.End()

	say := func(line string) {
		if _, err := io.WriteString(out, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string) {
		t.Helper()
		fifo.SetReadDeadline(time.Now().Add(30 * time.Second))
		if got, err := lines.ReadString('\n'); got != want+"\n" {
			t.Fatalf("the session got the line %q, want %q: %v\n%s", got, want, err, screen)
		}
	}
	say("hello")
	expect("hello")

	// Later datagrams have another source.
	dropped := func() string { return r.server.Shell(t, "nft list counter inet portknock dropped_vps") }
	before := dropped()
	r.client.Run(t, "ip", "route", "replace", r.addr().String()+"/32", "dev", "eth0", "src", r.client.Source(lab.IPv4, 1).String())
	say("roamed")
	for deadline := time.Now().Add(30 * time.Second); dropped() == before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the guard did not drop datagrams from the new address")
		}
	}
	r.client.Run(t, "portknock", "knock", "-c", r.profile, "vps")
	expect("roamed")
}
