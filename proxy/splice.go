package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

const (
	bufferSize = 64 << 10

	// bulkSize tells a transfer from keys that a user types. Once a read has returned at
	// least bulkSize bytes, splice(2) moves the data, as long as it moves at least
	// bulkSize bytes at once. bulkSize is more than a user types, and less than an
	// ordinary pipe holds when each packet takes one of its sixteen slots.
	bulkSize = 16 << 10
)

// Splice copies from in to conn and from conn to out, as netcat does for ssh. It closes
// conn before it returns. Splice has no idle timeout. It returns in these cases:
//
//   - conn has been read to its end and all of it is written to out, even if in is open;
//   - out does not accept more data;
//   - reading conn fails;
//   - ctx is done. The error is then that of ctx.
//
// At the end of in, Splice closes only the sending half of conn, if conn can do that. It
// goes on copying from conn to out, so that the peer's reply to the last data arrives
// complete. Splice also goes on if reading in or writing to conn fails. Everything that
// the peer sent before it stopped reading thus arrives too.
//
// A Read of in or a Write to out may still be under way when Splice returns. The call
// then goes on in the background, because only the end of the process can end it.
//
// On Linux, Splice uses splice(2) to move large amounts of data between a pipe and a TCP
// connection without a copy. Splice does not change a flag of the pipe, because other
// processes share the flags. For a download, Splice enlarges out to 256 KiB if out is a
// smaller pipe and the kernel allows it. Splice never changes the size of in, because
// data that waits in that pipe delays every key that is pressed later. While splice(2)
// moves data, deadlines of conn have no effect; limit the time by ctx instead.
//
// The error is nil if the peer has closed conn in order. It is nil even if data from in
// was left, because a peer that has closed its side does not have to accept more data. If
// reading in or writing to conn failed earlier for another reason, the error is that
// reason.
//
// If out is a pipe or a socket, let [ReaderGone] cancel ctx. Otherwise Splice does not
// notice that the reader of out has gone until the peer sends data.
func Splice(ctx context.Context, conn net.Conn, in io.Reader, out io.Writer) error {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // runs before conn.Close, which waits until splice(2) has released conn
	sent := make(chan error, 1)
	received := make(chan error, 1)
	go func() { sent <- send(ctx, conn, in) }()
	go func() { received <- receive(ctx, out, conn) }()

	var err error
	select {
	case err = <-received:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err == nil {
		select {
		case err = <-sent: // Linux reports a reset only once: to the write, or to the read
		default:
		}
	}
	return err
}

// send copies in to conn and then closes the sending half.
func send(ctx context.Context, conn net.Conn, in io.Reader) error {
	readErr, writeErr := stream(ctx, conn, in)
	if writeErr != nil {
		if errors.Is(writeErr, syscall.EPIPE) { // the peer has closed the connection in order
			return nil
		}
		return writeErr
	}
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // if this fails, reading conn reports why
	}
	if readErr != nil {
		return fmt.Errorf("cannot read the input: %w", readErr)
	}
	return nil
}

// receive copies conn to out.
func receive(ctx context.Context, out io.Writer, conn net.Conn) error {
	readErr, writeErr := stream(ctx, out, conn)
	if writeErr != nil {
		return fmt.Errorf("cannot write the output: %w", writeErr)
	}
	return readErr
}

// stream moves data from src to dst until src ends or either of them fails. Both errors
// are nil at the end of src. Otherwise one error tells which side failed.
//
// Small amounts go through a buffer, because splice(2) wakes up a program that waits for
// a key's echo later than write(2) does. stream does not use io.Copy: from a TCP
// connection to a pipe, io.Copy uses splice(2) too, and keeps a core busy while the pipe
// is full (golang/go#75304).
func stream(ctx context.Context, dst io.Writer, src io.Reader) (readErr, writeErr error) {
	buf := make([]byte, bufferSize)
	next := copyUntilBulk
	for {
		n, err := src.Read(buf)
		if n > 0 {
			m, err := dst.Write(buf[:n])
			if err == nil && m < n {
				err = io.ErrShortWrite
			}
			if err != nil {
				return nil, err
			}
		}
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
		if n >= bulkSize && next != copyAll {
			if next, readErr, writeErr = spliceStream(ctx, dst, src); next == finish {
				return readErr, writeErr
			}
		}
	}
}

// step tells how a stream goes on, at its start and after each attempt at splice(2).
type step int

const (
	copyUntilBulk step = iota // copy until a read returns bulkSize bytes or more
	copyAll                   // copy the rest of the stream: splice(2) cannot move it
	finish                    // do not go on: the stream has failed, or its ctx is done
)
