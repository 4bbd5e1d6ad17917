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

const patience = 10 * time.Second // limit for an event that should come at once

// closesWithin reports whether the channel c is closed before the time wait has passed.
func closesWithin(c <-chan struct{}, wait time.Duration) bool {
	select {
	case <-c:
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

func TestReaderGoneReportsLostReader(t *testing.T) {
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
			if _, err := w.Write(make([]byte, 4096)); err != nil { // unread data does not mean that the reader has gone
				t.Fatal(err)
			}
			if test.name == "socketpair" {
				if _, err := r.Write([]byte("x")); err != nil { // data in the other direction does not mean it either
					t.Fatal(err)
				}
			}
			if closesWithin(gone, 50*time.Millisecond) {
				t.Fatal("the channel is closed while the reader is there")
			}
			if after := flags(t, w); after != before {
				t.Errorf("ReaderGone changed the flags from %#x to %#x", before, after)
			}
			r.Close()
			if !closesWithin(gone, patience) {
				t.Error("the channel is open after the reader has gone")
			}
			if !closesWithin(ReaderGone(t.Context(), w), patience) {
				t.Error("ReaderGone does not report a reader that has gone before the call")
			}
			w.Close()
			if !closesWithin(ReaderGone(t.Context(), w), patience) {
				t.Error("ReaderGone does not report a closed file")
			}
		})
	}
}

func TestReaderGoneStaysOpenForFiles(t *testing.T) {
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
		if closesWithin(gone, 50*time.Millisecond) {
			t.Errorf("%s: the channel is closed, but a file has no reader to lose", f.Name())
		}
		stop()
		f.Close()
	}
}

// TestStoppedReaderGoneReleasesFile: when ctx is done, ReaderGone releases the file. Close
// of a non-blocking file waits for that.
func TestStoppedReaderGoneReleasesFile(t *testing.T) {
	_, w := pipe(t)
	ctx, stop := context.WithCancel(t.Context())
	gone := ReaderGone(ctx, w)
	if closesWithin(gone, 20*time.Millisecond) {
		t.Error("the channel is closed while the reader is there")
	}
	stop()
	closed := make(chan struct{})
	go func() {
		w.Close()
		close(closed)
	}()
	if !closesWithin(closed, patience) {
		t.Error("Close still waits for ReaderGone")
	}
	if closesWithin(gone, 0) {
		t.Error("the channel is closed, but the reader is there and only ctx is done")
	}
}

func TestReaderGoneEndsSplice(t *testing.T) {
	conn, _ := pair(t) // the server of conn is silent
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
	if !closesWithin(ended, patience) {
		t.Error("Splice goes on after the reader of its output has gone")
	}
}

// TestStalledReaderCostsNoCPUTime: Splice sleeps while the reader of its output does not
// read for a second. io.Copy from a TCP connection to a pipe would keep a core busy.
func TestStalledReaderCostsNoCPUTime(t *testing.T) {
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
	time.Sleep(100 * time.Millisecond) // all buffers are full afterwards
	start, busy := time.Now(), cpuTime(t)
	time.Sleep(time.Second)
	busy, stall := cpuTime(t)-busy, time.Since(start)
	t.Logf("%v of CPU time in %v", busy, stall)
	if busy > stall/5 {
		t.Errorf("%v of CPU time in a stall of %v, want at most a fifth", busy, stall)
	}
	cancel()
	if !closesWithin(ended, patience) {
		t.Error("Splice goes on after ctx is done")
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
