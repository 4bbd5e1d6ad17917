package lab

import (
	"math/rand/v2"
	"time"
)

// WAN describes what a wide-area link does to packets. Both directions are alike, unless
// UpRate is set. The zero WAN does not change anything.
type WAN struct {
	Delay  time.Duration // delay in one direction
	Jitter time.Duration // maximum random addition to Delay; packets stay in order
	Loss   float64       // share of packets that do not arrive, 0 to 1

	// Burst is the mean length of the periods in which every packet is lost. Loss is
	// then the share of time that these periods take (Gilbert's model). If Burst is 0,
	// each packet is lost independently.
	Burst time.Duration

	// Reorder is the share of packets, 0 to 1, that arrive later by ReorderBy, so
	// that the packets behind overtake them.
	Reorder   float64
	ReorderBy time.Duration // additional delay of a reordered packet

	Duplicate float64 // share of packets that arrive twice, 0 to 1

	Rate   int // bytes per second, all headers included; 0 means unlimited
	UpRate int // Rate from the client to the server; 0 means Rate
	Queue  int // bytes that may wait under a Rate; 0 means as many as leave within queueLimit

	// Seed makes a run repeatable: the link always treats the nth packet of a
	// direction in the same way, and bursts always begin and end at the same times. The
	// two directions differ.
	Seed uint64
}

// queueLimit is how long a packet may wait under a Rate before it leaves, unless Queue is
// set. A packet that would wait longer is lost, as at a router.
const queueLimit = 200 * time.Millisecond

// path decides for one direction of a WAN which packets arrive, and when. It does not
// perform I/O.
type path struct {
	wan      WAN
	rate     int // Rate of this direction
	random   *rand.Rand
	bursts   *bursts       // nil if packets are lost independently
	linkFree time.Duration // time at which the previous packet has left, under the rate
	lastDue  time.Duration // time at which the previous packet arrives, without ReorderBy
}

// The directions of a path.
const (
	up   = iota // from the client to the server
	down        // from the server to the client
	directions
)

func newPath(w WAN, direction uint64) *path {
	p := &path{wan: w, rate: w.Rate, random: rand.New(rand.NewPCG(w.Seed, direction))}
	if direction == up && w.UpRate > 0 {
		p.rate = w.UpRate
	}
	if w.Burst > 0 {
		// Bursts draw from their own random values. Two WANs with the same Seed therefore
		// have the same jitter even if Burst differs.
		p.bursts = newBursts(w, rand.New(rand.NewPCG(w.Seed, direction+directions)))
	}
	return p
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
	if p.rate > 0 {
		start, longest := max(p.linkFree, now), queueLimit
		if p.wan.Queue > 0 {
			longest = p.sending(p.wan.Queue - size)
		}
		if start-now > longest {
			return fate{}
		}
		p.linkFree = start + p.sending(size)
		now = p.linkFree
	}
	if p.bursts != nil {
		lost = p.bursts.lose(now)
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

// sending returns how long the link takes for a number of bytes, under the rate.
func (p *path) sending(bytes int) time.Duration {
	return time.Duration(bytes) * time.Second / time.Duration(p.rate)
}

// bursts are periods in which every packet is lost, and the periods between them. The
// lengths are random, with an exponential distribution. Only the time decides whether a
// packet is lost, so packets that follow each other closely share one fate.
type bursts struct {
	random *rand.Rand
	mean   [2]float64 // mean lengths of the two kinds of periods, in ns: without and with loss
	kind   int        // kind of the current period: 1 means that packets are lost
	end    float64    // end of the current period, in ns
}

func newBursts(w WAN, random *rand.Rand) *bursts {
	b := &bursts{random: random, mean: [2]float64{float64(w.Burst) * (1 - w.Loss) / w.Loss, float64(w.Burst)}}
	if random.Float64() < w.Loss {
		b.kind = 1
	}
	b.end = random.ExpFloat64() * b.mean[b.kind]
	return b
}

// lose reports whether a packet is lost at now, which must not be earlier than before.
func (b *bursts) lose(now time.Duration) bool {
	for b.end <= float64(now) {
		b.kind = 1 - b.kind
		b.end += b.random.ExpFloat64() * b.mean[b.kind]
	}
	return b.kind == 1
}
