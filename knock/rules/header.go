package rules

import (
	"fmt"
	"strings"
	"time"
)

// trialMark exists while rules are on trial, and holds the moment it began: who
// tries others meanwhile is not undone by the end of the first trial.
const trialMark = "/run/portknock.trial"

// partMark is the line between the parts of a file that may be too much at once.
const partMark = "# part"

// hasParts reports whether rules have more than one.
func hasParts(text string) bool { return strings.Contains(text, "\n"+partMark+"\n") }

// describe says of a guard what it closes, how it opens, and until when.
func (f format) describe(g guard, o Options) string {
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
	case !f.clock:
		p("  its last window ends at %s: write it anew before that", end)
	default:
		p("  valid until %s, from when on it is open %s", end, after)
		p("  for the profile: ValidUntil %s", end)
	}
	return b.String()
}

// header returns the comment that every file opens with: what it does and the
// commands around it, each on one line that can be pasted into a shell.
func (f format) header(guards []guard, d document, o Options) string {
	var b strings.Builder
	secret, again := "knocks", "sessions and openings go on."
	for _, g := range guards {
		b.WriteString(f.describe(g, o))
		if g.SPA != nil {
			secret = "keys"
		}
		if g.forwards() {
			again = "sessions go on, openings end."
		}
	}
	fmt.Fprintf(&b, "The %s are in here: keep it as secret as a password, mode 0600.\n\n", secret)
	load, parts := d.load, d.parts
	if d.refuse != "" {
		load, parts = d.refuse+" && "+load, d.refuse+" && "+parts
	}
	fmt.Fprintf(&b, "check: %s\n", d.check)
	fmt.Fprintf(&b, "load: %s\n", load)
	if d.parts != "" {
		fmt.Fprintf(&b, "parts: %s\n", parts)
	}
	fmt.Fprintf(&b, "watch: %s\n", d.watch)
	fmt.Fprintf(&b, "undo: %s\n", d.undo)
	fmt.Fprintf(&b, "trial: %s\n", d.trial(load))
	fmt.Fprintf(&b, "keep: rm %s\n\n", trialMark)
	fmt.Fprintf(&b, `The first time, use the trial: it loads the rules and undoes them after a
minute, and with them those that they replace: load these again. Leave your
session open, log in from another terminal, and only if that works, keep
them. Loading again replaces the rules; %s
Loading turns connection tracking on.
`, again)
	if d.refuse != "" {
		fmt.Fprintf(&b, `
Loading replaces all portknock rules on this server. If this would open a port
that the loaded rules guard, the load and the trial name the port and load
nothing. Put all profiles into one file (emit-rules NAME NAME...). To load
anyway, run this first: export %s=1
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
	for _, n := range d.notes {
		if n == "" {
			continue
		}
		b.WriteString("\n" + n + "\n")
	}
	var comment strings.Builder
	for line := range strings.Lines(b.String()) {
		comment.WriteString(strings.TrimRight("# "+line, " \n") + "\n")
	}
	return comment.String()
}

// trial returns the command that loads the rules and undoes them after a minute.
// It checks the rules first. If the load fails nothing is undone, since the rules
// from before are still in force; an earlier trial goes on.
func (d document) trial(load string) string {
	return fmt.Sprintf(`%[1]s && { m=$(date +%%s%%N).$$; o=$(cat %[2]s 2>/dev/null); echo "$m" >%[2]s`+
		` && { setsid sh -c 'sleep 60; [ "$(cat %[2]s)" = "$0" ] && rm %[2]s && { %[3]s; }' "$m" >/dev/null 2>&1 & %[4]s; }`+
		` || { if [ "$o" ]; then echo "$o" >%[2]s; else rm -f %[2]s; fi; echo "portknock: the load failed, so this trial has not begun" >&2; false; }; }`,
		d.check, trialMark, d.undo, load)
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

// quote makes a text one word for a shell, also for one that somebody types into,
// where double quotes would leave "!" its meaning.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,@:=%") == "" {
		return s
	}
	return `'` + strings.ReplaceAll(s, `'`, `'\''`) + `'`
}
