package rules

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/portknock/portknock/knock"
)

// emitKnockd writes a knockd.conf. knockd only opens the ports; the guard closes them.
func emitKnockd(guards []guard, o Options) (document, error) {
	if o.Consume {
		return document{}, refuse("", format.knowsTime, "knockd only listens, so it cannot drop the knocks")
	}
	if err := checkSections(guards); err != nil {
		return document{}, err
	}
	file := func(some []guard) string { return knockdFile(some, guardedPorts(guards), o) }
	// A knockd in the foreground, as a service has it, writes no pid file.
	reload := "systemctl reload knockd 2>/dev/null || pkill -HUP -x -F " + knockdPID + " knockd 2>/dev/null"
	stop := "systemctl stop knockd 2>/dev/null; pkill -x -F " + knockdPID + " knockd 2>/dev/null"
	d := nftDaemon(guards, o, "{ "+reload+" || knockd -d -c "+quote(o.File)+"; }", stop, file)
	d.plainNotes = append(d.plainNotes,
		`load tells a running knockd to read its file again. So this file must be the one that
it reads, `+o.File+`. unload also stops knockd.`,
		textIf(o.Interface == "", `knockd listens on one interface, eth0 by default. To choose another one, use
"portknock emit-rules --interface NAME".`))
	d.notes = append(d.notes,
		`knockd sees only the ports in this file, so an ascending scan of these ports would
open the guarded ports. Each sequence therefore has a second section with
neighboring ports, whose packets count as wrong knocks.`,
		`knockd counts whole seconds from the first knock, and treats a doubled knock as a
wrong one. If the last knock is lost, the client must try two more times.`)
	if slices.ContainsFunc(guards, guard.timed) {
		d.notes = append(d.notes, `knockd has no clock: it opens the ports to the sequences of all windows in this
file until it reads another file. A script with --refresh loads new windows in
time. If the refresh stops, old sequences stay valid and new ones do not work. Each
refresh makes knockd forget unfinished sequences; admitted addresses stay.`)
	}
	return d, nil
}

// knockdPID is the file in which a knockd in the background keeps its process ID.
const knockdPID = "/run/knockd.pid"

// knockdFile returns the text of a knockd.conf that opens some of the guards. guarded are
// the ports of all guards.
func knockdFile(guards []guard, guarded []knock.PortRange, o Options) string {
	var b lines
	b.add("\n[options]\n\tUseSyslog")
	if o.Interface != "" {
		b.add("\tInterface = %s", o.Interface)
	}
	for _, g := range guards {
		for _, w := range g.Windows {
			name := knockdSection(g, w)
			// knockd's timeout is in seconds, from the first knock to the last.
			timeout := math.Ceil((g.KnockTimeout * time.Duration(max(len(w.Steps)-1, 1))).Seconds())
			addSection := func(name string, s knock.Sequence) {
				steps := join(s, ",", func(step knock.Step) string { return fmt.Sprintf("%d:%s", step.Port, step.Transport) })
				b.add("\n[%s]\n\tsequence = %s\n\tseq_timeout = %.0f\n\ttcpflags = syn", name, steps, timeout)
			}
			addSection(name, w.Steps)
			b.add("\tstart_command = %s\n\tstart_command_6 = %s", knockdOpenCommand(g, "4"), knockdOpenCommand(g, "6"))
			if trap := g.trap(w, guarded); len(trap) > 0 {
				addSection(name+"_trap", trap)
			}
		}
	}
	return b.String()
}

// checkSections refuses different sequences that begin with the same knock. knockd
// forgets a client's attempt at one sequence when the attempt fails at the other one.
// Sequences drawn from thousands of ports share a first knock in few windows, so
// checkSections ignores sequences that change.
func checkSections(guards []guard) error {
	first := map[string]guard{}
	for _, g := range guards {
		if g.timed() {
			continue
		}
		steps := g.Windows[0].Steps
		other, taken := first[steps[0].String()]
		if taken && other.Windows[0].Steps.String() != steps.String() {
			return refuse("", format.knowsTime,
				"%s: it has the same first knock as %s, which would confuse knockd; choose another one",
				g.Name, other.Name)
		}
		first[steps[0].String()] = g
	}
	return nil
}

// knockdSection names the section that opens a guard in one window. A sequence may
// use a port twice, and sections may share all knocks except the first.
func knockdSection(g guard, w window) string {
	switch {
	case g.timed():
		return fmt.Sprintf("%s_%d", g.ID, w.number())
	case g.ID == "options": // knockd's own section
		return "options_"
	}
	return g.ID
}

// trap returns the ports before and after every knock of a window, as a sequence that
// no client sends. knockd sees only ports that its file names. With the trap, knockd
// sees these ports too, and counts packets to them as wrong knocks.
//
// The trap leaves out the knocks of all windows, because knockd sees them anyway. It
// also leaves out IgnorePorts and the guarded ports of all guards, because a connection
// to such a port is not a wrong knock.
func (g guard) trap(w window, guarded []knock.PortRange) knock.Sequence {
	var trap knock.Sequence
	taken := slices.Concat(guarded, g.IgnorePorts)
	markTaken := func(s knock.Step) {
		taken = append(taken, knock.PortRange{Transport: s.Transport, First: s.Port, Last: s.Port})
	}
	for _, w := range g.Windows {
		for _, step := range w.Steps {
			markTaken(step)
		}
	}
	for _, step := range w.Steps {
		for _, port := range []int{int(step.Port) + 1, int(step.Port) - 1} {
			t := knock.Step{Transport: step.Transport, Port: uint16(port)}
			if port >= 1 && port <= 65535 && !contains(taken, t) {
				markTaken(t)
				trap = append(trap, t)
			}
		}
	}
	return trap[:min(len(trap), knock.MaxSteps)]
}

// knockdOpenCommand returns the command that admits an address. The command deletes
// the element and adds it again, because an element that is only added again keeps
// its first timeout.
func knockdOpenCommand(g guard, family string) string {
	return fmt.Sprintf(`nft "add %[1]s { %%IP%% }; delete %[1]s { %%IP%% }; add %[1]s { %%IP%% timeout %[2]s }"`,
		nftOpenElement(g, family), nftTime(g.OpenFor))
}
