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

	// bulk is how much comes at once in a transfer, in bytes: more than anybody
	// types, and less than an ordinary pipe holds when each packet takes one of
	// its sixteen slots.
	bulk = 16 << 10
)

// Splice copies in to conn and conn to out, as netcat does for ssh, and closes
// conn before it returns.
//
// It returns when conn has been read to its end and all of that is written to
// out, whatever in does; when out takes no more; when reading conn fails; or
// when ctx is done, with its error. The end of in closes only the sending half
// of conn, if it can do that: a reply that comes later arrives whole. So does
// one that the peer had sent before it stopped listening to us. There is no
// idle timeout. A Read of in, or a Write to out, that is under way when Splice
// returns goes on in the background, for nothing can end it but the process.
//
// On Linux, between a pipe and a TCP connection, splice(2) moves what is much
// without a copy, and without a change to a flag of the pipe, which others share.
// For a download, out is made to hold 256 KiB if it is a pipe that holds less and
// the kernel allows it. The size of in is never changed: what waits in it delays
// every key that is pressed later. Deadlines of conn do not end a splice(2).
//
// The error is nil if conn ended in order. A peer that has closed its side needs
// not take what we still send it.
//
// If out is a pipe or a socket, have [ReaderGone] cancel ctx: nothing else tells
// that its reader has gone while the peer says nothing.
func Splice(ctx context.Context, conn net.Conn, in io.Reader, out io.Writer) error {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before the Close, which waits for a splice(2) to let go of conn
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
		case err = <-sent: // Linux reports a reset once: a write may have taken it from the read
		default:
		}
	}
	return err
}

// send copies in to conn and then closes the sending half.
func send(ctx context.Context, conn net.Conn, in io.Reader) error {
	readErr, writeErr := stream(ctx, conn, in)
	if writeErr != nil {
		if errors.Is(writeErr, syscall.EPIPE) { // closed by the peer, in order
			return nil
		}
		return writeErr
	}
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // if it fails, reading conn says why
	}
	if readErr != nil {
		return fmt.Errorf("read input: %w", readErr)
	}
	return nil
}

// receive copies conn to out.
func receive(ctx context.Context, out io.Writer, conn net.Conn) error {
	readErr, writeErr := stream(ctx, out, conn)
	if writeErr != nil {
		return fmt.Errorf("write output: %w", writeErr)
	}
	return readErr
}

// stream moves src to dst until one of them ends, and tells which: both errors
// are nil at the end of src. What is little goes through a buffer: a program that
// waits for a key's echo is woken up later by splice(2) than by write(2). It is a
// plain loop for a reason: io.Copy from a TCP connection to a pipe uses splice(2)
// too, and keeps a core busy as long as the pipe is full (golang/go#75304).
func stream(ctx context.Context, dst io.Writer, src io.Reader) (readErr, writeErr error) {
	buf := make([]byte, bufferSize)
	next := copyLittle
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
		if n >= bulk && next != copyAll {
			if next, readErr, writeErr = spliceStream(ctx, dst, src); next == finish {
				return readErr, writeErr
			}
		}
	}
}

// step is how a stream goes on after an attempt at splice(2).
type step int

const (
	copyLittle step = iota // copy until much comes at once again
	copyAll                // copy all that comes: splice(2) cannot move this stream
	finish                 // the stream is at its end, or has failed
)
