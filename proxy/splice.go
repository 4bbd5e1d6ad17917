package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

const (
	bufferSize = 64 << 10

	// bulkSize tells a transfer from keys that a user types. Once a read has returned at
	// least bulkSize bytes, splice(2) moves the data, as long as it moves more than
	// typedSize bytes at once. The smallest input pipe holds bulkSize bytes. A user does
	// not type typedSize bytes at once.
	bulkSize  = 8 << 10
	typedSize = 4 << 10

	// smallUnsent is how much data a socket accepts before it can be sent, if the rate of
	// the upload is low or not known.
	smallUnsent = 16 << 10
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
// processes share the flags. While splice(2) moves data, deadlines of conn have no effect;
// limit the time by ctx instead.
//
// On Linux, Splice also limits the data that waits on this machine to be sent, because
// every key that is pressed later waits behind that data. Splice makes in hold only 8 KiB
// if in is a pipe, and sets TCP_NOTSENT_LOWAT of conn. Both limits then follow the rate of
// the upload. Splice never makes a pipe larger than it was before.
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
	moved := limitQueue(conn, in)
	go func() { sent <- send(ctx, conn, in, moved) }()
	go func() { received <- receive(ctx, out, conn) }()

	var err error
	select {
	case err = <-received:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	// A system reports a reset only once: to the write, or to the read. If the write got
	// it, the read looks like the end, and may return before the write.
	wait := time.Duration(0)
	if isDead(conn) {
		wait = resetTime
	}
	select {
	case err = <-sent:
	case <-time.After(wait):
	}
	return err
}

// resetTime is how long a write that has failed with a reset may take to return.
const resetTime = 100 * time.Millisecond

// send copies in to conn and then closes the sending half.
func send(ctx context.Context, conn net.Conn, in io.Reader, moved func(int64)) error {
	readErr, writeErr := stream(ctx, conn, in, moved)
	if writeErr != nil {
		if errors.Is(writeErr, syscall.EPIPE) { // the peer has closed the connection in order
			return nil
		}
		return lost(writeErr)
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
	readErr, writeErr := stream(ctx, out, conn, func(int64) {})
	if writeErr != nil {
		return fmt.Errorf("cannot write the output: %w", writeErr)
	}
	if readErr != nil {
		return lost(readErr)
	}
	return nil
}

// lost returns the error of a connection that has failed. The error has the same text
// whether read(2), write(2) or splice(2) has noticed the failure.
func lost(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		err = errno
	}
	return fmt.Errorf("connection lost: %w", err)
}

// stream moves data from src to dst until src ends or either of them fails. Both errors
// are nil at the end of src. Otherwise one error tells which side failed. stream calls
// moved with the number of bytes each time that it has moved data.
//
// Small amounts go through a buffer, because splice(2) wakes up a program that waits for
// a key's echo later than write(2) does. stream does not use io.Copy: from a TCP
// connection to a pipe, io.Copy uses splice(2) too, and keeps a core busy while the pipe
// is full (golang/go#75304).
//
// If splice(2) fails, the rest of the stream is copied. A socket reports an error only
// once, so the error of splice(2) is kept. It counts if the copy does not get further: the
// next Read is the end, or the next Write fails.
func stream(ctx context.Context, dst io.Writer, src io.Reader, moved func(int64)) (readErr, writeErr error) {
	buf := make([]byte, bufferSize)
	next := copyUntilBulk
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if err := write(dst, buf[:n]); err != nil {
				return nil, cmp.Or(writeErr, err)
			}
			readErr, writeErr = nil, nil
			moved(int64(n))
		}
		if err == io.EOF {
			return readErr, writeErr
		}
		if err != nil && !awaitReady(src, err, forRead) {
			return err, nil
		}
		if n >= bulkSize && next != copyAll {
			if next, readErr, writeErr = spliceStream(ctx, dst, src, moved); next == finish {
				return readErr, writeErr
			}
		}
	}
}

// write writes all of b to dst. Another process that shares dst may have made it
// non-blocking.
func write(dst io.Writer, b []byte) error {
	for {
		n, err := dst.Write(b)
		if err == nil && n < len(b) {
			return io.ErrShortWrite
		}
		if err == nil || !awaitReady(dst, err, forWrite) {
			return err
		}
		b = b[n:]
	}
}

// step tells how a stream goes on, at its start and after each attempt at splice(2).
type step int

const (
	copyUntilBulk step = iota // copy until a read returns bulkSize bytes or more
	copyAll                   // copy the rest of the stream: splice(2) cannot move it
	finish                    // do not go on: the ctx of the stream is done
)
