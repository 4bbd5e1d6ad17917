package knock

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// MD5Hourly is the schedule of the scheme md5-hourly, for servers that already use it.
// MD5Hourly computes the same ports as the shell function calc_knock_ports by Roland Mas
// ("Netfilter-based port-knocking").
//
// The output of `date +%Y-%m-%d-%H-SECRET` in UTC, with its newline, is hashed with MD5.
// The hash is read as a number of 128 bits. This number is written in the base that is the
// number of ports in the range. The knocks are the last digits, the lowest digit first: a
// digit d is the port First + d. Ports may repeat.
//
// A short secret is weak: an attacker who sees one sequence can try secrets offline. A
// new server should use [Rotating] instead.
type MD5Hourly struct {
	Secret Key       // secret text exactly as in the server's script; see [KeyFrom]
	Ports  PortRange // range of the knocks' ports, from bottomport to topport
	Knocks int       // number of knocks; calc_knock_ports uses 5
}

// At returns the one sequence of the hour (UTC) that contains t, and that hour.
func (m MD5Hourly) At(t time.Time) ([]Sequence, Window, error) {
	if err := m.check(); err != nil {
		return nil, Window{}, err
	}
	w := WindowAt(t, time.Hour)
	line := w.Start.AppendFormat(nil, "2006-01-02-15-")
	line = append(append(line, m.Secret.Bytes()...), '\n')
	hash := md5.Sum(line)
	number, base, digit := new(big.Int).SetBytes(hash[:]), big.NewInt(int64(m.Ports.size())), new(big.Int)
	seq := make(Sequence, m.Knocks)
	for i := range seq {
		number.DivMod(number, base, digit)
		seq[i] = Step{Transport: m.Ports.Transport, Port: m.Ports.First + uint16(digit.Int64())}
	}
	return []Sequence{seq}, w, nil
}

func (m MD5Hourly) check() error {
	switch secret := m.Secret.Bytes(); {
	case len(secret) == 0:
		return errors.New("no secret")
	case bytes.IndexByte(secret, '%') >= 0:
		return errors.New("the secret contains a percent sign, which the server's date would expand")
	case bytes.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return errors.New("the secret contains a space or control character, which the shell would change")
	}
	if err := checkDraw(m.Ports, m.Knocks); err != nil {
		return err
	}
	// Every digit beyond those of the hash is zero, so an attacker would know its port.
	numbers := new(big.Int).Exp(big.NewInt(int64(m.Ports.size())), big.NewInt(int64(m.Knocks)), nil)
	if numbers.BitLen() > 8*md5.Size {
		return fmt.Errorf("an MD5 sum is too short for %d knocks from %d ports; use fewer knocks or ports", m.Knocks, m.Ports.size())
	}
	return nil
}
