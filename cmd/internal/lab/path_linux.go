package lab

import (
	"math/rand/v2"
	"time"
)

// WAN describes what a wide-area link does to packets. It does so in both directions.
// The zero WAN does not change anything.
type WAN struct {
	Delay  time.Duration // delay in one direction
	Jitter time.Duration // maximum random addition to Delay; packets stay in order
	Loss   float64       // share of packets that do not arrive, 0 to 1

	// Reorder is the share of packets, 0 to 1, that arrive later by ReorderBy, so
	// that the packets behind overtake them.
	Reorder   float64
	ReorderBy time.Duration // additional delay of a reordered packet

	Duplicate float64 // share of packets that arrive twice, 0 to 1
	Rate      int     // bytes per second, all headers included; 0 means unlimited

	// Seed makes a run repeatable: the link always treats the nth packet of a
	// direction in the same way. The two directions differ.
	Seed uint64
}

// queueLimit is how long a packet may wait under a Rate before it leaves. A packet
// that would wait longer is lost, as at a router.
const queueLimit = 200 * time.Millisecond

// path decides for one direction of a WAN which packets arrive, and when. It does not
// perform I/O.
type path struct {
	wan      WAN
	random   *rand.Rand
	linkFree time.Duration // time at which the previous packet has left, under the Rate
	lastDue  time.Duration // time at which the previous packet arrives, without ReorderBy
}

func newPath(w WAN, direction uint64) *path {
	return &path{wan: w, random: rand.New(rand.NewPCG(w.Seed, direction))}
}

// fate tells whether and when a packet arrives.
type fate struct {
	copies int           // number of copies that arrive: 0, 1 or 2
	due    time.Duration // time of arrival
	late   bool          // the packets behind may overtake this packet
}

// carry decides the fate of a packet of size bytes that enters the path at now.
// now must not be earlier than for the previous packet. Late packets stay in order
// among themselves, and so do all others.
func (p *path) carry(now time.Duration, size int) fate {
	// Every packet draws the same number of random values, whatever its fate. Two
	// WANs with the same Seed therefore have the same jitter even if Loss differs.
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
