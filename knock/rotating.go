package knock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Rotating is the schedule of the scheme rotating: each window has a sequence of
// its own, drawn by a key. The package comment has the algorithm.
type Rotating struct {
	Key    Key
	Ports  PortRange     // what the knocks are drawn from; its Transport is theirs
	Knocks int           // how many, from 1 to [MaxSteps]
	Period time.Duration // of a window; whole seconds
}

// At returns the one sequence of the window around t, and that window.
func (r Rotating) At(t time.Time) ([]Sequence, Window, error) {
	if err := r.check(); err != nil {
		return nil, Window{}, err
	}
	w := WindowAt(t, r.Period)
	return []Sequence{r.draw(w)}, w, nil
}

func (r Rotating) check() error {
	if err := checkPeriod(r.Period); err != nil {
		return err
	}
	if err := checkDraw(r.Ports, r.Knocks); err != nil {
		return err
	}
	return r.Key.check()
}

func checkPeriod(p time.Duration) error {
	if p < time.Second || p%time.Second != 0 {
		return fmt.Errorf("a Period of %v is not whole seconds", p)
	}
	return nil
}

// checkDraw refuses what no sequence of different ports can be drawn from.
func checkDraw(ports PortRange, knocks int) error {
	switch {
	case ports.First < 1 || ports.First > ports.Last:
		return errors.New("no ports to draw from")
	case knocks < 1 || knocks > MaxSteps:
		return fmt.Errorf("%d knocks are not from 1 to %d", knocks, MaxSteps)
	case knocks > ports.size():
		return fmt.Errorf("%d ports are not enough for %d knocks", ports.size(), knocks)
	}
	return nil
}

// macInput returns what stands before the number n in what a scheme
// authenticates. Whatever is appended to it goes to a copy.
func macInput(scheme string, period time.Duration, w Window) []byte {
	length := int64(period / time.Second)
	message := []byte("portknock/1 " + scheme + "\x00")
	message = binary.BigEndian.AppendUint64(message, uint64(length))
	message = binary.BigEndian.AppendUint64(message, uint64(w.Start.Unix()/length))
	return message[:len(message):len(message)]
}

// draw returns the sequence of a window.
func (r Rotating) draw(w Window) Sequence {
	message := macInput("rotating", r.Period, w)
	size := r.Ports.size()
	fair := 1 << 16 / size * size // numbers from here on would favour the low ports
	var seq Sequence
	drawn := map[uint16]bool{}
	for n := uint32(0); ; n++ {
		block := r.Key.mac(binary.BigEndian.AppendUint32(message, n))
		for ; len(block) > 0; block = block[2:] {
			v := int(binary.BigEndian.Uint16(block))
			port := r.Ports.First + uint16(v%size)
			if v >= fair || drawn[port] {
				continue
			}
			drawn[port] = true
			seq = append(seq, Step{Transport: r.Ports.Transport, Port: port})
			if len(seq) == r.Knocks {
				return seq
			}
		}
	}
}
