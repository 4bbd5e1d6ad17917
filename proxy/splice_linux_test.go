package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nonBlocking returns a non-blocking duplicate of f.
func nonBlocking(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	dup := os.NewFile(uintptr(fd), f.Name())
	t.Cleanup(func() { dup.Close() })
	return dup
}

// blocking makes f blocking, as a pipe of a shell is. A pipe of os.Pipe is non-blocking.
func blocking(f *os.File) *os.File {
	f.Fd()
	return f
}

// TestSpliceKeepsDataAndFlagsOfPipes: blocking and non-blocking pipes deliver all data,
// and keep their flags.
func TestSpliceKeepsDataAndFlagsOfPipes(t *testing.T) {
	const size = 8 * mega
	for _, test := range []struct {
		name string
		mode func(*os.File) *os.File
	}{
		{"blocking", blocking},
		{"non-blocking", func(f *os.File) *os.File { return nonBlocking(t, f) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, server := pair(t)
			inR, inW := pipe(t)
			outR, outW := pipe(t)
			in, out := test.mode(inR), test.mode(outW)
			before := [2]int{flags(t, in), flags(t, out)}
			go func() {
				io.Copy(inW, noise(size, 6))
				inW.Close()
			}()
			down := make(chan string, 1)
			go func() { down <- digest(outR) }()
			up := make(chan string, 1)
			go func() {
				up <- digest(server) // the whole upload comes first, so that the output pipe is empty meanwhile
				io.Copy(server, noise(size, 7))
				server.Close()
			}()
			if err := Splice(t.Context(), conn, in, out); err != nil {
				t.Error(err)
			}
			if after := [2]int{flags(t, in), flags(t, out)}; after != before {
				t.Errorf("Splice changed the flags of the pipes from %#x to %#x", before, after)
			}
			out.Close()
			outW.Close()
			if got, want := <-up, digest(noise(size, 6)); got != want {
				t.Errorf("up: got %s, want %s", got, want)
			}
			if got, want := <-down, digest(noise(size, 7)); got != want {
				t.Errorf("down: got %s, want %s", got, want)
			}
		})
	}
}

// spliceOnly moves src to dst by splice(2) until splice(2) fails. It returns the error,
// and checks that the rest of the stream would be copied.
func spliceOnly(t *testing.T, ctx context.Context, dst io.Writer, src io.Reader) (readErr, writeErr error) {
	next, readErr, writeErr := spliceStream(ctx, dst, src, uncounted)
	if next != copyAll {
		t.Error("splice(2) has not failed")
	}
	return readErr, writeErr
}

// uncounted is for a stream whose rate does not count.
func uncounted(int64) {}

func TestSpliceTellsWhichSideFailed(t *testing.T) {
	t.Run("reader gone", func(t *testing.T) {
		conn, server := pair(t)
		outR, outW := pipe(t)
		outR.Close()
		server.Write([]byte("x"))
		if r, w := spliceOnly(t, t.Context(), outW, conn); r != nil || !errors.Is(w, syscall.EPIPE) {
			t.Errorf("read error %v, write error %v, want only write error EPIPE", r, w)
		}
	})
	t.Run("reset while reading", func(t *testing.T) {
		conn, server := pair(t)
		_, outW := pipe(t)
		server.SetLinger(0)
		server.Close()
		if r, w := spliceOnly(t, t.Context(), outW, conn); !errors.Is(r, syscall.ECONNRESET) || w != nil {
			t.Errorf("read error %v, write error %v, want only read error ECONNRESET", r, w)
		}
	})
	t.Run("reset while writing", func(t *testing.T) {
		conn, server := pair(t)
		inR, inW := pipe(t)
		server.SetLinger(0)
		server.Close()
		awaitReset(t, conn) // before the reset the write would succeed
		inW.Write([]byte("x"))
		if r, w := spliceOnly(t, t.Context(), conn, inR); r != nil || !errors.Is(w, syscall.ECONNRESET) {
			t.Errorf("read error %v, write error %v, want only write error ECONNRESET", r, w)
		}
	})
}

// awaitReset waits until the connection has been reset. It does not read from conn.
func awaitReset(t *testing.T, conn *net.TCPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}} // poll(2) always reports POLLERR and POLLHUP
		for n, err = unix.Poll(fds, int(patience.Milliseconds())); err == unix.EINTR; {
			n, err = unix.Poll(fds, int(patience.Milliseconds()))
		}
	})
	if n != 1 {
		t.Fatalf("the connection was not reset in time: error %v", err)
	}
}

// useUpDescriptors prevents new descriptors for the rest of the test.
func useUpDescriptors(t *testing.T) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
}

