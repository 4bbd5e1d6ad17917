package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"golang.org/x/sys/unix"
)

// The phases of a login.
const (
	whileReadingKey = "reading the key"
	whileKnocking   = "knocking"
	whileConnected  = "connected"
)

// endings tells how a login in each phase ends after a signal. A signal that does not end
// the login is followed by another event: by SIGTERM before the connection, by the end of
// the server's data after it. Signal 0 is none.
var endings = map[string]map[syscall.Signal]string{
	whileReadingKey: {
		0: "exit status 3", unix.SIGHUP: "exit status 3", unix.SIGTERM: "exit status 3", unix.SIGPIPE: "exit status 3",
		unix.SIGTSTP: "exit status 3", unix.SIGINT: "exit status 1", unix.SIGQUIT: "exit status 1",
	},
	whileKnocking: {
		0: "exit status 5", unix.SIGHUP: "exit status 5", unix.SIGTERM: "exit status 5", unix.SIGPIPE: "exit status 5",
		unix.SIGTSTP: "exit status 5", unix.SIGINT: "exit status 1", unix.SIGQUIT: "exit status 1",
	},
	whileConnected: {
		0: "exit status 0", unix.SIGHUP: "signal: hangup", unix.SIGTERM: "signal: terminated", unix.SIGPIPE: "exit status 0",
		unix.SIGTSTP: "exit status 0", unix.SIGINT: "exit status 0", unix.SIGQUIT: "exit status 0",
	},
}

// The states of a standard stream or of the log.
const (
	onPipe             = "pipe"
	isClosed           = "closed"
	onNull             = "/dev/null"
	readerGoes         = "reader gone" // the reader goes in the phase, not before
	isFull             = "full"
	becomesNonBlocking = "non-blocking" // the file becomes non-blocking in the phase
	onFullDisk         = "/dev/full"
	onFile             = "file"
	onSocket           = "socket pair"
	onUnreadFIFO       = "FIFO without a reader"
)

var (
	stdinStates  = []string{onPipe, isClosed, onNull, becomesNonBlocking, onFile, onSocket}
	stdoutStates = []string{onPipe, isClosed, onNull, readerGoes, isFull, becomesNonBlocking, onFullDisk, onFile, onSocket}
	stderrStates = []string{onPipe, isClosed, onNull, readerGoes, isFull, becomesNonBlocking, onFullDisk, onFile, onSocket}
	logStates    = []string{onNull, onUnreadFIFO, isFull, onFullDisk, onFile}
)

// situation is a state of each stream, a phase, and a signal that comes in this phase.
type situation struct {
	phase                      string
	signal                     syscall.Signal
	stdin, stdout, stderr, log string
}

func (s situation) String() string {
	name := "no signal"
	if s.signal != 0 {
		name = unix.SignalName(s.signal)
	}
	return fmt.Sprintf("%s, %s; stdin %s, stdout %s, stderr %s, log %s", s.phase, name, s.stdin, s.stdout, s.stderr, s.log)
}

// ending tells how portknock ends.
func (s situation) ending() string {
	end := endings[s.phase][s.signal]
	if s.stdout == onFullDisk && end == "exit status 0" {
		return "exit status 1" // the server's data cannot be written
	}
	return end
}

