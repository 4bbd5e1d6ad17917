package lab

import (
	"math/rand/v2"
	"time"
)

// WAN is what packets meet on a long way, the same in both directions. On the
// zero WAN that is nothing.
type WAN struct {
	Delay  time.Duration // one way
	Jitter time.Duration // up to so much is added to Delay; packets stay in order
	Loss   float64       // the share of packets that do not arrive, 0 to 1

	// The share of packets that arrive ReorderBy later than they would have,
	// so that those behind overtake them.
	Reorder   float64
	ReorderBy time.Duration

	Duplicate float64 // the share of packets that arrive twice
	Rate      int     // bytes per second, all headers included; 0 is no limit

	// Seed makes a run repeat: the nth packet of a direction always meets the
	// same. The two directions differ.
	Seed uint64
}

// queueLimit is how long packets may wait for their turn under a Rate. A
// packet that would wait longer is lost, as at a router.
const queueLimit = 200 * time.Millisecond

// path is one direction of a WAN, without any I/O.
type path struct {
	wan      WAN
	random   *rand.Rand
	linkFree time.Duration // when the packet before has left, under the Rate
	lastDue  time.Duration // when the packet before arrives
}

func newPath(w WAN, direction uint64) *path {
	return &path{wan: w, random: rand.New(rand.NewPCG(w.Seed, direction))}
}

// fate is what becomes of a packet.
type fate struct {
	copies int // that arrive: 0, 1 or 2
	due    time.Duration
	late   bool // those behind may overtake it
}

// carry decides about a packet that comes at a time, which must not be before
// that of the packet before. Packets that are late arrive in order among
// themselves, and so do the others.
func (p *path) carry(now time.Duration, size int) fate {
	// Each packet takes the same number of draws, whatever becomes of it: two
	// WANs with one seed that differ in Loss still jitter alike.
	lost := p.random.Float64() < p.wan.Loss
	late := p.random.Float64() < p.wan.Reorder
	twice := p.random.Float64() < p.wan.Duplicate
	jitter := time.Duration(p.random.Float64() * float64(p.wan.Jitter))
	if p.wan.Rate > 0 {
		start := max(p.linkFree, now)
		if start-now > queueLimit {
			return fate{}
		}
		p.linkFree = start + time.Duration(size)*time.Second/time.Duration(p.wan.Rate)
		now = p.linkFree
	}
	if lost {
		return fate{}
	}
	p.lastDue = max(p.lastDue, now+p.wan.Delay+jitter)
	f := fate{copies: 1, due: p.lastDue, late: late}
	if late {
		f.due += p.wan.ReorderBy
	}
	if twice {
		f.copies = 2
	}
	return f
}
