package rules

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// emitKnockd writes a knockd.conf. knockd only opens.
func emitKnockd(guards []guard, o Options) (document, error) {
	if o.Consume {
		return document{}, unfit(format.knowsTime, "knockd only listens, so it cannot consume the knocks")
	}
	if err := checkSections(guards); err != nil {
		return document{}, err
	}
	d := nftDaemon(guards, o, "{ pkill -HUP -x knockd || knockd -d -c "+quote(o.File)+"; }", "pkill -x knockd")
	d.changed = "pkill -HUP -x knockd"
	d.notes = append(d.notes,
		"A knockd that runs already is only told to read its own file again: it must be\n"+o.File+" too.",
		`knockd watches one interface, eth0 unless you name another:
Interface = NAME  under [options], or the option -i.`,
		`knockd sees only the ports named in here, so that an ascending scan would open
a door: each has a second one of neighbouring ports beside it, a trap. It
counts whole seconds from the first knock on, takes a doubled knock for a wrong
one, and after a lost last knock needs two more attempts.`)
	if slices.ContainsFunc(guards, guard.timed) {
		d.notes = append(d.notes, `It knows no time either: it opens to the sequences of all windows in here until
it reads others. What --refresh systemd prints keeps them fresh. If that stops,
those of the past go on opening, and the new ones do not. Each time it reads
others, it forgets attempts that are under way; who is in stays in.`)
	}
	var b strings.Builder
	b.WriteString("\n" + nftInComments(guards, o) + "\n[options]\n\tUseSyslog\n")
	for _, g := range guards {
		for _, window := range g.Windows {
			s := knockdSection{g, window}
			fmt.Fprintf(&b, "\n[%s]\n\tsequence = %s\n\tseq_timeout = %d\n\ttcpflags = syn\n", s.name(), knockdSequence(s.window.Steps), s.timeout())
			fmt.Fprintf(&b, "\tstart_command = %s\n\tstart_command_6 = %s\n", s.open("4"), s.open("6"))
			if trap := s.trap(guarded(guards)); trap != "" {
				fmt.Fprintf(&b, "\n[%s_trap]\n\tsequence = %s\n\tseq_timeout = %d\n\ttcpflags = syn\n", s.name(), trap, s.timeout())
			}
		}
	}
	d.body = b.String()
	return d, nil
}

// checkSections refuses sequences that differ, but not in the first knock: knockd
// forgets the attempts at one when it finds that they are none at the other. Of
// sequences drawn from thousands of ports, few windows have that in common.
func checkSections(guards []guard) error {
	first := map[string]guard{}
	for _, g := range guards {
		if g.timed() {
			continue
		}
		steps := g.Windows[0].Steps
		other, taken := first[steps[0].String()]
		if taken && other.Windows[0].Steps.String() != steps.String() {
			return unfit(format.knowsTime, "%s: its first knock is also the first knock of %s, and knockd would confuse the two; choose another first knock",
				g.Name, other.Name)
		}
		first[steps[0].String()] = g
	}
	return nil
}

// knockdSection is what opens a guard in one window: a section of knockd.conf. A port
// may come twice in a sequence, and several sections may share ports, but for the
// first.
type knockdSection struct {
	guard  guard
	window window
}

func (s knockdSection) name() string {
	switch {
	case !s.guard.timed() && s.guard.ID == "options": // knockd's own section
		return "options_"
	case !s.guard.timed():
		return s.guard.ID
	}
	return fmt.Sprintf("%s_%d", s.guard.ID, s.window.number())
}

// trap returns the ports before and behind every knock, as a sequence that
// nobody sends: knockd then sees the ports, and takes them for wrong knocks. The
// knocks of other windows it sees anyway. A try at a port that is closed is not
// one, whoever guards it.
func (s knockdSection) trap(closed []knock.PortRange) string {
	var trap knock.Sequence
	seen := map[string]bool{}
	for _, w := range s.guard.Windows {
		for _, step := range w.Steps {
			seen[step.String()] = true
		}
	}
	for _, step := range s.window.Steps {
		for _, port := range []int{int(step.Port) + 1, int(step.Port) - 1} {
			t := knock.Step{Transport: step.Transport, Port: uint16(port)}
			if port < 1 || port > 65535 || seen[t.String()] || contains(closed, t) || contains(s.guard.IgnorePorts, t) {
				continue
			}
			seen[t.String()] = true
			trap = append(trap, t)
		}
	}
	return knockdSequence(trap[:min(len(trap), knock.MaxSteps)])
}

func knockdSequence(s knock.Sequence) string {
	words := make([]string, len(s))
	for i, step := range s {
		words[i] = fmt.Sprintf("%d:%s", step.Port, step.Transport)
	}
	return strings.Join(words, ",")
}

// timeout returns what knockd allows from the first knock to the last, in
// seconds.
func (s knockdSection) timeout() int {
	all := s.guard.KnockTimeout * time.Duration(max(len(s.window.Steps)-1, 1))
	return int((all + time.Second - 1) / time.Second)
}

// open returns the command that lets an address in. An element keeps its
// first timeout when it is added again, so it is made anew.
func (s knockdSection) open(family string) string {
	return fmt.Sprintf(`nft "add %[1]s { %%IP%% }; delete %[1]s { %%IP%% }; add %[1]s { %%IP%% timeout %[2]s }"`, nftOpening(s.guard, family), nftTime(s.guard.OpenFor))
}