// TestStatesOfStreams: whatever the state of the standard streams and the log, portknock
// ends in every phase as it should, at once, and leaves nothing behind. All data arrives.
//
// The test runs each state of each stream with every signal in every phase, while the other
// streams are ordinary. For a few seconds it then runs random combinations.
func TestStatesOfStreams(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nft", "pgrep", "ss")
	r := &statesRig{payload: make([]byte, 100_000)}
	r.client, r.server = twoHosts(t)
	r.silent = r.server.Source(lab.IPv4, 1).String()
	r.server.Run(t, "nft", "add table ip silent; add chain ip silent in { type filter hook input priority 0; }; "+
		"add rule ip silent in ip daddr "+r.silent+" meta l4proto tcp drop")
	rand.NewChaCha8([32]byte{1}).Read(r.payload)

	var all []situation
	for _, phase := range []string{whileReadingKey, whileKnocking, whileConnected} {
		for _, signal := range slices.Sorted(maps.Keys(endings[phase])) {
			base := situation{phase, signal, onPipe, onPipe, onPipe, onNull}
			each := func(states []string, field func(*situation) *string) {
				for _, state := range states {
					s := base
					if *field(&s) = state; s != base {
						all = append(all, s)
					}
				}
			}
			all = append(all, base)
			each(stdinStates, func(s *situation) *string { return &s.stdin })
			each(stdoutStates, func(s *situation) *string { return &s.stdout })
			each(stderrStates, func(s *situation) *string { return &s.stderr })
			each(logStates, func(s *situation) *string { return &s.log })
		}
	}
	table := len(all)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	for range 4000 {
		pick := func(states []string) string { return states[random.IntN(len(states))] }
		s := situation{pick([]string{whileReadingKey, whileKnocking, whileConnected}), 0, pick(stdinStates), pick(stdoutStates), pick(stderrStates), pick(logStates)}
		signals := slices.Sorted(maps.Keys(endings[s.phase]))
		s.signal = signals[random.IntN(len(signals))]
		all = append(all, s)
	}

	todo, done := make(chan situation), 0
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for s := range todo {
				if err := r.run(t, s); err != nil {
					t.Errorf("%v: %v", s, err)
				}
			}
		})
	}
	began := time.Now()
	for i, s := range all {
		if t.Failed() || i >= table && (testing.Short() || time.Since(began) > 15*time.Second) {
			break
		}
		todo <- s
		done++
	}
	close(todo)
	workers.Wait()
	t.Logf("%d situations, %d of them in the table; seed %d", done, table, seed)

	if left, err := r.client.Try("pgrep", "-a", "portknock|cat"); err == nil {
		t.Errorf("these programs still run: %s", left)
	}
	if left := r.client.Run(t, "ss", "-Htn", "state", "established"); left != "" {
		t.Errorf("these connections are left: %s", left)
	}
}

// statesRig is where the situations happen.
type statesRig struct {
	client, server *lab.Host
	silent         string // address of the server that answers no connection
	payload        []byte // what the server sends
}

// atOnce is a limit for everything that should happen at once.
const atOnce = 10 * time.Second

