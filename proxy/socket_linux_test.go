package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLoserIsNeverAccepted(t *testing.T) {
	l, addr := listen(t)
	late := 0 // connections closed so late that the ACK may have left, on a busy machine
	for i := range 10 {
		start := time.Now()
		conn, err := dialTCP(t.Context(), netip.Addr{}, addr)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			time.Sleep(20 * time.Millisecond) // the server sent its SYN-ACK an RTT ago
		}
		conn.Close()
		if time.Since(start) > 150*time.Millisecond {
			late++
		}
	}
	// By this deadline every delayed ACK has left.
	if err := l.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for ; ; accepted++ {
		conn, err := l.Accept()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	if accepted > late {
		t.Errorf("the server accepted %d losers, want at most the %d that were closed late", accepted, late)
	}
}

// TestBannerIsNotDelayed: a server that speaks first, such as sshd, accepts at once.
// The fastest of five connections counts, because a busy machine may be slow. A delayed
// ACK always costs 200 ms.
func TestBannerIsNotDelayed(t *testing.T) {
	l, addr := listen(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("SSH-2.0-test\r\n"))
			conn.Close()
		}
	}()
	banner := func(dial func() (net.Conn, error)) time.Duration {
		fastest := time.Hour
		for range 5 {
			start := time.Now()
			conn, err := dial()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 64)); err != nil {
				t.Fatal(err)
			}
			fastest = min(fastest, time.Since(start))
			conn.Close()
		}
		return fastest
	}
	var d Dialer
	settled := banner(func() (net.Conn, error) { return d.Connect(t.Context(), "127.0.0.1", addr.Port()) })
	held := banner(func() (net.Conn, error) { return dialTCP(t.Context(), netip.Addr{}, addr) })
	t.Logf("banner after %v, and after %v with the ACK held back", settled, held)
	if settled > 100*time.Millisecond {
		t.Errorf("banner after %v, want at most 100ms", settled)
	}
	if held < 30*time.Millisecond { // otherwise the check of settled proves nothing
		t.Errorf("the ACK was not held back: banner after %v", held)
	}
}

func TestWinnerHasSystemOptions(t *testing.T) {
	client, _ := pair(t)
	raw, err := client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fresh)
	system, err := unix.GetsockoptInt(fresh, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		get := func(level, opt int) int {
			n, err := unix.GetsockoptInt(int(fd), level, opt)
			if err != nil {
				t.Error(err)
			}
			return n
		}
		if get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 1 {
			t.Error("keep-alive is off")
		}
		if idle := get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); idle != system {
			t.Errorf("keep-alive probes after %d s, want the system's %d s", idle, system)
		}
		if n := get(unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT); n != 0 {
			t.Errorf("TCP_DEFER_ACCEPT is %d, want 0", n)
		}
		if get(unix.SOL_SOCKET, unix.SO_LINGER) != 0 {
			t.Error("SO_LINGER is on")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
