//go:build unix

package proxy

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second // for what is due at once

func isGone(gone <-chan struct{}, wait time.Duration) bool {
	select {
	case <-gone:
		return true
	case <-time.After(wait):
		return false
	}
}

func socketpair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestReaderGone(t *testing.T) {
	for _, test := range []struct {
		name string
		ends func(*testing.T) (reader, writer *os.File)
	}{
		{"pipe", pipe},
		{"socketpair", socketpair},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, w := test.ends(t)
			before := flags(t, w)
			gone := ReaderGone(t.Context(), w)
			if _, err := w.Write(make([]byte, 4096)); err != nil { // unread data is no sign
				t.Fatal(err)
			}
			if test.name == "socketpair" {
				if _, err := r.Write([]byte("x")); err != nil { // nor is data for us
					t.Fatal(err)
				}
			}
			if isGone(gone, 50*time.Millisecond) {
				t.Fatal("gone while it was there")
			}
			if after := flags(t, w); after != before {
				t.Errorf("flags were %#x and are %#x", before, after)
			}
			r.Close()
			if !isGone(gone, patience) {
				t.Error("not noticed")
			}
			if !isGone(ReaderGone(t.Context(), w), patience) {
				t.Error("not noticed afterwards")
			}
			w.Close()
			if !isGone(ReaderGone(t.Context(), w), patience) {
				t.Error("nobody reads a closed file")
			}
		})
	}
}

func TestReaderNeverGone(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{null, file} {
		ctx, stop := context.WithCancel(t.Context())
		gone := ReaderGone(ctx, f)
		if isGone(gone, 50*time.Millisecond) {
			t.Errorf("%s has lost its reader", f.Name())
		}
		stop()
		f.Close()
	}
}

// Stopped, it lets go of the file: Close of a non-blocking one waits for that.
func TestReaderGoneStops(t *testing.T) {
	_, w := pipe(t)
	ctx, stop := context.WithCancel(t.Context())
	gone := ReaderGone(ctx, w)
	if isGone(gone, 20*time.Millisecond) {
		t.Error("gone while it was there")
	}
	stop()
	closed := make(chan struct{})
	go func() {
		w.Close()
		close(closed)
	}()
	if !isGone(closed, patience) {
		t.Error("the file is still in use")
	}
	if isGone(gone, 0) {
		t.Error("stopping is not going")
	}
}

func TestSpliceReaderGone(t *testing.T) {
	conn, _ := pair(t) // whose server is silent
	stdin, _ := pipe(t)
	outR, outW := pipe(t)
	ctx, cancel := context.WithCancel(t.Context())
	gone := ReaderGone(ctx, outW)
	go func() {
		<-gone
		cancel()
	}()
	ended := make(chan struct{})
	go func() {
		Splice(ctx, conn, stdin, outW)
		close(ended)
	}()
	outR.Close()
	if !isGone(ended, patience) {
		t.Error("still splicing for nobody")
	}
}

// A reader that does not read for a second costs nothing: io.Copy from a TCP
// connection to a pipe keeps a core busy for as long.
func TestSpliceStalledReader(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	conn, server := pair(t)
	stdin, _ := pipe(t)
	outR, outW := pipe(t)
	go io.Copy(server, noise(64*mega, 5))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		Splice(ctx, conn, stdin, outW)
		close(ended)
	}()
	if _, err := io.ReadFull(outR, make([]byte, mega)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // until all buffers are full
	start, busy := time.Now(), cpuTime(t)
	time.Sleep(time.Second)
	busy, stall := cpuTime(t)-busy, time.Since(start)
	t.Logf("%v of CPU time in %v", busy, stall)
	if busy > stall/5 {
		t.Errorf("%v of CPU time in a stall of %v", busy, stall)
	}
	cancel()
	if !isGone(ended, patience) {
		t.Error("still splicing")
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func flags(t *testing.T, f *os.File) int {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	raw.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}
