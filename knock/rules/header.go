package rules

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// header is the comment every file opens with: what it does and the commands
// around it, each on one line that can be pasted into a shell.
type header struct {
	Guards                   []guard
	Check, Load, Watch, Undo string
	Parts                    string // replaces Load where a container refuses so much at once; "" if it never does
	Refuse                   string // fails if Load would open a port that is guarded now; "" if Load replaces no guard
	Stale                    bool   // what loads it knows no time
	Notes                    []string
}

// trialMark exists while rules are on trial, and holds the moment it began: who
// tries others meanwhile is not undone by the end of the first trial.
const trialMark = "/run/portknock.trial"

// partMark is the line between the parts of a file that may be too much at once.
const partMark = "# part"

// hasParts reports whether rules have more than one.
func hasParts(text string) bool { return strings.Contains(text, "\n"+partMark+"\n") }

// describe says of a guard what it closes, how it opens, and until when.
func (h header) describe(g guard, o Options) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	key := ""
	if g.Fingerprint != "" {
		key = ", key " + g.Fingerprint
	}
	what := "guards " + join(g.OpenPorts)
	if g.forwards() {
		what = fmt.Sprintf("forwards %s to %v", join(g.OpenPorts), g.SPA.NAT)
	}
	p("portknock: %s for %s%s", what, g.Name, key)
	switch w := g.Windows[0]; {
	case g.SPA != nil:
		p("  opens for %v after a packet of fwknop", g.OpenFor)
	case g.tokens():
		p("  opens for %v to one token, sent to %d/udp; each of a window's %d serves one address", g.OpenFor, g.TokenPort, len(w.Tokens))
	default:
		p("  opens for %v after %d knocks with at most %v between two", g.OpenFor, len(w.Steps), g.KnockTimeout)
	}
	end, after := g.until().UTC().Format(time.RFC3339), "to nobody"
	if o.OpenAtEnd {
		after = "to everybody"
	}
	switch {
	case g.SPA != nil:
		p("  valid until the keys are changed")
	case !g.timed():
		p("  valid until the sequence is changed")
	case h.Stale:
		p("  its last window ends at %s: write it anew before that", end)
	default:
		p("  valid until %s, from when on it is open %s", end, after)
		p("  for the profile: ValidUntil %s", end)
	}
	return b.String()
}

func (h header) write(w io.Writer, o Options) error {
	var b strings.Builder
	secret, again := "knocks", "sessions and openings go on."
	for _, g := range h.Guards {
		b.WriteString(h.describe(g, o))
		if g.SPA != nil {
			secret = "keys"
		}
		if g.forwards() {
			again = "sessions go on, openings end."
		}
	}
	fmt.Fprintf(&b, "The %s are in here: keep it as secret as a password, mode 0600.\n\n", secret)
	load, parts := h.Load, h.Parts
	if h.Refuse != "" {
		load, parts = h.Refuse+" && "+load, h.Refuse+" && "+parts
	}
	fmt.Fprintf(&b, "check: %s\n", h.Check)
	fmt.Fprintf(&b, "load: %s\n", load)
	if h.Parts != "" {
		fmt.Fprintf(&b, "parts: %s\n", parts)
	}
	fmt.Fprintf(&b, "watch: %s\n", h.Watch)
	fmt.Fprintf(&b, "undo: %s\n", h.Undo)
	fmt.Fprintf(&b, "trial: %s\n", h.trial(load))
	fmt.Fprintf(&b, "keep: rm %s\n\n", trialMark)
	fmt.Fprintf(&b, `The first time, use the trial: it loads the rules and undoes them after a
minute, and with them those that they replace: load these again. Leave your
session open, log in from another terminal, and only if that works, keep
them. Loading again replaces the rules; %s
Loading turns connection tracking on.
`, again)
	if h.Refuse != "" {
		fmt.Fprintf(&b, `
Loading replaces all portknock rules on this server. It refuses to open a port
that the loaded rules guard and these do not. Put all profiles into one file
(emit-rules NAME NAME...), or insist: export %s=1
`, forceVariable)
	}
	if o.DropPolicy {
		b.WriteString("\nAll other ports of this machine are closed too")
		if len(o.Allow) > 0 {
			fmt.Fprintf(&b, ", but for %s", join(o.Allow))
		}
		b.WriteString(".\nWhat it forwards, as to containers, is not.\n")
	}
	if o.Consume {
		b.WriteString("\nKnocks are dropped here. If the server answers at other closed ports, a scan\nsees which ports are silent: then leave out --consume.\n")
	}
	for _, n := range h.Notes {
		if n == "" {
			continue
		}
		b.WriteString("\n" + n + "\n")
	}
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight("# "+line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// trial returns the command that loads the rules and undoes them after a minute.
// It checks the rules first. If the load fails nothing is undone, since the rules
// from before are still in force; an earlier trial goes on.
func (h header) trial(load string) string {
	return fmt.Sprintf(`%[1]s && { m=$(date +%%s%%N).$$; o=$(cat %[2]s 2>/dev/null); echo "$m" >%[2]s`+
		` && { setsid sh -c 'sleep 60; [ "$(cat %[2]s)" = "$0" ] && rm %[2]s && { %[3]s; }' "$m" >/dev/null 2>&1 & %[4]s; }`+
		` || { if [ "$o" ]; then echo "$o" >%[2]s; else rm -f %[2]s; fi; echo "portknock: the load failed: nothing is on trial, and nothing will be undone" >&2; false; }; }`,
		h.Check, trialMark, h.Undo, load)
}

func join[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, s := range list {
		words[i] = s.String()
	}
	return strings.Join(words, " ")
}

// comments returns a text with a mark before each line.
func comments(mark, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(mark + line)
	}
	return b.String()
}

// Quote makes a text one word for a shell, also for one that somebody types into,
// where double quotes would leave "!" its meaning.
func Quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,@:=%") == "" {
		return s
	}
	return `'` + strings.ReplaceAll(s, `'`, `'\''`) + `'`
}
