package lab

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"testing"
	"time"
)

// fates returns the fates of n packets of 1000 bytes, one each millisecond.
func fates(w WAN, n int) []fate {
	p, list := newPath(w, 0), make([]fate, n)
	for i := range list {
		list[i] = p.carry(time.Duration(i)*time.Millisecond, 1000)
	}
	return list
}

func TestPathSharesOfLostLateAndDuplicatedPackets(t *testing.T) {
	t.Parallel()
	const n = 10_000
	near := func(what string, got int, share float64) {
		t.Helper()
		// The limit is four standard deviations. The seed is fixed.
		if want := share * n; math.Abs(float64(got)-want) > 4*math.Sqrt(want*(1-share)) {
			t.Errorf("%s: %d of %d, want about %.0f", what, got, n, want)
		}
	}
	for _, share := range []float64{0, 0.05, 0.2, 1} {
		var lost, late, twice int
		for i, f := range fates(WAN{Loss: share, Seed: 1}, n) {
			if f.copies == 0 {
				lost++
			} else if want := time.Duration(i) * time.Millisecond; f.due != want {
				t.Fatalf("the packet is due at %v, want %v", f.due, want)
			}
		}
		for _, f := range fates(WAN{Reorder: share, Duplicate: share, Seed: 2}, n) {
			if f.late {
				late++
			}
			if f.copies == 2 {
				twice++
			}
		}
		near("lost", lost, share)
		near("late", late, share)
		near("twice", twice, share)
	}
}

func TestPathRepeatsWithSameSeedAndDirection(t *testing.T) {
	t.Parallel()
	w := WAN{Delay: time.Second, Jitter: time.Second, Loss: .3, Reorder: .3, ReorderBy: time.Second, Duplicate: .3, Seed: 7}
	if !slices.Equal(fates(w, 1000), fates(w, 1000)) {
		t.Error("the same seed gave different fates")
	}
	other := w
	other.Seed = 8
	if slices.Equal(fates(w, 1000), fates(other, 1000)) {
		t.Error("two seeds gave the same fates")
	}
	backward := newPath(w, 1)
	var backwardFates []fate
	for i := range 1000 {
		backwardFates = append(backwardFates, backward.carry(time.Duration(i)*time.Millisecond, 1000))
	}
	if slices.Equal(fates(w, 1000), backwardFates) {
		t.Error("both directions gave the same fates")
	}
}

func TestPathKeepsOrderExceptForLatePackets(t *testing.T) {
	t.Parallel()
	w := WAN{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond, Reorder: .2, ReorderBy: 5 * time.Millisecond, Seed: 3}
	var last [2]time.Duration
	var least, most time.Duration = time.Hour, 0
	for i, f := range fates(w, 10_000) {
		k := 0
		if f.late {
			k = 1
		}
		if f.due < last[k] {
			t.Fatalf("packet %d overtakes an earlier packet with the same value of late", i)
		}
		last[k] = f.due
		took := f.due - time.Duration(i)*time.Millisecond
		if f.late {
			took -= w.ReorderBy
		}
		least, most = min(least, took), max(most, took)
	}
	if least < w.Delay || least > w.Delay+time.Millisecond || most > w.Delay+w.Jitter || most < w.Delay+w.Jitter*9/10 {
		t.Errorf("delays without ReorderBy are from %v to %v, want 20 ms to 30 ms", least, most)
	}
}

func TestPathLosesPacketsAboveRate(t *testing.T) {
	t.Parallel()
	// The test sends 1000 bytes each millisecond over a link that needs twice as long.
	lost := 0
	var last time.Duration
	for _, f := range fates(WAN{Rate: 500_000}, 1000) {
		if f.copies == 0 {
			lost++
			continue
		}
		if last > 0 && f.due-last < 2*time.Millisecond {
			t.Fatalf("packets are due at %v and %v, want 2 ms between them", f.due, last)
		}
		last = f.due
	}
	// In one second, half of the packets arrive. The queue holds the packets of another
	// 200 ms.
	if lost < 395 || lost > 405 {
		t.Errorf("%d packets lost, want about 400", lost)
	}
}

