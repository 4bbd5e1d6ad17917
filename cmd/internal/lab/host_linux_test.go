package lab

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childVariable makes this test binary a test process to be killed.
const childVariable = "PORTKNOCK_LAB_TEST_CHILD"

func TestNothingRemainsAfterKill(t *testing.T) {
	if os.Getenv(childVariable) != "" {
		n := New(t)
		sleep := n.Server.Command("sleep", "1000")
		must(t, sleep.Start())
		for _, h := range []*Host{n.Client, n.Server, n.Attacker} {
			fmt.Println(h.pid)
		}
		fmt.Println(sleep.Process.Pid)
		fmt.Println("ready")
		time.Sleep(limit) // until killed
		return
	}
	t.Parallel()
	NewHost(t, "any") // the child's being skipped would tell nothing
	child := exec.Command("/proc/self/exe", "-test.run=^TestNothingRemainsAfterKill$")
	child.Env = append(os.Environ(), childVariable+"=1")
	var said Log
	child.Stdout, child.Stderr = &said, &said
	must(t, child.Start())
	said.Await(t, "ready", 1)
	pids := map[int]int{}
	for _, word := range strings.Fields(said.String()) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			break
		}
		pids[pid], err = unix.PidfdOpen(pid, 0)
		must(t, err)
		defer func() { _ = unix.Close(pids[pid]) }()
	}
	if len(pids) != 4 {
		t.Fatalf("the child said %s", said.String())
	}
	must(t, child.Process.Kill())
	_ = child.Wait()
	for pid, fd := range pids {
		ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ended, int(limit.Milliseconds()))
		for err == unix.EINTR { // Go's own signals
			n, err = unix.Poll(ended, int(limit.Milliseconds()))
		}
		if n != 1 {
			t.Errorf("process %d lives on: %v", pid, err)
		}
	}
}

// TestHostEndsAtOnce has a command and a daemon leave children that hold their
// pipes.
func TestHostEndsAtOnce(t *testing.T) {
	t.Parallel()
	var ending time.Time
	t.Run("host", func(t *testing.T) {
		h := NewHost(t, "server")
		const script = "sleep 1000 & echo ready; wait"
		c, said := h.Command("sh", "-c", script), &Log{}
		c.Stdout = said
		must(t, c.Start())
		said.Await(t, "ready", 1)
		h.Daemon(t, "sh", "-c", script).Log.Await(t, "ready", 1)
		ending = time.Now()
	})
	if ending.IsZero() {
		t.SkipNow() // as the host has been
	}
	if d := time.Since(ending); d > limit/2 {
		t.Errorf("it took %v", d)
	}
}

func TestHostsArePrivate(t *testing.T) {
	t.Parallel()
	a, b := New(t), New(t)
	a.Server.Run(t, "sh", "-c", "echo a >/run/file; [ $(hostname) = server ]")
	if out, err := b.Server.Try("cat", "/run/file"); err == nil {
		t.Errorf("/run is shared: %s", out)
	}
	if got := strings.Fields(a.Server.Run(t, "sh", "-c", "cd /proc; echo [0-9]*")); len(got) != 2 {
		t.Errorf("processes of the host and its shell: %v", got)
	}
	a.Server.Listen(t, 22)
	for _, f := range Families {
		if got := b.Client.Probe(t, port(b.Server.Addr(f), 22)); got != Refused {
			t.Errorf("%v: another network's port 22 is %v", f, got)
		}
	}
}
