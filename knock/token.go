package knock

import (
	"errors"
	"fmt"
	"time"
)

// Token is the schedule of the scheme token: one datagram, whose payload only who
// has the key can make. Each window has several, so that a server which takes
// every token from one address only still serves several. The package comment has
// the algorithm.
type Token struct {
	Key    Key
	Port   uint16        // where the datagrams go
	Period time.Duration // of a window; whole seconds
	Tokens int           // how many a window has, from 1 to [MaxTokens]
}

// MaxTokens is the most that a window can have.
const MaxTokens = 64

// TokenSize is the length of a token in bytes.
const TokenSize = 16

// At returns the tokens of the window around t, in order, each as a sequence of
// one step, and that window.
func (k Token) At(t time.Time) ([]Sequence, Window, error) {
	if err := k.check(); err != nil {
		return nil, Window{}, err
	}
	w := WindowAt(t, k.Period)
	seqs := make([]Sequence, k.Tokens)
	for n := range seqs {
		token := k.Key.block("token", k.Period, w, uint32(n))[:TokenSize]
		seqs[n] = Sequence{{Transport: UDP, Port: k.Port, Payload: token}}
	}
	return seqs, w, nil
}

func (k Token) check() error {
	if err := checkPeriod(k.Period); err != nil {
		return err
	}
	switch {
	case k.Port == 0:
		return errors.New("no port to send a token to")
	case k.Tokens < 1 || k.Tokens > MaxTokens:
		return fmt.Errorf("%d tokens: expected 1 to %d", k.Tokens, MaxTokens)
	}
	return k.Key.check()
}
