package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

// TestUploadDelaysKeysLessThanWithNC: a key that is pressed during an upload over the same
// ssh connection waits for less data than with nc. The uplink is slow.
func TestUploadDelaysKeysLessThanWithNC(t *testing.T) {
	t.Parallel()
	lab.Require(t, "ssh", "sshd", "nc")
	profile := vpsProfile(t, twoKnocks)
	proxies := map[string][]string{
		"nc":           {"ProxyCommand nc %h %p"},
		"portknock":    {"ProxyCommand portknock -c " + profile + " --profile vps %h %p"},
		"portknock -F": {"ProxyCommand portknock -F -c " + profile + " --profile vps %h %p", "ProxyUseFdpass yes"},
	}
	var mu sync.Mutex
	delays := map[string]time.Duration{}
	t.Run("measure", func(t *testing.T) {
		for name, proxy := range proxies {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				delay := keyDelay(t, proxy)
				mu.Lock()
				defer mu.Unlock()
				delays[name] = delay
			})
		}
	})
	t.Logf("median time of a key and its echo during an upload: %v", delays)
	for _, name := range []string{"portknock", "portknock -F"} {
		if limit := delays["nc"] * 85 / 100; delays[name] > limit {
			t.Errorf("%s: a key and its echo take %v, want at most %v, because nc takes %v", name, delays[name], limit, delays["nc"])
		}
	}
}

// keyDelay returns the median time of a key and its echo during an upload. ssh uses proxy,
// which are lines of its configuration.
func keyDelay(t *testing.T, proxy []string) time.Duration {
	t.Helper()
	client, server := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.LinkWAN(t, client, server, lab.WAN{Delay: 20 * time.Millisecond, UpRate: 250_000, Queue: 64_000})
	host := append([]string{"Host vps", "HostName " + server.Addr(lab.IPv4).String()}, proxy...)
	config := server.SSHD(t, []uint16{lab.GuardedPort}).ClientConfig(t, host...)
	socket := filepath.Join(t.TempDir(), "master")
	keys := startEcho(t, client.Command("ssh", "-F", config, "-S", socket, "-M", "vps", "cat"))
	upload := client.Command("ssh", "-F", config, "-S", socket, "vps", "cat >/dev/null")
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	upload.Stdin = zero
	if err := upload.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(upload.End)
	var delays []time.Duration
	for range 10 {
		pressed := time.Now()
		keys.say(t, "key")
		delays = append(delays, time.Since(pressed))
	}
	delays = delays[3:] // the buffers fill meanwhile
	slices.Sort(delays)
	return delays[len(delays)/2]
}

// TestTransfersLeavePipesToTheirUser: the pipes of one user may hold 64 MiB together. During
// 64 transfers of a user, a new pipe of this user still has its full size of 64 KiB.
func TestTransfersLeavePipesToTheirUser(t *testing.T) {
	t.Parallel()
	lab.Require(t, "setpriv")
	const transfers, uid, size = 64, 64016, 1 << 20
	program, err := exec.LookPath("portknock")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(program), 0o711); err != nil { // so that the user can run it
		t.Fatal(err)
	}
	client, server := twoHosts(t)
	server.Serve(t, lab.GuardedPort, func(c net.Conn) {
		go io.CopyN(c, zeros{}, size)
		io.Copy(io.Discard, c)
	})
	var through sync.WaitGroup
	for range transfers {
		stdin, in := pipeOf(t, uid)
		out, stdout := pipeOf(t, uid)
		c := client.Command("setpriv", fmt.Sprintf("--reuid=%d", uid), "--clear-groups", program, "--optional", server.Addr(lab.IPv4).String(), "22")
		c.Env = append(c.Env, "HOME=/nonexistent")
		c.Stdin, c.Stdout = stdin, stdout
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.End)
		stdin.Close()
		stdout.Close()
		for _, move := range []func() (int64, error){
			func() (int64, error) { return io.CopyN(in, zeros{}, size) },
			func() (int64, error) { return io.CopyN(io.Discard, out, size) },
		} {
			through.Go(func() {
				if n, err := move(); err != nil {
					t.Errorf("only %d of %d bytes went through: %v", n, size, err)
				}
			})
		}
	}
	through.Wait()
	_, fresh := pipeOf(t, uid)
	if n, err := unix.FcntlInt(fresh.Fd(), unix.F_GETPIPE_SZ, 0); n != 64<<10 || err != nil {
		t.Errorf("a new pipe can hold %d bytes, want %d; %v", n, 64<<10, err)
	}
}

// zeros is an endless stream of zeros.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// pipeOf returns both ends of a pipe that counts as a pipe of a user.
func pipeOf(t *testing.T, uid int) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // without an unlock, the thread ends with the goroutine
		var err error
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			err = errno
		} else {
			err = unix.Pipe2(fds[:], unix.O_CLOEXEC)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}