// TestCancelledSpliceReleasesFiles: a canceled Splice returns at once, no matter what it
// waits for. Its files can be closed afterwards.
func TestCancelledSpliceReleasesFiles(t *testing.T) {
	writeForever := func(w io.Writer) {
		for buf := make([]byte, 64<<10); ; {
			if _, err := w.Write(buf); err != nil {
				return
			}
		}
	}
	for _, test := range []struct {
		name  string
		start func(t *testing.T, conn, server *net.TCPConn, inW *os.File)
	}{
		{"silent server and input", func(t *testing.T, conn, server *net.TCPConn, inW *os.File) {}},
		{"stalled reader", func(t *testing.T, conn, server *net.TCPConn, inW *os.File) { go writeForever(server) }},
		{"stalled server", func(t *testing.T, conn, server *net.TCPConn, inW *os.File) { go writeForever(inW) }},
		{"stalled server, and no descriptor left for the stopper", func(t *testing.T, conn, server *net.TCPConn, inW *os.File) {
			go writeForever(inW)
			useUpDescriptors(t)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, server := pair(t)
			inR, inW := pipe(t)
			_, outW := pipe(t)
			test.start(t, conn, server, inW)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			ended := make(chan struct{})
			go func() {
				if err := Splice(ctx, conn, blocking(inR), blocking(outW)); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v, want context.DeadlineExceeded", err)
				}
				inR.Close()
				outW.Close()
				close(ended)
			}()
			if !closesWithin(ended, patience) {
				t.Fatal("Splice has not returned, or its files cannot be closed")
			}
		})
	}
}

// TestUrgentDataDoesNotEndStream: splice(2) does not go past urgent data. It returns
// EAGAIN for ever, or the end of the stream. The stream then goes on without the urgent
// data, as it does with read(2).
func TestUrgentDataDoesNotEndStream(t *testing.T) {
	const size = mega / 4 // the data fits into the buffers on the way
	all := func() io.Reader { return io.MultiReader(noise(size, 9), strings.NewReader("after")) }
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("server closes=%v", closed), func(t *testing.T) {
			conn, server := pair(t)
			stdin, _ := pipe(t)
			outR, outW := pipe(t)
			raw, err := server.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				io.Copy(server, noise(size, 9))
				raw.Write(func(fd uintptr) bool { return unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) != unix.EAGAIN })
				io.WriteString(server, "after")
				if closed {
					server.Close()
				}
			}()
			ended := make(chan error, 1)
			go func() { ended <- Splice(t.Context(), conn, stdin, outW) }()
			if !closesWithin(sent, patience) {
				t.Fatal("the server cannot send all of its data")
			}
			outR.SetReadDeadline(time.Now().Add(patience))
			if got, want := digest(io.LimitReader(outR, size+5)), digest(all()); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			server.Close()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFailedSpliceIsCopied: if splice(2) fails, the stream is copied and does not try
