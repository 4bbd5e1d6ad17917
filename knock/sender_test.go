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

// What leaves as packets, and in which order, is proved by a capture in the
// lab; here only what any system can show without one.
func TestSendReachesListeners(t *testing.T) {
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
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
			t.Fatalf("datagram %q from %v, %v; want %q", buf[:n], sender, err, want)
		}
	}
	tcp.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	conn, err := tcp.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// A Stream carries its payload on a connection of its own, from the same address.
func TestSendStream(t *testing.T) {
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
		t.Errorf("%q from %v, %v", got, conn.RemoteAddr(), err)
	}

	tcp.Close() // whoever refuses it will not have heard it
	if err := (Sender{}).Send(t.Context(), loopback, Sequence{step}, 0); err == nil || !strings.HasPrefix(err.Error(), "knock 1 of 1: ") ||
		strings.Contains(err.Error(), strconv.Itoa(int(step.Port))) {
		t.Errorf("to a closed port: %v", err)
	}
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if err := (Sender{}).Send(ctx, loopback, Sequence{step}, 0); !errors.Is(err, stop) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestSendToClosedPorts(t *testing.T) {
	// Loopback answers at once, by RST and by ICMP: neither may stop the rest.
	seq, _ := ParseSequence("1 1/udp 2/udp 3/udp 2")
	if err := (Sender{}).Send(t.Context(), loopback, seq, time.Millisecond); err != nil {
		t.Fatal(err)
	}
}

func TestSendFailures(t *testing.T) {
	seq, _ := ParseSequence("7654/udp 7654")
	elsewhere := netip.MustParseAddr("192.0.2.1") // TEST-NET-1, on no interface here
	for _, seq := range []Sequence{seq[:1], seq[1:]} {
		err := Sender{From: elsewhere}.Send(t.Context(), loopback, seq, 0)
		if err == nil || !strings.HasPrefix(err.Error(), "knock 1 of 1: ") || strings.Contains(err.Error(), "7654") {
			t.Errorf("%v from a foreign address: %v; want an error without the port", seq, err)
		}
	}
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if err := (Sender{}).Send(ctx, loopback, seq, 0); !errors.Is(err, stop) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestSendStopsInAPause(t *testing.T) {
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

// due is a context at its deadline, of which it does not know yet: net's timers go
// off a moment before it is done.
type due struct{ context.Context }

func (due) Deadline() (time.Time, bool) { return time.Now(), true }

// A deadline that comes while a knock is sent is no reason to give up for good.
func TestSendAtTheDeadline(t *testing.T) {
	seq, _ := ParseSequence("1 1/udp")
	if err := (Sender{}).Send(due{t.Context()}, loopback, seq, 0); err != nil {
		t.Error(err)
	}
	stream := Sequence{{Transport: Stream, Port: 1, Payload: []byte("x")}}
	if err := (Sender{}).Send(due{t.Context()}, loopback, stream, 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("stream: %v", err)
	}
}

// A short pause is neither cut short nor rounded up to milliseconds.
func TestShortPause(t *testing.T) {
	for _, pause := range []time.Duration{100 * time.Microsecond, 500 * time.Microsecond} {
		fastest := time.Hour // a busy machine makes the others longer
		for range 50 {
			start := time.Now()
			if err := sleep(t.Context(), pause); err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			if took < pause {
				t.Fatalf("%v took %v", pause, took)
			}
			fastest = min(fastest, took)
		}
		if runtime.GOOS == "linux" && fastest > pause+300*time.Microsecond {
			t.Errorf("%v took %v at best", pause, fastest)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sleep(ctx, time.Microsecond); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSource(t *testing.T) {
	if got, err := Source(loopback); err != nil || got != loopback {
		t.Errorf("Source(%v) = %v, %v", loopback, got, err)
	}
}

func port(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