// Within a burst, copies of a packet that follow each other share one fate. The two
// directions are independent.
func TestPathLosesInBursts(t *testing.T) {
	t.Parallel()
	const spacing, n, copies = 100 * time.Microsecond, 2_000_000, 10 * time.Microsecond
	w := WAN{Loss: .05, Burst: 5 * time.Millisecond, Seed: 4}
	paths := [2]*path{newPath(w, up), newPath(w, down)}
	var lost, both, bursts, split int
	losing := false
	for i := range n {
		now := time.Duration(i) * spacing
		var first, second [2]bool
		for d, p := range paths {
			first[d] = p.carry(now, 60).copies == 0
			second[d] = p.carry(now+copies, 60).copies == 0
		}
		if first[up] {
			lost++
			if !losing {
				bursts++
			}
			if first[down] {
				both++
			}
		}
		losing = first[up]
		if first[up] != second[up] {
			split++
		}
	}
	// The limits are four standard deviations of 200 s, which have about 2000 bursts. The
	// seed is fixed.
	if share := float64(lost) / n; math.Abs(share-.05) > .006 {
		t.Errorf("%.4f of the packets are lost, want about 0.05", share)
	}
	if share := float64(both) / n; math.Abs(share-.0025) > .001 {
		t.Errorf("%.4f of the packets are lost in both directions, want about 0.0025", share)
	}
	if mean := time.Duration(lost) * spacing / time.Duration(bursts); mean < 4600*time.Microsecond || mean > 5500*time.Microsecond {
		t.Errorf("the mean burst takes %v, want about 5 ms", mean)
	}
	// The chance that a burst begins or ends between two copies is 2 * 0.05 * 10 µs / 5 ms.
	if split > 550 {
		t.Errorf("%d of %d pairs of copies have two fates, want about 400", split, n)
	}
}

func TestPathBurstsDoNotChangeOtherRandomValues(t *testing.T) {
	t.Parallel()
	// The jitter is below the time between packets, so no packet waits for another.
	w := WAN{Jitter: 900 * time.Microsecond, Loss: .2, Reorder: .2, ReorderBy: time.Second, Duplicate: .2, Seed: 9}
	burst := w
	burst.Burst = 3 * time.Millisecond
	independent, arrived := fates(w, 10_000), 0
	for i, f := range fates(burst, 10_000) {
		if f.copies == 0 || independent[i].copies == 0 {
			continue
		}
		if arrived++; f != independent[i] {
			t.Fatalf("packet %d: fate %+v with bursts, %+v without", i, f, independent[i])
		}
	}
	if arrived < 6000 || arrived > 6800 {
		t.Errorf("%d packets arrive on both links, want about 6400", arrived)
	}
}

func TestPathBurstsOfNoLossAndOfAllLoss(t *testing.T) {
	t.Parallel()
	for loss, want := range map[float64]int{0: 1, 1: 0} {
		for i, f := range fates(WAN{Loss: loss, Burst: time.Millisecond}, 1000) {
			if f.copies != want {
				t.Fatalf("Loss %v: packet %d arrives %d times, want %d", loss, i, f.copies, want)
			}
		}
	}
}

func TestPathQueueInBytes(t *testing.T) {
	t.Parallel()
	w := WAN{Delay: time.Second, UpRate: 250_000, Queue: 64_000}
	const n, size, sending = 100, 1000, 4 * time.Millisecond
	p := newPath(w, up)
	// At 0, the queue is empty. At 130 ms, 32.5 packets have left. At 1 s, the last one has.
	due := time.Second
	for _, burst := range []struct {
		now, free time.Duration
		arrive    int
	}{{0, 0, 64}, {130 * time.Millisecond, 0, 32}, {time.Second, time.Second, 64}} {
		due = max(due, time.Second+burst.free)
		for i := range n {
			f := p.carry(burst.now, size)
			if arrives := f.copies == 1; arrives != (i < burst.arrive) {
				t.Fatalf("%v: packet %d arrives: %v, want the first %d packets", burst.now, i, arrives, burst.arrive)
			} else if !arrives {
				continue
			}
			if due += sending; f.due != due {
				t.Fatalf("%v: packet %d is due at %v, want %v", burst.now, i, f.due, due)
			}
		}
	}
	p = newPath(w, down)
	for range n {
		if f := p.carry(0, size); f.copies != 1 || f.due != w.Delay {
			t.Fatalf("UpRate changes the other direction: %+v", f)
		}
	}
}

