package rules

import "fmt"

// Refusal is the error of [Format.Emit] for guards that a format cannot carry, or
// that would not keep anybody out.
type Refusal struct {
	// Option is the field of [Options] of which another value would be accepted:
	// Force, Consume, Allow, or Until, which is missing or too late. It is "" if
	// no value would.
	Option string
	// Suits are the formats without this limit; nil if there are none, or if it
	// is not about the format.
	Suits []Format

	text string
}

func (r *Refusal) Error() string { return r.text }

// refuse returns a [Refusal]. The formats that suit are those that can do
// something; can is nil if it is not about the format.
func refuse(option string, can func(format) bool, text string, args ...any) error {
	r := &Refusal{Option: option, text: fmt.Sprintf(text, args...)}
	if can != nil {
		r.Suits = formatsThat(can)
	}
	return r
}

func (f format) knowsTime() bool      { return f.clock }
func (f format) verifiesTokens() bool { return f.tokens }
