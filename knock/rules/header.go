package rules

import (
	"fmt"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// trialMark is a file that exists during a trial of rules. It contains the moment when
// the trial began, so that the end of a first trial does not undo a second one.
const trialMark = "/run/portknock.trial"

// partMark is the line between two parts of a file. A container may be unable to load
// all parts at once.
const partMark = "# part"

// hasParts reports whether a file has more than one part.
func hasParts(text string) bool { return strings.Contains(text, "\n"+partMark+"\n") }

// describe adds lines for the header: which ports the guard closes, what opens them,
// and until when the rules are valid.
func (f format) describe(b *lines, g guard, o Options) {
	action := "guards " + rangeList(g.OpenPorts)
	if g.forwards() {
		action = fmt.Sprintf("forwards %s to %v", rangeList(g.OpenPorts), g.SPA.NAT)
	}
	b.add("portknock: %s for %s%s", action, g.Name, textIf(g.Fingerprint != "", ", key "+g.Fingerprint))
	switch w := g.Windows[0]; {
	case g.SPA != nil:
		b.add("  opens for %v after a packet of fwknop", g.OpenFor)
	case g.tokens():
		b.add("  opens for %v to one token, sent to %d/udp; each of a window's %d serves one address", g.OpenFor, g.TokenPort, len(w.Tokens))
	default:
		b.add("  opens for %v after %d knocks with at most %v between two", g.OpenFor, len(w.Steps), g.KnockTimeout)
	}
	end, afterEnd := g.end().UTC().Format(time.RFC3339), "to nobody"
	if o.OpenAtEnd {
		afterEnd = "to everybody"
	}
	switch {
	case g.SPA != nil:
		b.add("  valid until the keys are changed")
	case !g.timed():
		b.add("  valid until the sequence is changed")
	case !f.clock:
		b.add("  its last window ends at %s: write it anew before that", end)
	default:
		b.add("  valid until %s, from when on it is open %s\n  for the profile: ValidUntil %[1]s", end, afterEnd)
	}
}

// header returns the comment at the start of every file: what the file does, and the
// commands for it. Each command fits on one line that a user can paste into a shell.
func (f format) header(guards []guard, d document, o Options) string {
	var b lines
	secret, onReload := "knocks", "sessions and openings go on."
	for _, g := range guards {
		f.describe(&b, g, o)
		if g.SPA != nil {
			secret = "keys"
		}
		if g.forwards() {
			onReload = "sessions go on, openings end."
		}
	}
	b.add("The %s are in here: keep it as secret as a password, mode 0600.\n", secret)
	guardCheck := textIf(d.refuse != "", d.refuse+" && ")
	b.add("check: %s", d.check)
	b.add("load: %s", guardCheck+d.load)
	if d.parts != "" {
		b.add("parts: %s", guardCheck+d.parts)
	}
	b.add("watch: %s", d.watch)
	b.add("undo: %s", d.undo)
	b.add("trial: %s", d.trial(guardCheck+d.load))
	b.add("keep: rm %s", trialMark)
	allowed := textIf(len(o.Allow) > 0, ", but for "+rangeList(o.Allow))
	for _, note := range append([]string{
		`The first time, use the trial: it loads the rules and undoes them after a
minute, and with them those that they replace: load these again. Leave your
session open, log in from another terminal, and only if that works, keep
them. Loading again replaces the rules; ` + onReload + `
Loading turns connection tracking on.`,
		textIf(d.refuse != "", `Loading replaces all portknock rules on this server. If this would open a port
that the loaded rules guard, the load and the trial name the port and load
nothing. Put all profiles into one file (emit-rules NAME NAME...). To load
anyway, run this first: export `+forceVariable+`=1`),
		textIf(o.DropPolicy, "All other ports of this machine are closed too"+allowed+`.
What it forwards, as to containers, is not.`),
		textIf(o.Consume, `Knocks are dropped here. If the server answers at other closed ports, a scan
sees which ports are silent: then leave out --consume.`),
	}, d.notes...) {
		if note != "" {
			b.add("\n%s", note)
		}
	}
	return strings.ReplaceAll(comments("# ", b.String()), "# \n", "#\n")
}

// trial returns the command that checks the rules, loads them and undoes them after a
// minute. If the load fails, the command undoes nothing, because the previous rules
// are still in force. An earlier trial then goes on.
func (d document) trial(load string) string {
	return fmt.Sprintf(`%[1]s && { m=$(date +%%s%%N).$$; o=$(cat %[2]s 2>/dev/null); echo "$m" >%[2]s`+
		` && { setsid sh -c 'sleep 60; [ "$(cat %[2]s)" = "$0" ] && rm %[2]s && { %[3]s; }' "$m" >/dev/null 2>&1 & %[4]s; }`+
		` || { if [ "$o" ]; then echo "$o" >%[2]s; else rm -f %[2]s; fi; echo "portknock: the load failed, so this trial has not begun" >&2; false; }; }`,
		d.check, trialMark, d.undo, load)
}

// rangeList returns the ranges with a space between two.
func rangeList(ranges []knock.PortRange) string { return join(ranges, " ", knock.PortRange.String) }

// comments returns a text of whole lines with the mark before each line.
func comments(mark, text string) string {
	return mark + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n"+mark) + "\n"
}

// quote returns a text as one word for a shell. It uses single quotes, because an
// interactive shell expands "!" between double quotes.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,@:=%") == "" {
		return s
	}
	return `'` + strings.ReplaceAll(s, `'`, `'\''`) + `'`
}