// wanPair joins two hosts by a WAN and returns a UDP socket of each host, in the family.
func wanPair(t testing.TB, f Family, w WAN) (client, server *net.UDPConn) {
	t.Helper()
	c, s := NewHost(t, "client"), NewHost(t, "server")
	LinkWAN(t, c, s, w)
	listen := func(h *Host) *net.UDPConn {
		conn := Socket(t, h, func() (*net.UDPConn, error) {
			return net.ListenUDP("udp", net.UDPAddrFromAddrPort(addrPort(h.Addr(f), 7)))
		})
		must(t, conn.SetDeadline(time.Now().Add(limit)))
		must(t, conn.SetReadBuffer(1<<20))
		return conn
	}
	return listen(c), listen(s)
}

// sendNumbered sends numbered packets in groups. It sends a group as soon as all packets
// of the previous group have arrived or are lost. It returns the numbers as they arrive.
func sendNumbered(t *testing.T, client, server *net.UDPConn, n int) (arrived []int) {
	t.Helper()
	const group, mark = 250, 1 << 30
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	send := func(i int) {
		_, err := client.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, uint32(i)), to)
		must(t, err)
	}
	read := func(wait time.Duration) (int, bool) {
		b := make([]byte, 4)
		must(t, server.SetReadDeadline(time.Now().Add(wait)))
		_, err := server.Read(b)
		return int(binary.BigEndian.Uint32(b)), err == nil
	}
	// Before the first group, a mark alone makes the hosts find each other's link addresses. On
	// a busy machine, the kernel would lose a whole group meanwhile.
	for i := -group; i < n; i += group {
		for j := 0; i >= 0 && j < group; j++ {
			send(i + j)
		}
		// The mark shows the end of a group. Packets that arrive after the mark are
		// late. A lost mark is sent again.
		for tries, marked := 0, false; !marked; tries++ {
			if tries == 20 {
				t.Fatal("the mark did not arrive in 20 tries")
			}
			send(mark + group + i)
			for {
				got, ok := read(50 * time.Millisecond)
				if !ok {
					break
				}
				if got >= mark {
					marked = marked || got == mark+group+i
					continue
				}
				arrived = append(arrived, got)
			}
		}
	}
	return arrived
}

func TestWANDelaysBothDirections(t *testing.T) {
	t.Parallel()
	for _, f := range Families {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			client, server := wanPair(t, f, WAN{Delay: 20 * time.Millisecond})
			var took []time.Duration
			b := make([]byte, 1)
			for range 50 {
				start := time.Now()
				_, err := client.WriteToUDPAddrPort(b, server.LocalAddr().(*net.UDPAddr).AddrPort())
				must(t, err)
				_, from, err := server.ReadFromUDPAddrPort(b)
				must(t, err)
				_, err = server.WriteToUDPAddrPort(b, from)
				must(t, err)
				_, err = client.Read(b)
				must(t, err)
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			t.Logf("round trips: shortest %v, median %v, longest %v", took[0], took[25], took[49])
			// A busy machine makes each round trip longer. An additional Delay would
			// add 20 ms.
			if took[0] < 40*time.Millisecond || took[0] > 58*time.Millisecond {
				t.Errorf("the shortest round trip is %v, want 40 ms to 58 ms", took[0])
			}
		})
	}
}

func TestWANLosesPacketsWithoutReordering(t *testing.T) {
	t.Parallel()
	client, server := wanPair(t, IPv4, WAN{Loss: .05, Seed: 5})
	const n = 10_000
	arrived := sendNumbered(t, client, server, n)
	if lost := n - len(arrived); lost < 400 || lost > 600 {
		t.Errorf("%d of %d packets lost, want about 500", lost, n)
	}
	if !slices.IsSorted(arrived) {
		t.Error("packets arrived out of order")
	}
}