// run runs one situation.
func (r *statesRig) run(t *testing.T, s situation) (err error) {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ends, err := newStreamEnds(dir, s)
	defer ends.close()
	if err != nil {
		return err
	}
	var knocks net.PacketConn
	var listener net.Listener
	r.server.Do(func() {
		if knocks, err = net.ListenPacket("udp4", ":0"); err == nil {
			listener, err = net.Listen("tcp4", ":0")
		}
	})
	if err != nil {
		return err
	}
	defer knocks.Close()
	defer listener.Close()

	fifo := filepath.Join(dir, "fifo")
	settings := []string{"HostName " + r.server.Addr(lab.IPv4).String(), "ConnectTimeout 60",
		fmt.Sprintf("Sequence %d/udp %[1]d/udp", knocks.LocalAddr().(*net.UDPAddr).Port)}
	switch s.phase {
	case whileReadingKey:
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			return err
		}
		settings[2] = "Scheme rotating\n" + fmt.Sprintf(`KeyCommand sh -c "cat %s; true"`, fifo)
	case whileKnocking:
		settings[0] = "HostName " + r.silent
	}
	profile := filepath.Join(dir, "profile")
	if err := os.WriteFile(profile, []byte("Host vps\n"+strings.Join(settings, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	c := r.client.Command("sh", "-c", `exec "$@"`+ends.redirect, "sh", "portknock", "-v", "-c", profile,
		"--log-file", ends.log, "vps", fmt.Sprint(listener.Addr().(*net.TCPAddr).Port))
	ends.give(c)
	if err := c.Start(); err != nil {
		return err
	}
	defer c.End()
	ends.started()

	// Wait for the phase.
	var peer *net.TCPConn
	switch s.phase {
	case whileReadingKey:
		key, err := openFIFO(fifo)
		if err != nil {
			return err
		}
		defer func() {
			if _, errWrite := key.WriteString("x"); err == nil && !errors.Is(errWrite, unix.EPIPE) {
				err = fmt.Errorf("the KeyCommand still reads: %v", errWrite)
			}
			key.Close()
		}()
	case whileKnocking:
		_ = knocks.SetReadDeadline(time.Now().Add(atOnce))
		if _, _, err := knocks.ReadFrom(make([]byte, 1)); err != nil {
			return err
		}
	case whileConnected:
		_ = listener.(*net.TCPListener).SetDeadline(time.Now().Add(atOnce))
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		peer = conn.(*net.TCPConn)
		_ = peer.SetDeadline(time.Now().Add(atOnce))
		sent := make([]byte, len(ends.input))
		if len(sent) == 0 {
			sent = make([]byte, 1) // for the end of the data
		}
		if n, err := io.ReadFull(peer, sent); n != len(ends.input) || string(sent[:n]) != ends.input {
			return fmt.Errorf("the server receives %q, %v", sent[:n], err)
		}
	}

	// The event of the situation, and the event that ends the login otherwise.
	ends.change()
	if s.signal != 0 {
		if err := c.Process.Signal(s.signal); err != nil {
			return err
		}
	}
	survives := s.signal == 0 || s.signal == unix.SIGPIPE || s.signal == unix.SIGTSTP
	var output chan error
	switch {
	case peer == nil && s.signal == unix.SIGTSTP:
		_ = c.Process.Signal(unix.SIGCONT)
		fallthrough
	case peer == nil && survives && s.stdout != readerGoes:
		_ = c.Process.Signal(unix.SIGTERM)
	case peer != nil && !strings.HasPrefix(s.ending(), "signal"):
		go func() {
			_, _ = peer.Write(r.payload)
			_ = peer.CloseWrite()
		}()
		output = make(chan error, 1)
		if ends.ours[1] != nil {
			go func() { output <- ends.expectOutput(r.payload) }()
		}
	}
	ended := make(chan struct{})
	go func() { _ = c.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(atOnce):
		return errors.New("portknock does not end")
	}
	if got := c.ProcessState.String(); got != s.ending() {
		return fmt.Errorf("portknock ends with %s, want %s; stderr %q", got, s.ending(), ends.errors())
	}
	if peer == nil {
		return nil
	}
	if _, err := io.Copy(io.Discard, peer); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the connection is still open")
	}
	switch {
	case s.ending() != "exit status 0" || s.stdout == readerGoes:
		return nil
	case ends.ours[1] != nil:
		return <-output
	}
	return ends.expectOutput(r.payload)
}

// openFIFO opens a FIFO for writing as soon as it has a reader.
func openFIFO(path string) (f *os.File, err error) {
	for began := time.Now(); time.Since(began) < atOnce; time.Sleep(2 * time.Millisecond) {
		if f, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			return f, nil
		}
	}
	return nil, err
}

// streamEnds holds both ends of portknock's streams.
type streamEnds struct {
	situation
	redirect string      // what closes streams, for sh
	log      string      // path of the log
	input    string      // what portknock can read from its standard input
	theirs   [3]*os.File // what portknock gets as its standard streams, nil for /dev/null
	ours     [3]*os.File // the other ends; nil for a file without one
	files    []*os.File  // other files that stay open
	filler   int         // number of bytes that fill the standard output

	outputFile string // path of the standard output, if it is a file
}

func newStreamEnds(dir string, s situation) (*streamEnds, error) {
	e := &streamEnds{situation: s, log: filepath.Join(dir, "log")}
	var errs []error
	for n, state := range []string{s.stdin, s.stdout, s.stderr} {
		errs = append(errs, e.open(dir, n, state))
	}
	switch s.log {
	case onNull, onFullDisk:
		e.log = s.log
	case onUnreadFIFO:
		errs = append(errs, unix.Mkfifo(e.log, 0o600))
	case isFull:
		errs = append(errs, unix.Mkfifo(e.log, 0o600))
		f, err := os.OpenFile(e.log, os.O_RDWR, 0)
		errs = append(errs, err)
		e.files = append(e.files, f)
		fill(f)
	}
	return e, errors.Join(errs...)
}

