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

// childVariable is an environment variable. It makes this test binary the child process
// that TestKilledTestLeavesNoProcesses kills.
const childVariable = "PORTKNOCK_LAB_TEST_CHILD"

func TestKilledTestLeavesNoProcesses(t *testing.T) {
	if os.Getenv(childVariable) != "" {
		n := New(t)
		sleep := n.Server.Command("sleep", "1000")
		must(t, sleep.Start())
		for _, h := range []*Host{n.Client, n.Server, n.Attacker} {
			fmt.Println(h.pid)
		}
		fmt.Println(sleep.Process.Pid)
		fmt.Println("ready")
		time.Sleep(limit) // the parent kills this process
		return
	}
	t.Parallel()
	NewHost(t, "any") // skips the test here; a skip in the child would go unnoticed
	child := exec.Command("/proc/self/exe", "-test.run=^TestKilledTestLeavesNoProcesses$")
	child.Env = append(os.Environ(), childVariable+"=1")
	var output Log
	child.Stdout, child.Stderr = &output, &output
	must(t, child.Start())
	output.Await(t, "ready", 1)
	pids := map[int]int{}
	for _, word := range strings.Fields(output.String()) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			break
		}
		pids[pid], err = unix.PidfdOpen(pid, 0)
		must(t, err)
		defer func() { _ = unix.Close(pids[pid]) }()
	}
	if len(pids) != 4 {
		t.Fatalf("the child printed %s", output.String())
	}
	must(t, child.Process.Kill())
	_ = child.Wait()
	for pid, fd := range pids {
		ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ended, int(limit.Milliseconds()))
		for err == unix.EINTR { // the Go runtime sends itself signals
			n, err = unix.Poll(ended, int(limit.Milliseconds()))
		}
		if n != 1 {
			t.Errorf("process %d still lives: %v", pid, err)
		}
	}
}

// TestHostEndsWhileChildrenHoldPipes ends a host that runs a command and a daemon. Both
// have children that hold the pipes of their parent.
func TestHostEndsWhileChildrenHoldPipes(t *testing.T) {
	t.Parallel()
	var endBegan time.Time
	t.Run("host", func(t *testing.T) {
		h := NewHost(t, "server")
		const script = "sleep 1000 & echo ready; wait"
		c, output := h.Command("sh", "-c", script), &Log{}
		c.Stdout = output
		must(t, c.Start())
		output.Await(t, "ready", 1)
		h.Daemon(t, "sh", "-c", script).Log.Await(t, "ready", 1)
		endBegan = time.Now()
	})
	if endBegan.IsZero() {
		t.SkipNow() // the host was skipped too
	}
	if d := time.Since(endBegan); d > limit/2 {
		t.Errorf("the host took %v to end", d)
	}
}

func TestHostsArePrivate(t *testing.T) {
	t.Parallel()
	a, b := New(t), New(t)
	a.Server.Run(t, "sh", "-c", "echo a >/run/file; [ $(hostname) = server ]")
	if out, err := b.Server.Try("cat", "/run/file"); err == nil {
		t.Errorf("/run is shared by two hosts: %s", out)
	}
	if got := strings.Fields(a.Server.Run(t, "sh", "-c", "cd /proc; echo [0-9]*")); len(got) != 2 {
		t.Errorf("the host has processes %v, want its init and the shell", got)
	}
	a.Server.Listen(t, 22)
	for _, f := range Families {
		if got := b.Client.Probe(t, addrPort(b.Server.Addr(f), 22)); got != Refused {
			t.Errorf("%v: port 22 in the second network is %v, want refused", f, got)
		}
	}
}
