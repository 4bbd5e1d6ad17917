package lab

import (
	"net/netip"
	"sync"
	"time"
)

// watchInterval is the time between two SYNs of a [PortWatch].
const watchInterval = 5 * time.Millisecond

// PortWatch finds out when a TCP port is open. It sends a SYN every 5 ms, each from
// another source port.
type PortWatch struct {
	to      netip.AddrPort
	capture *Capture
	stop    func() // ends the sender and waits until it has ended
	err     error  // first error of the sender
}

// WatchPort starts to watch a port from this host. The other host may be off, and may
// boot or reboot meanwhile. The watch ends with the test at the latest.
func (h *Host) WatchPort(t TB, to netip.AddrPort) *PortWatch {
	t.Helper()
	w := &PortWatch{to: to, capture: h.Capture(t)}
	done := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		ticker := time.NewTicker(watchInterval)
		defer ticker.Stop()
		for w.err == nil {
			w.err = h.sendRaw(func(int) ([]byte, netip.Addr) {
				return h.complete(Packet{Dst: to, Flags: SYN}).marshal(), to.Addr()
			}, 1)
			select {
			case <-ticker.C:
			case <-done:
				return
			}
		}
	})
	w.stop = sync.OnceFunc(func() {
		close(done)
		sender.Wait()
	})
	t.Cleanup(w.stop)
	return w
}

// Stop ends the watch. The other host must be up. Stop returns how long the port was open
// in all, and the times at which the first and the last SYN left that had a SYN and ACK
// as their answer. The times are zero if the port was never open. Each answered SYN
// counts until the next SYN left, so open is precise to 5 ms for each time that the port
// opens.
func (w *PortWatch) Stop(t TB) (open time.Duration, first, last time.Time) {
	t.Helper()
	w.stop()
	must(t, w.err)
	packets := w.capture.Packets(t)
	w.capture.Close()
	// The kernel of the other host may repeat an answer, so only the first one counts.
	answered := map[netip.AddrPort]bool{}
	for _, p := range packets {
		if !p.Out && p.Src == w.to && p.Flags&(SYN|ACK) == SYN|ACK {
			answered[p.Dst] = true
		}
	}
	var before Packet // the SYN before
	for _, p := range packets {
		if !p.Out || p.Dst != w.to || p.Flags != SYN {
			continue
		}
		if answered[before.Src] {
			open += p.Time.Sub(before.Time)
		}
		if answered[p.Src] {
			if first.IsZero() {
				first = p.Time
			}
			last = p.Time
		}
		before = p
	}
	if answered[before.Src] {
		open += watchInterval
	}
	return open, first, last
}
