package rules

import "fmt"

// Refusal is the error of [Format.Emit] for guards that a format cannot carry, or
// that would not keep anybody out.
type Refusal struct {
	// Option names the field of [Options] to change: Force, Consume, Allow, or
	// Until, which is missing or too late. It is "" if none of them helps.
	Option string
	// Suits lists the formats without this limit. It is nil if no format is without
	// it, or if the limit does not come from the format.
	Suits []Format

	text string
}

func (r *Refusal) Error() string { return r.text }

// refuse returns a [Refusal]. The formats for which can is true suit; can is nil if
// the limit does not come from the format.
func refuse(option string, can func(format) bool, text string, args ...any) error {
	r := &Refusal{Option: option, text: fmt.Sprintf(text, args...)}
	if can != nil {
		r.Suits = formatsThat(can)
	}
	return r
}

func (f format) knowsTime() bool      { return f.clock }
func (f format) verifiesTokens() bool { return f.tokens }
