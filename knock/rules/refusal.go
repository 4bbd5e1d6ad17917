package rules

import "fmt"

// Refusal is the error for guards that the format cannot express, and for guards that
// would not protect the ports. Errors of [Format.Emit] and [Format.WriteUnits] may wrap a
// *Refusal; use [errors.As].
type Refusal struct {
	// Option names the field of [Options] to change: Force, Consume, Allow or Until. If it
	// is "Until", Until is missing or too late. Option is "" if the Refusal suggests only
	// another format, from Suits.
	Option string
	// Suits lists the formats that would accept what this Refusal is about. Suits is nil if
	// every format has a limit of this kind, or if the limit does not come from the format.
	Suits []Format

	text string
}

func (r *Refusal) Error() string { return r.text }

// refuse returns a [Refusal]. Its Suits are the formats for which can returns true. A
// caller passes nil for can if the limit does not come from the format.
func refuse(option string, can func(format) bool, text string, args ...any) error {
	r := &Refusal{Option: option, text: fmt.Sprintf(text, args...)}
	if can != nil {
		r.Suits = formatsThat(can)
	}
	return r
}

// knowsTime, verifiesTokens and takesRepeats are functions for the parameter can of [refuse].
func (f format) knowsTime() bool      { return f.clock }
func (f format) verifiesTokens() bool { return f.tokens }
func (f format) takesRepeats() bool   { return f.repeats }
