package e2e

import (
	"bytes"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// stream is a portknock that has connected to a server of the test's own.
type stream struct {
	cmd  *lab.Cmd
	in   *os.File // its standard input's other end
	out  *os.File // its standard output's
	said *lab.Log // its standard error
	peer *net.TCPConn
}

// newStream starts portknock and waits until it has connected.
func newStream(t *testing.T) *stream {
	t.Helper()
	client, server := twoHosts(t)
	l := lab.Socket(t, server, func() (net.Listener, error) { return net.Listen("tcp4", ":22") })
	profile := lab.File(t, "config", "Host *", twoKnocks)
	s := &stream{cmd: client.Command("portknock", "-c", profile, server.Addr(lab.IPv4).String(), "22"), said: &lab.Log{}}
	childIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in, s.out = in, out
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = childIn, childOut, s.said
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	childIn.Close()
	childOut.Close()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s.peer = conn.(*net.TCPConn)
	s.peer.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() {
		s.cmd.End()
		in.Close()
		out.Close()
		conn.Close()
	})
	return s
}

// ends waits until portknock has ended by itself, with exit code 0.
func (s *stream) expectEnd(t *testing.T) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v: %s", err, s.said)
		}
	case <-time.After(10 * time.Second):
		t.Error("portknock goes on")
	}
}

// TestServerCloseEndsPortknock: portknock ends when the server has ended the stream.
func TestServerCloseEndsPortknock(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	io.WriteString(s.peer, "bye")
	s.peer.Close()
	if got, err := io.ReadAll(s.out); string(got) != "bye" {
		t.Errorf("%q, %v", got, err)
	}
	s.expectEnd(t) // though its standard input is open
}

// TestReplyArrivesAfterEndOfInput: the end of standard input does not end what the server sends.
func TestReplyArrivesAfterEndOfInput(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	io.WriteString(s.in, "question")
	s.in.Close()
	if got, err := io.ReadAll(s.peer); string(got) != "question" {
		t.Errorf("%q, %v", got, err)
	}
	reply := bytes.Repeat([]byte("reply "), 200_000)
	go func() {
		s.peer.Write(reply)
		s.peer.Close()
	}()
	if got, err := io.ReadAll(s.out); !bytes.Equal(got, reply) {
		t.Errorf("%d bytes of %d, %v", len(got), len(reply), err)
	}
	s.expectEnd(t)
}

// TestMissingReaderEndsPortknock: portknock ends when nobody reads its standard output.
func TestMissingReaderEndsPortknock(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	s.out.Close()
	s.expectEnd(t) // though the server is silent and its standard input is open
	if _, err := s.peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the server sees %v", err)
	}
}

// TestStalledStreamUsesNoCPU: if one end does not read, portknock sleeps.
func TestStalledStreamUsesNoCPU(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		into func(*stream) deadlineWriter
	}{
		{"reader", func(s *stream) deadlineWriter { return s.peer }},
		{"server", func(s *stream) deadlineWriter { return s.in }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newStream(t)
			into := test.into(s)
			for buf := make([]byte, 1<<20); ; {
				into.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := into.Write(buf); err != nil {
					break // everything on the way is full
				}
			}
			before := cpuTicks(t, s.cmd.Process.Pid)
			const span = 2 * time.Second
			time.Sleep(span) // the time over which is measured
			if ticks := cpuTicks(t, s.cmd.Process.Pid) - before; ticks > 2 {
				t.Errorf("%d ms of CPU time in %v", ticks*10, span)
			}
		})
	}
}

// deadlineWriter is a file or a socket.
type deadlineWriter interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

// cpuTicks returns the CPU time of a process in hundredths of a second.
func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	text := lab.ReadFile(t, "/proc/"+strconv.Itoa(pid)+"/stat")
	// After the name in parentheses; utime and stime are fields 14 and 15.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return user + system
}
