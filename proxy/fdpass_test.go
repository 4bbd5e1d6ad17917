//go:build unix

package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// receiveFD receives a descriptor as ssh does with ProxyUseFdpass.
func receiveFD(t *testing.T, from *os.File) int {
	t.Helper()
	buf, oob := make([]byte, 2), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(from.Fd()), buf, oob, 0)
	if err != nil || n != 1 {
		t.Fatalf("received %d bytes, error %v, want 1 byte", n, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, error %v, want 1 message", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, error %v, want 1 descriptor", len(fds), err)
	}
	return fds[0]
}

// TestPassedConnectionWorks: PassFD closes its own descriptor. The passed connection has
// the options that ssh expects, and carries data both ways.
func TestPassedConnectionWorks(t *testing.T) {
	ours, theirs := socketpair(t)
	conn, server := pair(t)
	before := flags(t, ours)
	if err := CanPassFD(ours); err != nil {
		t.Fatal(err)
	}
	if err := PassFD(conn, ours); err != nil {
		t.Fatal(err)
	}
	if after := flags(t, ours); after != before {
		t.Errorf("PassFD changed the flags of the UNIX socket from %#x to %#x", before, after)
	}
	if _, err := conn.Write(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("conn is open after PassFD: %v", err)
	}

	fd := receiveFD(t, theirs)
	status, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || status&unix.O_NONBLOCK != 0 {
		t.Errorf("the passed descriptor is not blocking: flags %#x, error %v", status, err)
	}
	for _, opt := range []struct {
		name       string
		level, opt int
		on         bool
	}{
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, false},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, true},
	} {
		if n, err := unix.GetsockoptInt(fd, opt.level, opt.opt); n != 0 != opt.on || err != nil {
			t.Errorf("%s is %d, error %v, want the opposite", opt.name, n, err)
		}
	}
	if linger, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER); err != nil || linger.Onoff != 0 {
		t.Errorf("SO_LINGER is %v, error %v, want it off", linger, err)
	}
	if n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, 25); runtime.GOOS == "linux" && n != 16<<10 { // 25 is TCP_NOTSENT_LOWAT
		t.Errorf("TCP_NOTSENT_LOWAT is %d, error %v, want 16384", n, err)
	}
	passed := os.NewFile(uintptr(fd), "passed")
	server.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(passed, "question"); err != nil {
		t.Fatal(err)
	}
	question := make([]byte, 8)
	if _, err := io.ReadFull(server, question); string(question) != "question" {
		t.Errorf("the server got %q, error %v, want the question", question, err)
	}
	io.WriteString(server, "answer")
	server.Close()
	if got, err := io.ReadAll(passed); string(got) != "answer" {
		t.Errorf("the client got %q, error %v, want the answer", got, err)
	}
	passed.Close()
}

func TestPassFDFailsIfOtherEndIsClosed(t *testing.T) {
	ours, theirs := socketpair(t)
	theirs.Close()
	conn, server := pair(t)
	if err := PassFD(conn, ours); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("error %v, want EPIPE", err)
	}
	server.SetDeadline(time.Now().Add(patience))
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the server reads the error %v, want EOF: the connection must end by FIN", err)
	}
}

func TestPassFDNeedsUNIXSocket(t *testing.T) {
	_, w := pipe(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tcp, _ := pair(t)
	tcpFile, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	closed, _ := socketpair(t)
	closed.Close()
	for name, to := range map[string]*os.File{"pipe": w, "file": file, "TCP socket": tcpFile, "closed": closed} {
		if CanPassFD(to) == nil {
			t.Errorf("%s: CanPassFD returns nil, want an error", name)
		}
		conn, _ := pair(t)
		if PassFD(conn, to) == nil {
			t.Errorf("%s: PassFD returns nil, want an error", name)
		}
		if _, err := conn.Write(nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: the connection is open after PassFD: %v", name, err)
		}
	}
}