// open opens both ends of stream n: 0 for stdin, 1 for stdout, 2 for stderr.
func (e *streamEnds) open(dir string, n int, state string) (err error) {
	name := filepath.Join(dir, fmt.Sprint(n))
	const input = "hello"
	switch state {
	case isClosed:
		e.redirect += fmt.Sprintf(" %d>&-", n)
	case onNull:
	case onFullDisk:
		e.theirs[n], err = os.OpenFile(onFullDisk, os.O_WRONLY, 0)
	case onFile:
		if n == 0 {
			e.input = input
			if err := os.WriteFile(name, []byte(input), 0o600); err != nil {
				return err
			}
		}
		if n == 1 {
			e.outputFile = name
		}
		e.theirs[n], err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	case onSocket:
		var fds [2]int
		fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		e.theirs[n], e.ours[n] = os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	default:
		r, w, errPipe := os.Pipe()
		e.theirs[n], e.ours[n], err = w, r, errPipe
		if n == 0 {
			e.theirs[n], e.ours[n] = r, w
		}
	}
	if n == 0 && e.ours[0] != nil {
		e.input = input
		_, err = e.ours[0].WriteString(input)
	}
	if n > 0 && (state == isFull || state == becomesNonBlocking) {
		if size := fill(e.theirs[n]); n == 1 {
			e.filler = size
		}
	}
	return err
}

// fill writes to a pipe until it is full, and returns the number of bytes.
func fill(f *os.File) (n int) {
	fd := int(f.Fd())
	_ = unix.SetNonblock(fd, true)
	for {
		m, err := unix.Write(fd, make([]byte, 4096))
		if err != nil {
			_ = unix.SetNonblock(fd, false)
			return n
		}
		n += m
	}
}

// give makes the streams those of a command.
func (e *streamEnds) give(c *lab.Cmd) {
	if e.theirs[0] != nil {
		c.Stdin = e.theirs[0]
	}
	if e.theirs[1] != nil {
		c.Stdout = e.theirs[1]
	}
	if e.theirs[2] != nil {
		c.Stderr = e.theirs[2]
	}
}

// started closes the ends of a command that has started.
func (e *streamEnds) started() {
	for n, state := range []string{e.stdin, e.stdout, e.stderr} {
		if e.theirs[n] != nil && state != becomesNonBlocking {
			e.theirs[n].Close()
		}
	}
}

// change makes the changes that come in the phase: readers go, and another process makes
// files non-blocking.
func (e *streamEnds) change() {
	for n, state := range []string{e.stdin, e.stdout, e.stderr} {
		switch state {
		case readerGoes:
			e.ours[n].Close()
		case becomesNonBlocking:
			_ = unix.SetNonblock(int(e.theirs[n].Fd()), true)
			e.theirs[n].Close()
		}
	}
}

// expectOutput reads portknock's standard output to its end. The output must be payload.
func (e *streamEnds) expectOutput(payload []byte) error {
	var got []byte
	var err error
	switch {
	case e.ours[1] != nil:
		got, err = io.ReadAll(e.ours[1])
		got = got[min(len(got), e.filler):]
	case e.stdout == onFile:
		got, err = os.ReadFile(e.outputFile)
	default:
		return nil
	}
	if !bytes.Equal(got, payload) {
		return fmt.Errorf("portknock writes %d bytes of %d, or other bytes; %v", len(got), len(payload), err)
	}
	return nil
}

// errors returns what portknock has written to its standard error.
func (e *streamEnds) errors() string {
	if e.stderr != onPipe && e.stderr != onSocket {
		return ""
	}
	text, _ := io.ReadAll(e.ours[2])
	return string(text)
}

func (e *streamEnds) close() {
	for _, f := range slices.Concat(e.theirs[:], e.ours[:], e.files) {
		if f != nil {
			f.Close()
		}
	}
}
