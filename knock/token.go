package knock

import (
	"errors"
	"fmt"
	"time"
)

// Token is the schedule of the scheme token. The knock is a datagram whose payload, the
// token, can be made only with the key. A server accepts each token from one address
// only. So that the server can still serve several addresses, each window has several
// tokens. The package comment describes the algorithm.
type Token struct {
	Key    Key
	Port   uint16        // destination port of the datagrams
	Period time.Duration // length of a window, in whole seconds
	Tokens int           // number of tokens in a window, from 1 to [MaxTokens]
}

// MaxTokens is the largest number of tokens in a window.
const MaxTokens = 64

// TokenSize is the length of a token in bytes.
const TokenSize = 16

// At returns the tokens of the window that contains t, in order, and that window. Each
// token is a sequence of one step.
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
