package rules

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// emitKnockd writes a knockd.conf. knockd only opens.
func emitKnockd(w io.Writer, guards []guard, o Options) error {
	if o.Consume {
		return errors.New("knockd only listens, so it cannot consume the knocks: nftables and iptables can")
	}
	if err := checkDoors(guards); err != nil {
		return err
	}
	file := Quote(o.File)
	nft := nftFromComments + file + ` | nft `
	h := header{
		Guards: guards,
		Stale:  true,
		Check:  nft + "-c -f -",
		// A knockd that does not start, for want of its interface, is no reason to
		// close the ports to everybody: it comes first.
		Load:   "{ pkill -HUP -x knockd || knockd -d -c " + file + "; } && " + nft + "-f -",
		Watch:  nftWatch(guards),
		Refuse: nftRefuse(guards),
		Undo:   "pkill -x knockd; " + nftUndo,
		Notes: []string{
			nftFromCommentsNote,
			nftVersionNote(guards),
			"A knockd that runs already is only told to read its own file again: it must be\n" + o.File + " too.",
			`knockd watches one interface, eth0 unless you name another:
Interface = NAME  under [options], or the option -i.`,
			`knockd sees only the ports named in here, so that an ascending scan would open
a door: each has a second one of neighbouring ports beside it, a trap. It
counts whole seconds from the first knock on, takes a doubled knock for a wrong
one, and after a lost last knock needs two more attempts.`,
		},
	}
	if slices.ContainsFunc(guards, guard.timed) {
		h.Notes = append(h.Notes, `It knows no time either: it opens to the sequences of all windows in here until
it reads others. What --refresh systemd prints keeps them fresh. If that stops,
those of the past go on opening, and the new ones do not. Each time it reads
others, it forgets attempts that are under way; who is in stays in.`)
	}
	if err := h.write(w, o); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("\n" + nftInComments(guards, o) + "\n[options]\n\tUseSyslog\n")
	for _, g := range guards {
		for _, window := range g.Windows {
			d := knockdDoor{g, window}
			fmt.Fprintf(&b, "\n[%s]\n\tsequence = %s\n\tseq_timeout = %d\n\ttcpflags = syn\n", d.name(), knockdSequence(d.Steps), d.timeout())
			fmt.Fprintf(&b, "\tstart_command = %s\n\tstart_command_6 = %s\n", d.open("4"), d.open("6"))
			if trap := d.trap(guarded(guards)); trap != "" {
				fmt.Fprintf(&b, "\n[%s_trap]\n\tsequence = %s\n\tseq_timeout = %d\n\ttcpflags = syn\n", d.name(), trap, d.timeout())
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

const knockdUndo = "pkill -x knockd; " + nftUndo

// checkDoors refuses sequences that differ, but not in the first knock: knockd
// forgets the attempts at one when it finds that they are none at the other. Of
// sequences drawn from thousands of ports, few windows have that in common.
func checkDoors(guards []guard) error {
	first := map[string]guard{}
	for _, g := range guards {
		if g.timed() {
			continue
		}
		steps := g.Windows[0].Steps
		other, taken := first[steps[0].String()]
		if taken && other.Windows[0].Steps.String() != steps.String() {
			return fmt.Errorf("%s: its first knock is that of %s, too, and knockd would take one's knocks for the other's: choose another, or use nftables or iptables",
				g.Name, other.Name)
		}
		first[steps[0].String()] = g
	}
	return nil
}

// knockdDoor is what opens a guard in one window. A port may come twice in a
// sequence, and several doors may share ports, but for the first.
type knockdDoor struct {
	guard
	window
}

func (d knockdDoor) name() string {
	switch {
	case !d.timed() && d.ID == "options": // which knockd takes for what is no door
		return "options_"
	case !d.timed():
		return d.ID
	}
	return fmt.Sprintf("%s_%d", d.ID, d.number())
}

// trap returns the ports before and behind every knock, as a sequence that
// nobody sends: knockd then sees the ports, and takes them for wrong knocks. The
// knocks of other windows it sees anyway. A try at a port that is closed is not
// one, whoever guards it.
func (d knockdDoor) trap(closed []knock.PortRange) string {
	var trap knock.Sequence
	seen := map[string]bool{}
	for _, w := range d.Windows {
		for _, s := range w.Steps {
			seen[s.String()] = true
		}
	}
	for _, s := range d.Steps {
		for _, port := range []int{int(s.Port) + 1, int(s.Port) - 1} {
			t := knock.Step{Transport: s.Transport, Port: uint16(port)}
			if port < 1 || port > 65535 || seen[t.String()] || contains(closed, t) || contains(d.IgnorePorts, t) {
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
func (d knockdDoor) timeout() int {
	all := d.KnockTimeout * time.Duration(max(len(d.Steps)-1, 1))
	return int((all + time.Second - 1) / time.Second)
}

// open returns the command that lets an address in. An element keeps its
// first timeout when it is added again, so it is made anew.
func (d knockdDoor) open(family string) string {
	set := fmt.Sprintf("element inet portknock open%s_%s", family, d.ID)
	return fmt.Sprintf(`nft "add %[1]s { %%IP%% }; delete %[1]s { %%IP%% }; add %[1]s { %%IP%% timeout %[2]s }"`, set, nftTime(d.OpenFor))
}
