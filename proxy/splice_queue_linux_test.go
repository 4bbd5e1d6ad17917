package proxy

import (
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// unsentLimit returns TCP_NOTSENT_LOWAT of a connection.
func unsentLimit(t *testing.T, conn any) (n int) {
	t.Helper()
	withFD(conn, func(fd int) {
		var err error
		if n, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT); err != nil {
			t.Error(err)
		}
	})
	return n
}

// TestQueueFollowsRate: the input pipe holds what leaves within 2 ms, and the socket what
// leaves within 5 ms.
func TestQueueFollowsRate(t *testing.T) {
	conn, _ := pair(t)
	inR, inW := pipe(t)
	const kilo = 1 << 10
	synctest.Test(t, func(t *testing.T) { // the time is exact
		moved := limitQueue(conn, inR)
		for _, step := range []struct {
			name         string
			bytes        int64
			in           time.Duration
			waiting      int // number of bytes that fill the pipe meanwhile
			pipe, unsent int
		}{
			{"start", 0, 0, 0, 8 * kilo, 16 * kilo},
			{"fast, but too short", 64 * kilo, 4 * time.Millisecond, 0, 8 * kilo, 16 * kilo},
			{"16 KiB per ms", 16 * kilo, time.Millisecond, 0, 32 * kilo, 80 * kilo},
			{"too few pipes", 127 * kilo, 5 * time.Millisecond, 0, 32 * kilo, 80 * kilo},
			{"12.8 KiB per ms", kilo, 5 * time.Millisecond, 0, 32 * kilo, 64 * kilo},
			{"1 GiB per s", 10 * mega, 10 * time.Millisecond, 0, 64 * kilo, 1024 * kilo},
			{"1 MiB per s, full pipe", mega, time.Second, 60 * kilo, 64 * kilo, 16 * kilo},
			{"1 MiB per s", mega, time.Second, 0, 8 * kilo, 16 * kilo},
		} {
			inW.Write(make([]byte, step.waiting))
			time.Sleep(step.in)
			moved(step.bytes)
			if pipe, unsent := pipeSize(t, inR), unsentLimit(t, conn); pipe != step.pipe || max(unsent-step.unsent, step.unsent-unsent) > 1 {
				t.Errorf("%s: the pipe can hold %d bytes, want %d; the socket %d, want %d", step.name, pipe, step.pipe, unsent, step.unsent)
			}
			io.ReadFull(inR, make([]byte, step.waiting))
		}
	})
}

// TestSpliceLimitsQueue: the queue is short before the first data of an upload. No pipe is
// larger after transfers than before.
func TestSpliceLimitsQueue(t *testing.T) {
	for _, size := range []int{4 << 10, 16 << 10, 64 << 10} {
		conn, server := pair(t)
		inR, inW := pipe(t)
		outR, outW := pipe(t)
		for _, f := range []*os.File{inR, outR} {
			withFD(f, func(fd int) {
				if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size); err != nil {
					t.Fatal(err)
				}
			})
		}
		ended := make(chan error, 1)
		go func() { ended <- Splice(t.Context(), conn, inR, outW) }()
		io.WriteString(server, "x")
		io.ReadFull(outR, make([]byte, 1))
		if pipe, unsent := pipeSize(t, inR), unsentLimit(t, conn); pipe != min(size, 8<<10) || unsent != 16<<10 {
			t.Errorf("the input pipe can hold %d bytes, and the socket %d, want %d and %d", pipe, unsent, min(size, 8<<10), 16<<10)
		}
		go io.CopyN(inW, noise(8*mega, 15), 8*mega)
		go io.CopyN(io.Discard, outR, 8*mega)
		largest := 0
		for buf, n := make([]byte, mega), 0; n < 8*mega; largest = max(largest, pipeSize(t, inR)) {
			m, err := server.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
		io.CopyN(server, noise(8*mega, 16), 8*mega)
		server.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if out := pipeSize(t, outR); largest > size || out != size {
			t.Errorf("the input pipe could hold %d bytes, and the output pipe %d, want at most %d", largest, out, size)
		}
	}
}
