package proxy

import (
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

// spliceOnly moves src to dst by splice(2). It fails the test if the stream would be
// copied.
func spliceOnly(t *testing.T, ctx context.Context, dst io.Writer, src io.Reader) (readErr, writeErr error) {
	next, readErr, writeErr := spliceStream(ctx, dst, src)
	if next != finish {
		t.Error("splice(2) did not finish the stream: the rest would be copied")
	}
	return readErr, writeErr
}

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

// TestOnlyDeclinedSpliceIsCopied: if the kernel declines splice(2), the stream is copied
// and does not try splice(2) again. Any other error ends the stream: a socket reports an
// error only once, and a later read would look like the end.
func TestOnlyDeclinedSpliceIsCopied(t *testing.T) {
	const size = 32 * mega
	for _, test := range []struct {
		errno    syscall.Errno
		declined bool
	}{
		{unix.EFAULT, true}, // gVisor's answer
		{unix.EINVAL, true},
		{unix.ENOSYS, true},
		{unix.EPERM, true},
		{unix.EIO, false},
		{unix.ECONNRESET, false},
	} {
		t.Run(unix.ErrnoName(test.errno), func(t *testing.T) {
			conn, server := pair(t)
			outR, outW := pipe(t)
			go func() {
				io.Copy(server, noise(size, 10))
				server.Close()
			}()
			down := make(chan string, 1)
			go func() { down <- digest(outR) }()
			src := &attempts{TCPConn: conn}
			var readErr, writeErr error
			withoutSplice(t, test.errno, func() { readErr, writeErr = stream(t.Context(), outW, src) })
			outW.Close()
			got := <-down
			var want error
			if !test.declined {
				want = test.errno
			}
			if !errors.Is(readErr, want) || writeErr != nil {
				t.Errorf("read error %v, write error %v, want read error %v", readErr, writeErr, want)
			}
			if whole := digest(noise(size, 10)); test.declined && got != whole {
				t.Errorf("got %s, want %s", got, whole)
			}
			if src.n != 1 {
				t.Errorf("%d attempts at splice(2), want 1", src.n)
			}
		})
	}
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

// TestDownloadEnlargesOutputPipe: a download enlarges the output pipe. A single byte does
// not.
func TestDownloadEnlargesOutputPipe(t *testing.T) {
	conn, server := pair(t)
	stdin, _ := pipe(t)
	outR, outW := pipe(t)
	small := pipeSize(t, outR)
	ended := make(chan error, 1)
	go func() { ended <- Splice(t.Context(), conn, stdin, outW) }()
	io.WriteString(server, "x")
	io.ReadFull(outR, make([]byte, 1))
	if n := pipeSize(t, outR); n != small {
		t.Errorf("after one byte the output pipe can hold %d bytes, want %d as before", n, small)
	}
	go func() {
		io.Copy(server, noise(4*mega, 8))
		server.Close()
	}()
	if n, err := io.CopyN(io.Discard, outR, 4*mega); err != nil {
		t.Fatal(n, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	want := 256 << 10
	_, other := pipe(t)
	if _, err := unix.FcntlInt(other.Fd(), unix.F_SETPIPE_SZ, want); err != nil {
		want = small // the kernel does not let this user enlarge a pipe
	}
	if n := pipeSize(t, outR); n != want {
		t.Errorf("after a transfer the output pipe can hold %d bytes, want %d", n, want)
	}
}

// TestUploadKeepsInputPipeSize: an upload does not enlarge the input pipe, because data in
// that pipe delays every key that is pressed later.
func TestUploadKeepsInputPipeSize(t *testing.T) {
	conn, server := pair(t)
	inR, inW := pipe(t)
	_, outW := pipe(t)
	before := pipeSize(t, inR)
	go func() {
		io.Copy(inW, noise(8*mega, 8))
		inW.Close()
	}()
	up := make(chan string, 1)
	go func() {
		up <- digest(server)
		server.Close()
	}()
	if err := Splice(t.Context(), conn, inR, outW); err != nil {
		t.Error(err)
	}
	if got, want := <-up, digest(noise(8*mega, 8)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if after := pipeSize(t, inR); after != before {
		t.Errorf("after an upload the input pipe can hold %d bytes, want %d as before", after, before)
	}
}
