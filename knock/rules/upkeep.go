package rules

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/portknock/portknock/knock"
)

// Upkeep is how a server that has the key keeps its rules fresh: it writes them
// anew every so often, for a short time ahead, and loads them.
type Upkeep struct {
	File    string        // the rules
	Every   time.Duration // how often they are written, in whole seconds
	Horizon time.Duration // for how long each time, in whole seconds
	Load    string        // a line of shell that loads the rules, each time; it prints no sequence and no token
	Changed string        // a line of shell for when the rules differ from those before; "" if there is none
	Undo    string        // a line of shell that removes the rules
	Modules bool          // Load may have to load modules of the kernel
}

// Keep returns the upkeep of the rules that [Emit] writes of these guards. The
// horizon is the time from o.From until o.Until, or chosen if that is none. An
// error is one of Emit's, or says why there is nothing to keep.
func Keep(name string, guards []Guard, o Options) (Upkeep, error) {
	f := formats[name]
	u := Upkeep{File: o.File, Modules: name == "iptables"}
	for _, g := range guards {
		if packets(g) != nil { // whose key is all the server needs
			continue
		}
		_, w, err := g.Schedule.At(o.From)
		if err != nil {
			return Upkeep{}, fmt.Errorf("%s: %w", g.Name, err)
		}
		if w == (knock.Window{}) {
			continue
		}
		if every := f.every(w.End.Sub(w.Start), g.Skew); u.Every == 0 || every < u.Every {
			u.Every = every
		}
	}
	u.Horizon = o.Until.Sub(o.From).Truncate(time.Second)
	switch {
	case len(guards) == 0:
	case u.Every == 0:
		return Upkeep{}, errors.New("the sequence never changes: these rules need no refresh")
	case u.Horizon <= 0:
		// A refresh that fails, or comes late, does no harm, nor does the next.
		u.Horizon = 4 * u.Every
		if f.stale { // and still has few windows
			u.Horizon = 3 * u.Every
		}
		o.Until = o.From.Add(u.Horizon)
	case u.Horizon < 2*u.Every:
		return Upkeep{}, fmt.Errorf("a refresh every %v does not go with a horizon below %v", u.Every, 2*u.Every)
	}
	if err := Emit(io.Discard, name, guards, o); err != nil {
		return Upkeep{}, err
	}
	if u.File == "" {
		u.File = f.file
	}
	// These commands are written here. What runs as root must not come out of the
	// rules file, which somebody else may have been able to write.
	o.File = u.File
	switch {
	case f.stale:
		u.Load, u.Changed, u.Undo = nftQuiet(nftFromComments+Quote(u.File)+" | nft -f -"), "pkill -HUP -x knockd", knockdUndo
	case u.Modules:
		u.Load, u.Undo = iptLoad(iptRules{options: o}.load()), iptEach(iptUndo())
	default:
		u.Load, u.Undo = nftQuiet(nftLoad(o)), nftUndo
	}
	return u, nil
}

// every returns how often rules are written for windows of a length. Where the
// firewall knows the time, that is a matter of how long a server may be down. One
// that knows none opens a sequence for so much longer than Skew.
func (f format) every(period, skew time.Duration) time.Duration {
	if f.stale {
		return max(min(max(skew, 30*time.Second), period/4).Truncate(time.Second), time.Second)
	}
	return min(max(period, time.Minute), 24*time.Hour)
}
