package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"

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

func TestCaptureSeesWhatIsSent(t *testing.T) {
	t.Parallel()
	n := New(t)
	// The kernel repeats its multicast report some time in its first second.
	ofTests := func(c *Capture) []Packet {
		return slices.DeleteFunc(slices.Clone(c.Packets(t)), func(p Packet) bool { return p.Dst.Addr().IsMulticast() })
	}
	for _, f := range Families {
		at, from := n.Server.Capture(t), n.Client.Capture(t)
		to := n.Server.Addr(f)
		sent := []Packet{
			{Src: port(n.Client.Addr(f), 1234), Dst: port(to, 7000), Proto: unix.IPPROTO_UDP, Payload: []byte("token")},
			{Src: port(n.Client.Addr(f), 1235), Dst: port(to, 7001), Proto: unix.IPPROTO_TCP, Flags: SYN},
			{Src: port(n.Client.Source(f, 300), 1236), Dst: port(to, 7002), Proto: unix.IPPROTO_TCP, Flags: FIN | PSH | URG},
		}
		n.Client.Send(t, sent...)
		for name, c := range map[string]*Capture{"server": at, "client": from} {
			got := slices.DeleteFunc(ofTests(c), func(p Packet) bool { return p.Out != (name == "client") })
			if len(got) != len(sent) {
				t.Errorf("%s: %v", name, got)
				continue
			}
			for i, p := range got {
				if p.String() != sent[i].String() || !bytes.Equal(p.Payload, sent[i].Payload) {
					t.Errorf("%s: got %v, want %v", name, p, sent[i])
				}
				if time.Since(p.Time) > limit {
					t.Errorf("%s: it came at %v", name, p.Time)
				}
			}
		}
		if got := ofTests(n.Attacker.Capture(t)); len(got) != 0 {
			t.Errorf("the attacker sees %v", got)
		}
	}
}

// The kernel of the other side checks the checksums.
func TestDatagramArrives(t *testing.T) {
	t.Parallel()
	n := New(t)
	for _, f := range Families {
		fd, err := -1, error(nil)
		n.Server.Do(func() {
			fd, err = unix.Socket(map[Family]int{IPv4: unix.AF_INET, IPv6: unix.AF_INET6}[f], unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err == nil && f == IPv4 {
				err = unix.Bind(fd, &unix.SockaddrInet4{Port: 9})
			} else if err == nil {
				err = unix.Bind(fd, &unix.SockaddrInet6{Port: 9})
			}
		})
		must(t, err)
		for _, payload := range []string{"", "x", "odd", "even"} {
			n.Client.KnockFrom(t, n.Client.Source(f, 5), n.Server.Addr(f),
				knock.Step{Transport: knock.UDP, Port: 9, Payload: []byte(payload)})
			n.Server.Capture(t).Packets(t)
			buf := make([]byte, 100)
			if got, _, err := unix.Recvfrom(fd, buf, 0); err != nil || string(buf[:max(got, 0)]) != payload {
				t.Errorf("%v: %q arrives as %q, %v", f, payload, buf[:max(got, 0)], err)
			}
		}
		_ = unix.Close(fd)
	}
}

// Without connection tracking nothing puts the fragments together before a
// rule looks for the flags.
func TestFragmentSlipsThrough(t *testing.T) {
	t.Parallel()
	Require(t, "nft")
	n := New(t)
	n.Server.Listen(t, 22)
	to := port(n.Server.Addr(IPv4), 22)
	const rules = `table inet f; delete table inet f; table inet f { chain c { type filter hook prerouting priority mangle;
		%s tcp dport 22 tcp flags & (fin|syn|rst|ack) == syn drop; }; }`
	for _, c := range []struct {
		rule string
		want State
	}{{"", Open}, {"ct state invalid drop;", Dropped}} {
		n.Server.RunInput(t, strings.NewReader(fmt.Sprintf(rules, c.rule)), "nft", "-f", "-")
		if got := n.Client.Probe(t, to); got != Dropped {
			t.Errorf("%q: a SYN: %v", c.rule, got)
		}
		if got := n.Client.ProbeAs(t, Packet{Dst: to, Flags: SYN}, Fragments(8)); got != c.want {
			t.Errorf("%q: a SYN in two fragments: %v, want %v", c.rule, got, c.want)
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

// recorder notes how a test ends.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper() {}
func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
}

func TestRequire(t *testing.T) {
	for mode, want := range map[string]recorder{
		"":        {skipped: "the lab needs no-such-a, no-such-b"},
		"require": {failed: "the lab needs no-such-a, no-such-b, and PORTKNOCK_LAB=require"},
	} {
		t.Setenv("PORTKNOCK_LAB", mode)
		if os.Geteuid() != 0 {
			t.Skip("would also name root")
		}
		r := recorder{}
		Require(&r, "sh", "no-such-a", "ls", "no-such-b")
		if r != want {
			t.Errorf("PORTKNOCK_LAB=%s: %+v", mode, r)
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	for _, family := range Families {
		f.Add(Packet{Src: port(family.addr(1), 1), Dst: port(family.addr(2), 2), Proto: unix.IPPROTO_TCP, Flags: SYN}.marshal())
		f.Add(Packet{Src: netip.AddrPortFrom(family.addr(1), 1), Dst: port(family.addr(2), 2), Proto: unix.IPPROTO_UDP}.marshal())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parse(b); ok && len(p.Payload) > len(b) {
			t.Errorf("%d bytes of payload in %d", len(p.Payload), len(b))
		}
	})
}

// BenchmarkLink makes two hosts and the cable between them.
func BenchmarkLink(b *testing.B) {
	for b.Loop() {
		Link(b, NewHost(b, "a"), NewHost(b, "b"))
	}
}
