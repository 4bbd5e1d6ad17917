package knock

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Rotating is the schedule of the scheme rotating: each window has its own sequence,
// drawn with a key. The package comment describes the algorithm.
type Rotating struct {
	Key    Key
	Ports  PortRange     // range of the knocks; all knocks use the Transport of the range
	Knocks int           // number of knocks in a sequence, from 1 to [MaxSteps]
	Period time.Duration // length of a window, in whole seconds
}

// At returns the one sequence of the window that contains t, and that window.
func (r Rotating) At(t time.Time) ([]Sequence, Window, error) {
	if err := cmp.Or(checkPeriod(r.Period), checkDraw(r.Ports, r.Knocks), r.Key.check()); err != nil {
		return nil, Window{}, err
	}
	w := WindowAt(t, r.Period)
	return []Sequence{r.draw(w)}, w, nil
}

func checkPeriod(p time.Duration) error {
	if p < time.Second || p%time.Second != 0 {
		return fmt.Errorf("the Period (%v) must be whole seconds, at least 1s", p)
	}
	return nil
}

// checkDraw returns an error if a sequence of different ports cannot be drawn.
func checkDraw(ports PortRange, knocks int) error {
	switch {
	case ports.First < 1 || ports.First > ports.Last:
		return errors.New("no ports to draw from")
	case knocks < 1 || knocks > MaxSteps:
		return fmt.Errorf("%d knocks: expected 1 to %d", knocks, MaxSteps)
	case knocks > ports.size():
		return fmt.Errorf("%d ports are too few for %d knocks", ports.size(), knocks)
	}
	return nil
}

// block returns block n of a scheme and a window, 32 bytes.
func (k Key) block(scheme string, period time.Duration, w Window, n uint32) []byte {
	length := int64(period / time.Second)
	message := []byte("portknock/1 " + scheme + "\x00")
	message = binary.BigEndian.AppendUint64(message, uint64(length))
	message = binary.BigEndian.AppendUint64(message, uint64(w.Start.Unix()/length))
	return k.mac(binary.BigEndian.AppendUint32(message, n))
}

// draw returns the sequence of the window w.
func (r Rotating) draw(w Window) Sequence {
	size := r.Ports.size()
	fair := 1 << 16 / size * size // numbers from fair on would favor the low ports
	var seq Sequence
	drawn := map[uint16]bool{}
	for n := uint32(0); len(seq) < r.Knocks; n++ {
		for pair := range slices.Chunk(r.Key.block("rotating", r.Period, w, n), 2) {
			v := int(binary.BigEndian.Uint16(pair))
			port := r.Ports.First + uint16(v%size)
			if v < fair && !drawn[port] {
				drawn[port] = true
				seq = append(seq, Step{Transport: r.Ports.Transport, Port: port})
			}
		}
	}
	return seq[:r.Knocks]
}
