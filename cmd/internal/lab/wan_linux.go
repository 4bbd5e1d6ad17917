package lab

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// LinkWAN joins two hosts that have no link yet by an emulated wide-area link, which
// ends with the test. Like [Link], it gives each host an interface eth0 with an address
// of each family. Each host reaches every address of the other. The interfaces are
// Ethernet devices (TAP) of the TUN driver, because knockd does not see IPv6 on TUN's
// other kind of device.
//
// On an idle machine, packets arrive late by about 100 µs, and never early.
func LinkWAN(t TB, client, server *Host, w WAN) {
	t.Helper()
	hosts := []*Host{client, server}
	assignNumbers(hosts)
	var taps [2]int
	for i, h := range hosts {
		taps[i] = h.tap(t)
	}
	stop, stopper, err := os.Pipe()
	must(t, err)
	var forwarders sync.WaitGroup
	for i := range hosts {
		d := &forwarder{from: taps[i], to: taps[1-i], stop: int(stop.Fd()), path: newPath(w, uint64(i))}
		forwarders.Go(func() { onThread(d.run) })
	}
	t.Cleanup(func() {
		_ = stopper.Close()
		forwarders.Wait()
		_ = stop.Close()
	})
	for _, h := range hosts {
		// The queue holds the packets that come while the thread does not run.
		h.ip(t, "link set eth0 address "+mac(h.number)+" txqueuelen 10000\n"+addressing(h, hosts))
	}
	if t.Failed() {
		t.FailNow()
	}
	for _, h := range hosts {
		h.awaitAddress(t)
	}
}

// tap creates a host's eth0 as a TAP device. The device's frames are read from and
// written to the returned descriptor, until the test ends.
func (h *Host) tap(t TB) int {
	t.Helper()
	const clone = "/dev/net/tun"
	fd, err := -1, error(nil)
	h.Do(func() { // the device belongs to the network in which it is opened
		if fd, err = unix.Open(clone, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return
		}
		var ifr *unix.Ifreq
		if ifr, err = unix.NewIfreq("eth0"); err == nil {
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
	})
	if fd >= 0 {
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EPERM) {
		Missing(t, clone)
	}
	must(t, err)
	return fd
}

// forwarder forwards the packets of one direction. It has its own thread, because the
// runtime's timers are only precise to a millisecond.
type forwarder struct {
	path     *path
	from, to int      // descriptors of the two devices
	stop     int      // descriptor that becomes readable when the forwarder must end
	onTime   fifo     // packets that stay in order
	late     fifo     // packets that others may overtake
	spare    [][]byte // buffers to use again
}

// packet is a packet on its way.
type packet struct {
	fate  fate
	bytes []byte
}

// batch is how many packets the forwarder reads at most before it delivers the packets
// that are due.
const batch = 32

func (d *forwarder) run() {
	// The timer slack becomes 1 ns instead of 50 µs. If this fails, the link is only
	// less precise.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	began := time.Now()
	ready := []unix.PollFd{{Fd: int32(d.from), Events: unix.POLLIN}, {Fd: int32(d.stop), Events: unix.POLLIN}}
	for {
		var timeout *unix.Timespec // nil: wait until a packet comes
		if next := d.next(); next != nil {
			wait := unix.NsecToTimespec(int64(max(0, next.head().fate.due-time.Since(began))))
			timeout = &wait
		}
		ready[0].Revents, ready[1].Revents = 0, 0
		if _, err := unix.Ppoll(ready, timeout, nil); err != nil && err != unix.EINTR {
			return
		}
		if ready[1].Revents != 0 {
			return
		}
		if ready[0].Revents != 0 {
			for range batch {
				if !d.read(began) {
					break
				}
			}
		}
		now := time.Since(began)
		for next := d.next(); next != nil && next.head().fate.due <= now; next = d.next() {
			d.write(next.pop())
		}
	}
}

// next returns the queue whose first packet is due first, or nil if both are empty.
func (d *forwarder) next() *fifo {
	switch {
	case d.late.empty() && d.onTime.empty():
		return nil
	case d.late.empty() || !d.onTime.empty() && d.onTime.head().fate.due <= d.late.head().fate.due:
		return &d.onTime
	}
	return &d.late
}

// read reads one packet, and reports whether there may be more.
func (d *forwarder) read(began time.Time) bool {
	if len(d.spare) == 0 {
		d.spare = append(d.spare, make([]byte, 1<<11)) // more than an Ethernet frame
	}
	last := len(d.spare) - 1
	b := d.spare[last][:1<<11]
	n, err := unix.Read(d.from, b)
	if err != nil {
		return false
	}
	p := packet{d.path.carry(time.Since(began), n), b[:n]}
	if p.fate.copies == 0 {
		return true
	}
	d.spare = d.spare[:last]
	if p.fate.late {
		d.late.push(p)
	} else {
		d.onTime.push(p)
	}
	return true
}

// write delivers a packet. It ignores errors: a device that rejects a packet is down.
func (d *forwarder) write(p packet) {
	for range p.fate.copies {
		_, _ = unix.Write(d.to, p.bytes)
	}
	d.spare = append(d.spare, p.bytes)
}

// fifo is a queue of packets.
type fifo struct {
	packets []packet
	first   int
}

func (q *fifo) empty() bool   { return q.first == len(q.packets) }
func (q *fifo) head() *packet { return &q.packets[q.first] }

func (q *fifo) push(p packet) {
	if q.first > 0 && len(q.packets) == cap(q.packets) {
		q.packets = q.packets[:copy(q.packets, q.packets[q.first:])]
		q.first = 0
	}
	q.packets = append(q.packets, p)
}

func (q *fifo) pop() packet {
	p := q.packets[q.first]
	q.first++
	return p
}
