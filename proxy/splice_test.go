package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
)

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// noise returns n random bytes, so that a wrong order shows. The seed determines the bytes.
func noise(n int64, seed byte) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// digest reads r to its end, and returns the length, a hash, and the error of the data.
func digest(r io.Reader) string {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%d bytes, %x, %v", n, h.Sum(nil)[:8], err)
}

const mega = 1 << 20

// TestSpliceEndsWithServerWhileInputIsOpen: when the server closes, Splice delivers all of
// its data and returns, although the input stays open.
func TestSpliceEndsWithServerWhileInputIsOpen(t *testing.T) {
	conn, server := pair(t)
	stdin, _ := pipe(t) // the writing end stays open
	outR, outW := pipe(t)
	go func() {
		io.Copy(server, noise(mega, 1))
		server.Close()
	}()
	got := make(chan string)
	go func() { got <- digest(outR) }()
	if err := Splice(t.Context(), conn, stdin, outW); err != nil {
		t.Error(err)
	}
	outW.Close()
	if got, want := <-got, digest(noise(mega, 1)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestReplyAfterEndOfInputArrivesComplete(t *testing.T) {
	conn, server := pair(t)
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	go func() {
		io.WriteString(inW, "request")
		inW.Close()
	}()
	request := make(chan string, 1)
	go func() {
		all, _ := io.ReadAll(server) // ends when Splice closes the sending half
		request <- string(all)
		io.Copy(server, noise(mega, 2))
		server.Close()
	}()
	got := make(chan string)
	go func() { got <- digest(outR) }()
	if err := Splice(t.Context(), conn, inR, outW); err != nil {
		t.Error(err)
	}
	outW.Close()
	if got := <-request; got != "request" {
		t.Errorf("the server got %q, want the request", got)
	}
	if got, want := <-got, digest(noise(mega, 2)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSpliceMovesDataBothWaysAtOnce(t *testing.T) {
	const size = 64 * mega
	conn, server := pair(t)
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	go func() {
		io.Copy(inW, noise(size, 3))
		inW.Close()
	}()
	up, down, replied := make(chan string, 1), make(chan string, 1), make(chan struct{})
	go func() {
		io.Copy(server, noise(size, 4))
		close(replied)
	}()
	go func() {
		up <- digest(server)
		<-replied
		server.Close()
	}()
	go func() { down <- digest(outR) }()
	if err := Splice(t.Context(), conn, inR, outW); err != nil {
		t.Error(err)
	}
	outW.Close()
	if got, want := <-up, digest(noise(size, 3)); got != want {
		t.Errorf("up: got %s, want %s", got, want)
	}
	if got, want := <-down, digest(noise(size, 4)); got != want {
		t.Errorf("down: got %s, want %s", got, want)
	}
}

func TestSpliceReportsReset(t *testing.T) {
	conn, server := pair(t)
	stdin, _ := pipe(t)
	server.SetLinger(0)
	server.Close()
	if err := Splice(t.Context(), conn, stdin, io.Discard); err == nil {
		t.Error("Splice returns nil after a reset, want an error")
	}
}

func TestCancelledSpliceClosesConnection(t *testing.T) {
	for _, test := range []struct {
		name string
		out  func(started func()) io.Writer
	}{
		{"silent server", func(started func()) io.Writer { started(); return io.Discard }},
		{"stalled reader", func(started func()) io.Writer {
			return writerFunc(func([]byte) (int, error) { started(); select {} })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, server := pair(t)
			stdin, _ := pipe(t)
			ctx, cancel := context.WithCancel(t.Context())
			server.Write([]byte("x"))
			if err := Splice(ctx, conn, stdin, test.out(cancel)); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want context.Canceled", err)
			}
			if _, err := conn.Write(nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the connection is open after Splice: %v", err)
			}
		})
	}
}

func TestSpliceReportsOutputError(t *testing.T) {
	conn, server := pair(t)
	stdin, _ := pipe(t)
	server.Write([]byte("x"))
	full := errors.New("no space")
	out := writerFunc(func([]byte) (int, error) { return 0, full })
	if err := Splice(t.Context(), conn, stdin, out); !errors.Is(err, full) {
		t.Errorf("error %v, want the error of the output", err)
	}
}

// TestSpliceDrainsAfterWriteError: the peer has sent its last data and closed. A write to
// the peer then fails. Splice still delivers the data.
func TestSpliceDrainsAfterWriteError(t *testing.T) {
	for _, test := range []struct {
		err  error
		want error
	}{
		{syscall.EPIPE, nil}, // the peer had closed in order
		{syscall.ECONNRESET, syscall.ECONNRESET},
	} {
		synctest.Test(t, func(t *testing.T) {
			failed := make(chan struct{})
			conn := &scriptedConn{
				read: func(b []byte) (int, error) {
					<-failed
					synctest.Wait() // Splice knows of the error afterwards
					return copy(b, "farewell"), io.EOF
				},
				write: func([]byte) (int, error) { defer close(failed); return 0, test.err },
			}
			var out bytes.Buffer
			err := Splice(t.Context(), conn, bytes.NewReader([]byte("x")), &out)
			if !errors.Is(err, test.want) || out.String() != "farewell" {
				t.Errorf("write error %v: output %q and error %v are wrong", test.err, &out, err)
			}
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

type scriptedConn struct {
	net.Conn
	read, write func([]byte) (int, error)
}

func (c *scriptedConn) Read(b []byte) (int, error)  { return c.read(b) }
func (c *scriptedConn) Write(b []byte) (int, error) { return c.write(b) }
func (c *scriptedConn) Close() error                { return nil }
