package rules

import (
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// partMark is the line between two parts of a text. A container may be unable to load
// all parts at once.
const partMark = "# part"

// describe adds lines for the header: which ports the guard closes, what opens them,
// and until when the rules are valid.
func (f format) describe(b *lines, g guard, o Options) {
	action := "guards " + rangeList(g.OpenPorts)
	if g.forwards() {
		action = "forwards " + rangeList(g.OpenPorts) + " to " + g.SPA.NAT.String()
	}
	b.add("portknock: %s for %s%s", action, g.Name, textIf(g.Fingerprint != "", ", key "+g.Fingerprint))
	switch w := g.Windows[0]; {
	case g.SPA != nil:
		b.add("  after an SPA packet, an address may connect for %v", g.OpenFor)
	case g.tokens():
		b.add("  after a token to %d/udp, an address may connect for %v\n  each window has %d tokens, and each token admits one address",
			g.TokenPort, g.OpenFor, len(w.Tokens))
	default:
		b.add("  after %d knocks, an address may connect for %v\n  at most %v may pass between two knocks", len(w.Steps), g.OpenFor, g.KnockTimeout)
	}
	if len(o.Trust) > 0 {
		b.add("  connections from %s need no knock", strings.Join(o.trusted().all(), ", "))
	}
	end, atEnd := g.end().UTC().Format(time.RFC3339), "closed to everyone"
	if o.OpenAtEnd {
		atEnd = "open to everyone"
	}
	switch {
	case g.SPA != nil:
		b.add("  does not expire")
	case !g.timed():
		b.add("  does not expire")
	case !f.clock:
		b.add("  the last window ends at %s; load new rules before that", end)
	default:
		b.add("  valid until %s; after that the ports are %s\n  for the profile: ValidUntil %[1]s", end, atEnd)
	}
}

// about returns the start of the header: what the file does.
func (f format) about(guards []guard, o Options) string {
	var b lines
	secret := "knocks"
	for _, g := range guards {
		f.describe(&b, g, o)
		switch {
		case g.SPA != nil:
			secret = "keys"
		case g.tokens():
			secret = "tokens"
		}
	}
	b.add("This file holds the %s. Keep it secret: mode 0600.", secret)
	return b.String()
}

// header returns the comment at the start of a plain file: what the file does, and
// the commands for it. Each command fits on one line that a user can paste into a shell.
func (f format) header(guards []guard, d document, o Options) string {
	var b lines
	b.add("%s", f.about(guards, o))
	b.add("Commands for root, if this file is %s:", o.File)
	b.add("test: %s", d.test)
	b.add("load: %s", d.load)
	b.add("unload: %s", d.unload)
	b.addNotes(slices.Concat([]string{loadNote}, d.plainNotes, f.notes(d, o)))
	return mark(b.String())
}

// addNotes adds paragraphs with an empty line before each. It leaves out "" paragraphs.
func (l *lines) addNotes(notes []string) {
	for _, note := range notes {
		if note != "" {
			l.add("\n%s", note)
		}
	}
}

// loadNote says what the commands of the header do, and what else there is.
const loadNote = `load replaces the rules of the profiles in this file. Admitted addresses, open
sessions and the rules of other profiles stay. Loading also turns on the kernel's
connection tracking.

"portknock emit-rules --script" prints a script that can do more. It has a trial that
ends by itself, a status, and a service that loads the rules at each boot and again if
another program removes them. Without that service, a reboot opens the ports, and so
does a program that flushes all rules.`

// notes returns the paragraphs of a header about the options and the format.
func (f format) notes(d document, o Options) []string {
	allowed := textIf(len(o.Allow) > 0, " except "+rangeList(o.Allow))
	return append([]string{
		textIf(o.DropPolicy, "The drop policy also closes all other TCP and UDP ports of this server"+allowed+`.
Other protocols pass, such as ping, VRRP and IPsec (ESP, AH). The drop policy does
not change what this server forwards, for example to containers.`),
		textIf(o.DropPolicy && len(o.Trust) > 0, "The drop policy leaves all ports open to sources that need no knock."),
		textIf(len(o.Public) > 0, "If NAT of this server leads "+rangeList(o.Public)+` to a guarded port, that path is
open to everyone.`),
		textIf(o.Consume, `These rules drop the knocks. If the server answers at other closed ports, a scan
finds the ports that do not answer. In that case leave out --consume.`),
	}, d.notes...)
}

// mark makes a comment of a text.
func mark(text string) string { return strings.ReplaceAll(comments("# ", text), "# \n", "#\n") }

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