// splice(2) again.
func TestFailedSpliceIsCopied(t *testing.T) {
	const size = 32 * mega
	for _, errno := range []syscall.Errno{
		unix.EAGAIN, unix.EINVAL, unix.ENOSYS, unix.EPERM, unix.EFAULT, unix.EOPNOTSUPP, unix.ENOMEM,
		unix.EIO, unix.ECONNRESET,
	} {
		t.Run(unix.ErrnoName(errno), func(t *testing.T) {
			conn, server := pair(t)
			outR, outW := pipe(t)
			go func() {
				io.Copy(server, noise(size, 10))
				server.Close()
			}()
			down := make(chan string, 1)
			go func() { down <- digest(outR) }()
			src := &attempts{TCPConn: conn}
			withoutSplice(t, errno, func() {
				if readErr, writeErr := stream(t.Context(), outW, src, uncounted); readErr != nil || writeErr != nil {
					t.Errorf("read error %v, write error %v, want none", readErr, writeErr)
				}
			})
			outW.Close()
			if got, want := <-down, digest(noise(size, 10)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if src.n != 1 {
				t.Errorf("%d attempts at splice(2), want 1", src.n)
			}
		})
	}
}

// TestSpliceErrorBeforeEndIsReported: a socket reports an error only once. If splice(2) has
// failed and the next read is the end, or the next write fails, the stream returns the
// error of splice(2). That the kernel declines splice(2) is not such an error.
func TestSpliceErrorBeforeEndIsReported(t *testing.T) {
	for errno, want := range map[syscall.Errno]error{unix.EIO: unix.EIO, unix.EINVAL: nil, unix.ENOMEM: nil} {
		t.Run("read, "+unix.ErrnoName(errno), func(t *testing.T) {
			conn, server := pair(t)
			_, outW := pipe(t)
			server.Write(make([]byte, bulkSize))
			server.Close()
			withoutSplice(t, errno, func() {
				if readErr, writeErr := stream(t.Context(), outW, conn, uncounted); !errors.Is(readErr, want) || writeErr != nil {
					t.Errorf("read error %v, write error %v, want only read error %v", readErr, writeErr, want)
				}
			})
		})
		t.Run("write, "+unix.ErrnoName(errno), func(t *testing.T) {
			conn, server := pair(t)
			inR, inW := pipe(t)
			inW.Write(make([]byte, 2*bulkSize))
			inW.Close()
			server.Close()
			dst := &failing{TCPConn: conn}
			withoutSplice(t, errno, func() {
				want := cmp.Or[error](want, syscall.EPIPE)
				readErr, writeErr := stream(t.Context(), dst, bulkReader{inR}, uncounted)
				if readErr != nil || !errors.Is(writeErr, want) {
					t.Errorf("read error %v, write error %v, want only write error %v", readErr, writeErr, want)
				}
			})
		})
	}
}

// failing fails at the second Write with EPIPE, as a socket does that has reported its
// error before.
type failing struct {
	*net.TCPConn
	n int
}

func (f *failing) Write(b []byte) (int, error) {
	if f.n++; f.n == 2 {
		return 0, syscall.EPIPE
	}
	return len(b), nil
}

// bulkReader reads at most bulkSize bytes at once.
type bulkReader struct{ *os.File }

func (r bulkReader) Read(b []byte) (int, error) { return r.File.Read(b[:bulkSize]) }

// TestResetHasOneText: a reset has the same text, whichever call notices it.
func TestResetHasOneText(t *testing.T) {
	for _, test := range []struct {
		name  string
		input int64 // number of bytes that are waiting to be sent
		sent  int64 // number of bytes that the server sends before the reset
	}{
		{"read", 0, 1},
		{"splice from the connection", 0, mega},
		{"write", 1, 0},
		{"splice to the connection", 64 * mega, 0},
		{"both directions", 64 * mega, mega},
	} {
		t.Run(test.name, func(t *testing.T) {
			for range 20 { // it is a matter of chance which direction gets the error
				conn, server := pair(t)
				inR, inW := pipe(t)
				outR, outW := pipe(t)
				go io.Copy(inW, noise(test.input, 11))
				go func() {
					if test.input > mega {
						io.CopyN(io.Discard, server, mega)
					}
					io.CopyN(server, noise(test.sent, 12), test.sent)
					server.SetLinger(0)
					server.Close()
				}()
				go io.Copy(io.Discard, outR)
				err := Splice(t.Context(), conn, inR, outW)
				if !errors.Is(err, syscall.ECONNRESET) || err.Error() != "connection lost: connection reset by peer" {
					t.Fatalf("error %v, want: connection lost: connection reset by peer", err)
				}
				inR.Close()
				outW.Close()
			}
		})
	}
}

// TestLaterNonBlockingFilesKeepStream: another process may make the input and the output
// non-blocking while the stream is under way.
func TestLaterNonBlockingFilesKeepStream(t *testing.T) {
	const size = mega
	for _, kind := range []struct {
		name string
		ends func(*testing.T) (r, w *os.File)
	}{
		{"pipe", pipe},
		{"socketpair", func(t *testing.T) (r, w *os.File) { return socketpair(t) }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			conn, server := pair(t)
			inR, inW := kind.ends(t)
			outR, outW := kind.ends(t)
			in, out := blocking(inR), blocking(outW)
			ended := make(chan error, 1)
			go func() { ended <- Splice(t.Context(), conn, in, out) }()
			io.WriteString(server, "x")
			io.ReadFull(outR, make([]byte, 1)) // Splice reads and writes now
			for _, f := range []*os.File{in, out} {
				unix.SetNonblock(int(withoutPoller(t, f)), true)
			}
			up := make(chan string, 1)
			go func() {
				up <- digest(io.LimitReader(server, size))
				io.Copy(server, noise(size, 14))
				server.Close()
			}()
			pieces := noise(size, 13)
			for n := int64(1); ; n *= 2 { // the input is empty at times, and full at times
				if m, err := io.CopyN(inW, pieces, n); m < n || err != nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if got, want := <-up, digest(noise(size, 13)); got != want {
				t.Errorf("up: got %s, want %s", got, want)
			}
			time.Sleep(50 * time.Millisecond) // the output is full
			down := make(chan string, 1)
			go func() { down <- digest(outR) }()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			unix.SetNonblock(int(withoutPoller(t, out)), false)
			out.Close()
			if got, want := <-down, digest(noise(size, 14)); got != want {
				t.Errorf("down: got %s, want %s", got, want)
			}
		})
	}
}

// withoutPoller returns the descriptor of a file. Unlike Fd, it does not change a flag.
func withoutPoller(t *testing.T, f *os.File) (n uintptr) {
	t.Helper()
	if err := control(f, func(fd uintptr) { n = fd }); err != nil {
		t.Fatal(err)
	}
	return n
}

// withoutSplice runs f on a thread for which splice(2) fails with errno.
func withoutSplice(t *testing.T, errno syscall.Errno, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // without an unlock the thread ends with the goroutine, and its filter ends too
		err := failSystemCall(unix.SYS_SPLICE, errno)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skipf("cannot install a seccomp filter: %v", err)
	}
}

// failSystemCall makes a system call fail with errno for the calling thread.
func failSystemCall(call uint32, errno syscall.Errno) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // load the first word, the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// attempts wraps a connection and counts the attempts at splice(2): each attempt calls
// SyscallConn.
type attempts struct {
	*net.TCPConn
	n int
}

func (a *attempts) SyscallConn() (syscall.RawConn, error) {
	a.n++
	return a.TCPConn.SyscallConn()
}

// pipeSize returns how many bytes a pipe can hold.
func pipeSize(t *testing.T, f *os.File) int {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	raw.Control(func(fd uintptr) { size, err = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) })
	if err != nil {
		t.Fatal(err)
	}
	return size
}