func TestWANReordersPackets(t *testing.T) {
	t.Parallel()
	for share, most := range map[float64]int{0: 0, .2: 500} {
		client, server := wanPair(t, IPv6, WAN{Reorder: share, ReorderBy: 5 * time.Millisecond, Jitter: time.Millisecond, Seed: 5})
		const n = 2000
		arrived := sendNumbered(t, client, server, n)
		overtaken, highest := 0, -1
		for _, i := range arrived {
			if i < highest {
				overtaken++
			}
			highest = max(highest, i)
		}
		if len(arrived) != n || overtaken > most || overtaken < most/2 {
			t.Errorf("with %.0f %% reordered, %d of %d packets were overtaken", share*100, overtaken, len(arrived))
		}
	}
}

func TestWANDuplicatesPackets(t *testing.T) {
	t.Parallel()
	client, server := wanPair(t, IPv4, WAN{Duplicate: .1, Seed: 5})
	const n = 2000
	if twice := len(sendNumbered(t, client, server, n)) - n; twice < 140 || twice > 260 {
		t.Errorf("%d of %d packets arrived twice, want about 200", twice, n)
	}
}

func TestWANLimitsRate(t *testing.T) {
	t.Parallel()
	// A socket's buffer holds all packets, in case the reader is late.
	const packets = 50
	client, server := wanPair(t, IPv6, WAN{Rate: 500_000})
	packet, start := make([]byte, 1000-14-40-8), time.Now()
	for range packets {
		_, err := client.WriteToUDPAddrPort(packet, server.LocalAddr().(*net.UDPAddr).AddrPort())
		must(t, err)
	}
	for range packets {
		_, err := server.Read(packet)
		must(t, err)
	}
	if took := time.Since(start); took < 100*time.Millisecond || took > time.Second {
		t.Errorf("50 kB took %v at 500 kB/s, want 100 ms to 1 s", took)
	}
}

func TestWANUplinkIsSlow(t *testing.T) {
	t.Parallel()
	client, server := wanPair(t, IPv4, WAN{UpRate: 250_000, Queue: 32_000})
	const packets = 200
	send := func(from, to *net.UDPConn) (arrived int) {
		b := make([]byte, 1000-14-20-8)
		for range packets {
			_, err := from.WriteToUDPAddrPort(b, to.LocalAddr().(*net.UDPAddr).AddrPort())
			must(t, err)
		}
		for arrived < packets {
			must(t, to.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
			if _, err := to.Read(b); err != nil {
				break
			}
			arrived++
		}
		return arrived
	}
	// The uplink takes 4 ms for each packet. Its queue holds 32 packets, and more arrive if a
	// busy machine sends slowly.
	if n := send(client, server); n < 30 || n > 100 {
		t.Errorf("%d of %d packets arrived over the uplink, want about 32", n, packets)
	}
	if n := send(server, client); n != packets {
		t.Errorf("%d of %d packets arrived over the downlink", n, packets)
	}
}

// knockd reads from the WAN's device, in both families.
func TestKnockdSeesKnocksOverWAN(t *testing.T) {
	t.Parallel()
	Require(t, "knockd")
	c, s := NewHost(t, "client"), NewHost(t, "server")
	LinkWAN(t, c, s, WAN{Delay: time.Millisecond})
	d := s.Knockd(t, File(t, "knockd.conf", "[options]", "[ssh]", "sequence = 7001:udp,8003:udp", "seq_timeout = 5", "command = true"))
	for i, f := range Families {
		for _, p := range []uint16{7001, 8003} {
			_, err := c.Dial(t, "udp", addrPort(s.Addr(f), p).String()).Write(nil)
			must(t, err)
		}
		d.Log.Await(t, "OPEN SESAME", i+1)
	}
}

// BenchmarkWAN measures the throughput of a zero WAN.
func BenchmarkWAN(b *testing.B) {
	c, s := NewHost(b, "client"), NewHost(b, "server")
	LinkWAN(b, c, s, WAN{})
	l := Socket(b, s, func() (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf("%v:7", s.Addr(IPv4))) })
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}()
	conn := c.Dial(b, "tcp", l.Addr().String())
	chunk := make([]byte, 1<<20)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		_, err := conn.Write(chunk)
		must(b, err)
	}
	must(b, conn.(*net.TCPConn).CloseWrite())
	_, _ = conn.Read(chunk)
	_ = conn.Close()
}
