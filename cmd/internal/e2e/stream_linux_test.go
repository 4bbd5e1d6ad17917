package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// stream is a portknock that is connected to a server in the test process.
type stream struct {
	cmd    *lab.Cmd
	in     *os.File     // end of the pipe that writes portknock's standard input
	out    *os.File     // end of the pipe that reads portknock's standard output
	stderr *lab.Log     // portknock's standard error
	peer   *net.TCPConn // the server's end of the connection
}

// newStream starts portknock and waits until it has connected.
func newStream(t *testing.T) *stream {
	t.Helper()
	client, server := twoHosts(t)
	l := lab.Socket(t, server, func() (net.Listener, error) { return net.Listen("tcp4", ":22") })
	profile := lab.File(t, "config", "Host *", twoKnocks)
	s := &stream{cmd: client.Command("portknock", "-c", profile, server.Addr(lab.IPv4).String(), "22"), stderr: &lab.Log{}}
	childIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in, s.out = in, out
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = childIn, childOut, s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	childIn.Close()
	childOut.Close()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute))
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s.peer = conn.(*net.TCPConn)
	s.peer.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() {
		s.cmd.End()
		in.Close()
		out.Close()
		conn.Close()
	})
	return s
}

// expectEnd checks that portknock ends without a signal within a minute, with exit code 0.
func (s *stream) expectEnd(t *testing.T) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("portknock ended with %v: %s", err, s.stderr)
		}
	case <-time.After(time.Minute):
		t.Error("portknock has not ended after a minute")
	}
}

// TestServerCloseEndsPortknock: portknock ends when the server closes the connection.
func TestServerCloseEndsPortknock(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	io.WriteString(s.peer, "bye")
	s.peer.Close()
	if got, err := io.ReadAll(s.out); string(got) != "bye" {
		t.Errorf("portknock writes %q, %v, want bye", got, err)
	}
	s.expectEnd(t) // its standard input is still open
}

// TestReplyArrivesAfterEndOfInput: after the end of standard input, portknock still copies
// the server's reply.
func TestReplyArrivesAfterEndOfInput(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	io.WriteString(s.in, "question")
	s.in.Close()
	if got, err := io.ReadAll(s.peer); string(got) != "question" {
		t.Errorf("the server receives %q, %v, want question", got, err)
	}
	reply := bytes.Repeat([]byte("reply "), 200_000)
	go func() {
		s.peer.Write(reply)
		s.peer.Close()
	}()
	if got, err := io.ReadAll(s.out); !bytes.Equal(got, reply) {
		t.Errorf("portknock writes %d bytes of a reply of %d, %v", len(got), len(reply), err)
	}
	s.expectEnd(t)
}

// TestMissingReaderEndsPortknock: portknock ends when its standard output has no reader.
func TestMissingReaderEndsPortknock(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	s.out.Close()
	s.expectEnd(t) // the server sends nothing, and standard input is still open
	if _, err := s.peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the server reads with the result %v, want the end of the connection", err)
	}
}

// TestStalledStreamUsesNoCPU: if one end does not read, portknock waits and uses at most
// 20 ms of CPU time in 2 s.
func TestStalledStreamUsesNoCPU(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		into func(*stream) deadlineWriter
	}{
		{"reader does not read", func(s *stream) deadlineWriter { return s.peer }},
		{"server does not read", func(s *stream) deadlineWriter { return s.in }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newStream(t)
			into := test.into(s)
			for buf := make([]byte, 1<<20); ; {
				into.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := into.Write(buf); err != nil {
					break // all buffers on the path are full
				}
			}
			const span = 2 * time.Second
			// On a busy machine, portknock may still fill the buffers at first.
			lab.Await(t, 10*time.Second, func() string {
				before := cpuTicks(t, s.cmd.Process.Pid)
				time.Sleep(span) // measure CPU time over this span
				if ticks := cpuTicks(t, s.cmd.Process.Pid) - before; ticks > 2 {
					return fmt.Sprintf("portknock used %d ms of CPU time in %v, want at most 20 ms", ticks*10, span)
				}
				return ""
			})
		})
	}
}

// deadlineWriter is a file or a socket that a test writes to.
type deadlineWriter interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

// cpuTicks returns the CPU time of a process in hundredths of a second.
func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	text := lab.ReadFile(t, "/proc/"+strconv.Itoa(pid)+"/stat")
	// fields starts with field 3, after the name in parentheses. The fields utime and stime
	// are 14 and 15.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return user + system
}
