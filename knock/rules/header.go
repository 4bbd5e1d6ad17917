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
	Parts                    string // instead of Load, where that is too much at once; "" if it never is
	Stale                    bool   // what loads it knows no time
	Notes                    []string
}

// trialMark exists while the rules are on trial.
const trialMark = "/run/portknock.trial"

func (h header) write(w io.Writer, o Options) error {
	var b strings.Builder
	secret, again := "knocks", "sessions and openings\ngo on."
	for _, g := range h.Guards {
		what := "guards " + join(g.OpenPorts)
		if g.SPA != nil && g.SPA.NAT.IsValid() {
			what = fmt.Sprintf("forwards %s to %v", join(g.OpenPorts), g.SPA.NAT)
			again = "sessions go on,\nopenings end."
		}
		fmt.Fprintf(&b, "portknock: %s for %s", what, g.Name)
		if g.Fingerprint != "" {
			fmt.Fprintf(&b, ", key %s", g.Fingerprint)
		}
		if g.SPA != nil {
			fmt.Fprintf(&b, "\n  opens for %v after a packet of fwknop\n  valid until the keys are changed\n", g.OpenFor)
			secret = "keys"
			continue
		}
		if w := g.Windows[0]; g.tokens() {
			fmt.Fprintf(&b, "\n  opens for %v to one token, sent to %d/udp; each of a window's %d serves one address\n", g.OpenFor, g.TokenPort, len(w.Tokens))
		} else {
			fmt.Fprintf(&b, "\n  opens for %v after %d knocks with at most %v between two\n", g.OpenFor, len(w.Steps), g.KnockTimeout)
		}
		if !g.timed() {
			b.WriteString("  valid until the sequence is changed\n")
			continue
		}
		if h.Stale {
			fmt.Fprintf(&b, "  its last window ends at %s: write it anew before that\n", g.until().UTC().Format(time.RFC3339))
			continue
		}
		end, after := g.until().UTC().Format(time.RFC3339), "to nobody"
		if o.OpenAtEnd {
			after = "to everybody"
		}
		fmt.Fprintf(&b, "  valid until %s, from when on it is open %s\n", end, after)
		fmt.Fprintf(&b, "  for the profile: ValidUntil %s\n", end)
	}
	fmt.Fprintf(&b, "The %s are in here: keep it as secret as a password, mode 0600.\n\n", secret)
	fmt.Fprintf(&b, "check: %s\n", h.Check)
	fmt.Fprintf(&b, "load: %s\n", h.Load)
	if h.Parts != "" {
		fmt.Fprintf(&b, "parts: %s\n", h.Parts)
	}
	fmt.Fprintf(&b, "watch: %s\n", h.Watch)
	fmt.Fprintf(&b, "undo: %s\n", h.Undo)
	fmt.Fprintf(&b, "trial: touch %[1]s; setsid sh -c 'sleep 60; [ ! -e %[1]s ] || { %[2]s; }' >/dev/null 2>&1 & %[3]s\n", trialMark, h.Undo, h.Load)
	fmt.Fprintf(&b, "keep: rm %s\n\n", trialMark)
	fmt.Fprintf(&b, `The first time, use the trial: it loads the rules and undoes them after a
minute. Leave your session open, log in from another terminal, and only if
that works, keep them. Loading again replaces the rules; %s Loading turns connection tracking on.
`, again)
	if o.DropPolicy {
		b.WriteString("\nAll other ports are closed too")
		if len(o.Allow) > 0 {
			fmt.Fprintf(&b, ", but for %s", join(o.Allow))
		}
		b.WriteString(".\n")
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

func join[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, s := range list {
		words[i] = s.String()
	}
	return strings.Join(words, " ")
}

// quote makes a path one word for a shell.
func quote(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,@") == "" {
		return path
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(path) + `"`
}
