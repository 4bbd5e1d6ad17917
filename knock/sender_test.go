package knock

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// listeners returns a UDP and a TCP listener on loopback, which end with the test.
func listeners(t *testing.T) (*net.UDPConn, *net.TCPListener) {
	t.Helper()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	return udp, tcp
}

// TestSendReachesListeners tests what every system can show without a packet capture. A
// capture in the lab proves which packets are sent, and in which order.
func TestSendReachesListeners(t *testing.T) {
	udp, tcp := listeners(t)
	seq := Sequence{
		{Transport: UDP, Port: port(udp.LocalAddr())},
		{Transport: TCP, Port: port(tcp.Addr())},
		{Transport: UDP, Port: port(udp.LocalAddr()), Payload: []byte("token")},
	}
	from := netip.MustParseAddr("127.0.0.1")
	if err := (Sender{From: from}).Send(t.Context(), loopback, seq, 0); err != nil {
		t.Fatal(err)
	}
	udp.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 100)
	for _, want := range []string{"", "token"} {
		n, sender, err := udp.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != want || sender.Addr() != from {
			t.Fatalf("got the datagram %q from %v, error %v; want %q", buf[:n], sender, err, want)
		}
	}
	tcp.SetDeadline(time.Now().Add(5 * time.Second))
	conn, err := tcp.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// TestRepeatSendsEachKnockTwice: the second copy follows the first without the pause, and a
// Stream is not repeated.
func TestRepeatSendsEachKnockTwice(t *testing.T) {
	udp, tcp := listeners(t)
	knock := func(payload string) Step {
		return Step{Transport: UDP, Port: port(udp.LocalAddr()), Payload: []byte(payload)}
	}
	stream := Step{Transport: Stream, Port: port(tcp.Addr()), Payload: []byte("c")}
	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan error, 1)
	go func() { sent <- Sender{Repeat: true}.Send(ctx, loopback, Sequence{knock("a"), knock("b")}, time.Hour) }()
	udp.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 1)
	read := func(want string) {
		t.Helper()
		if _, err := udp.Read(buf); err != nil || string(buf) != want {
			t.Fatalf("got the datagram %q, error %v; want %q", buf, err, want)
		}
	}
	read("a")
	read("a") // within the pause of an hour
	cancel()
	<-sent
	if err := (Sender{Repeat: true}).Send(t.Context(), loopback, Sequence{knock("a"), knock("b"), stream}, 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a", "a", "b", "b"} {
		read(want)
	}
	tcp.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := tcp.Accept(); err != nil {
		t.Fatal(err)
	}
	tcp.SetDeadline(time.Now())
	if _, err := tcp.Accept(); err == nil {
		t.Error("Send has repeated a Stream")
	}
}

// A Stream knock sends its payload on its own connection, from the address From.
func TestStreamSendsPayloadFromSameAddress(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	from := netip.MustParseAddr("127.0.0.1")
	step := Step{Transport: Stream, Port: port(tcp.Addr()), Payload: []byte("a packet")}
	if err := (Sender{From: from}).Send(t.Context(), loopback, Sequence{step}, 0); err != nil {
		t.Fatal(err)
	}
	tcp.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	conn, err := tcp.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if got, err := io.ReadAll(conn); string(got) != "a packet" || err != nil || conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr() != from {
		t.Errorf("got the payload %q from %v, error %v", got, conn.RemoteAddr(), err)
	}

	tcp.Close() // a closed port cannot receive the knock
	if err := (Sender{}).Send(t.Context(), loopback, Sequence{step}, 0); err == nil || !strings.HasPrefix(err.Error(), "knock 1 of 1: ") ||
		strings.Contains(err.Error(), strconv.Itoa(int(step.Port))) {
		t.Errorf("a Stream to a closed port: got %v, want an error without the port", err)
	}
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if err := (Sender{}).Send(ctx, loopback, Sequence{step}, 0); !errors.Is(err, stop) {
		t.Errorf("canceled context: got %v, want its cause", err)
	}
}

func TestClosedPortsDoNotStopSend(t *testing.T) {
	// Loopback answers at once, with RST and ICMP. These answers must not stop later knocks.
	seq, _ := ParseSequence("1 1/udp 2/udp 3/udp 2")
	if err := (Sender{}).Send(t.Context(), loopback, seq, time.Millisecond); err != nil {
		t.Fatal(err)
	}
}

func TestSendErrorHidesThePort(t *testing.T) {
	seq, _ := ParseSequence("7654/udp 7654")
	foreign := netip.MustParseAddr("192.0.2.1") // TEST-NET-1, which no interface here has
	for _, seq := range []Sequence{seq[:1], seq[1:]} {
		err := Sender{From: foreign}.Send(t.Context(), loopback, seq, 0)
		if err == nil || !strings.HasPrefix(err.Error(), "knock 1 of 1: ") || strings.Contains(err.Error(), "7654") {
			t.Errorf("%v from a foreign address: %v; want an error without the port", seq, err)
		}
	}
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if err := (Sender{}).Send(ctx, loopback, seq, 0); !errors.Is(err, stop) {
		t.Errorf("canceled context: got %v, want its cause", err)
	}
}

func TestSendStopsIfCanceledInPause(t *testing.T) {
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		udp.ReadFrom(make([]byte, 1))
		cancel()
	}()
	seq := Sequence{{Transport: UDP, Port: port(udp.LocalAddr())}}
	if err := (Sender{}).Send(ctx, loopback, seq, time.Hour); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// due is a context whose deadline has passed, but which is not done yet. The timers of the
// net package fire a moment before a context is done.
type due struct{ context.Context }

func (due) Deadline() (time.Time, bool) { return time.Now(), true }

// A deadline that passes during a knock must not cause a permanent failure.
func TestDeadlineDuringKnockIsNotPermanent(t *testing.T) {
	seq, _ := ParseSequence("1 1/udp")
	if err := (Sender{}).Send(due{t.Context()}, loopback, seq, 0); err != nil {
		t.Error(err)
	}
	stream := Sequence{{Transport: Stream, Port: 1, Payload: []byte("x")}}
	if err := (Sender{}).Send(due{t.Context()}, loopback, stream, 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Stream: got %v, want os.ErrDeadlineExceeded", err)
	}
}

// A short pause is not cut short, and not rounded up to milliseconds.
func TestShortPauseIsPrecise(t *testing.T) {
	for _, pause := range []time.Duration{100 * time.Microsecond, 500 * time.Microsecond} {
		fastest := time.Hour // shortest of the pauses, because a busy machine makes some longer
		for range 50 {
			start := time.Now()
			if err := sleep(t.Context(), pause); err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			if took < pause {
				t.Fatalf("a pause of %v took only %v", pause, took)
			}
			fastest = min(fastest, took)
		}
		if runtime.GOOS == "linux" && fastest > pause+300*time.Microsecond {
			t.Errorf("every pause of %v took at least %v", pause, fastest)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sleep(ctx, time.Microsecond); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSourceOfLoopbackIsLoopback(t *testing.T) {
	if got, err := Source(loopback); err != nil || got != loopback {
		t.Errorf("Source(%v) = %v, %v", loopback, got, err)
	}
}

func port(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
