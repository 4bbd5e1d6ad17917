package rules

import "fmt"

// Refusal is the error of [Format.Emit] for guards that a format cannot carry, or
// that would not keep anybody out.
type Refusal struct {
	Reason Reason
	Suits  []Format // formats without this limit; nil if there are none, or if it is not about the format
	text   string
}

func (r *Refusal) Error() string { return r.text }

// Reason says what has to change.
type Reason int

// The reasons for a [Refusal].
const (
	Unfit    Reason = iota // the format cannot do it: another format, or the named settings
	Weak                   // attackers could get in: other settings, or Options.Force
	Endless                // the sequence changes with time: Options.Until
	TooLong                // more windows than the format can carry: an earlier Options.Until, or a longer Period
	Timeless               // the format does not know the time: rules that are written again and again
	Eaten                  // one guard would drop the knocks of another: no Options.Consume
	Shut                   // the drop policy closes the port that packets go to: Options.Allow
)

func refuse(reason Reason, text string, args ...any) *Refusal {
	return &Refusal{Reason: reason, text: fmt.Sprintf(text, args...)}
}

// unfit is a refusal for which some other formats are the way out.
func unfit(can func(format) bool, text string, args ...any) *Refusal {
	r := refuse(Unfit, text, args...)
	r.Suits = formatsThat(can)
	return r
}

func (f format) knowsTime() bool      { return f.clock }
func (f format) verifiesTokens() bool { return f.tokens }
