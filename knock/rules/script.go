package rules

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// shellFiles holds the shell code of scripts. Each script has the files that its format
// needs, after the rules.
//
//go:embed sh/*.sh
var shellFiles embed.FS

// shellFile returns a file of the folder sh. It panics if no such file is embedded.
func shellFile(name string) string {
	text, err := shellFiles.ReadFile("sh/" + name)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// Script holds the settings that only a script has.
type Script struct {
	// OnFailureOpen leaves the ports open if the installed rules cannot be loaded. Without
	// it, the script then closes the ports.
	OnFailureOpen bool
	// By says who made the script, for the administrators of the server. It may be "".
	By string
	// Refresh returns the command that prints a new script, whose rules are valid for
	// horizon, such as 1h30m. It is nil if the script only contains rules.
	Refresh func(horizon string) []string
}

// scriptCopy is the text after the ID in the names of a script's rules. The shell code
// removes it to load the rules, and replaces it to load a second copy for a trial.
const scriptCopy = ".COPY"

// EmitScript writes a shell script that contains the rules of all guards. An
// administrator runs the script on the server, to test, try, keep, install and remove the
// rules. The errors are those of [Format.Emit].
//
// With s.Refresh, the installed script replaces its rules before they expire. The
// rules are then valid for the time from o.From to o.Until. If that time is shorter than
// a second, EmitScript chooses a time. EmitScript returns an error if these rules never
// expire, or if the time is too short.
func (f Format) EmitScript(w io.Writer, guards []Guard, o Options, s Script) error {
	row, err := f.row()
	if err != nil {
		return err
	}
	every, refresh := time.Duration(0), ""
	if s.Refresh != nil {
		var horizon time.Duration
		every, horizon, err = row.refreshTimes(guards, o)
		if err != nil {
			return err
		}
		o.Until = o.From.Add(horizon)
		refresh = join(s.Refresh(formatSpan(horizon)), " ", quote)
	}
	o.File = row.file
	checked, err := row.check(guards, o)
	if err != nil {
		return err
	}
	nic := o.Interface
	o.Interface = "" // the shell code finds the interface
	for i := range checked {
		checked[i].copy = scriptCopy
	}
	d, err := row.emit(checked, o)
	if err != nil {
		return err
	}
	data, err := row.scriptData(checked, d, o)
	if err != nil {
		return err
	}
	onFailure := "closed"
	if s.OnFailureOpen {
		onFailure = "open"
	}
	var b lines
	b.add("#!/bin/sh")
	b.WriteString(row.scriptHeader(checked, d, o, every))
	b.add("\n# shellcheck disable=SC2034 # functions below use these variables by name")
	b.add("format=%s\nid=%.6x\non_failure=%s", row.name, sha256.Sum256([]byte(data+nic)), onFailure)
	b.add("interface=%s\nrefresh=%s", shellValue(nic), shellValue(refresh))
	b.add("every=%s\nmade_by=%s", textIf(every > 0, fmt.Sprint(int(every/time.Second))), shellValue(s.By))
	b.WriteString(data)
	for _, name := range slices.Concat([]string{"main.sh", "install.sh", "status.sh", "instance.sh"}, row.shell) {
		b.WriteString("\n" + shellFile(name))
	}
	b.add("\nmain \"$@\"")
	_, err = io.WriteString(w, b.String())
	return err
}

// scriptData returns the variables and the rules of a script.
func (f format) scriptData(guards []guard, d document, o Options) (string, error) {
	var b lines
	b.add("profiles=")
	for i, g := range guards {
		b.add("\n#< %s\nprofiles=\"$profiles %[1]s\"", g.ID)
		end := ""
		if g.timed() && f.clock {
			end = fmt.Sprint(g.end().Unix())
		}
		for _, v := range []struct{ name, value string }{
			{"name", shellValue(g.Name)},
			{"ports", shellValue(rangeList(g.OpenPorts))},
			{"trust", shellValue(strings.Join(o.trusted().all(), " "))},
			{"until", end},
			{"key", g.Fingerprint},
			{"stages", fmt.Sprint(g.stages())},
		} {
			b.add("%s_%s=%s", v.name, g.ID, v.value)
		}
		err := hereDocument(&b, "rules_"+g.ID, d.parts[i])
		if d.daemons != nil {
			err = errors.Join(err, hereDocument(&b, "daemon_"+g.ID, d.daemons[i]))
		}
		if err != nil {
			return "", err
		}
		b.add("#> %s", g.ID)
	}
	b.add("")
	err := hereDocument(&b, "rules_shared", d.shared)
	return b.String(), err
}

// hereDocument adds a shell function that prints a text.
func hereDocument(b *lines, name, text string) error {
	const end = "END_OF_RULES"
	if strings.Contains(text, "\n"+end+"\n") {
		return errors.New("the rules contain the line " + end)
	}
	b.add("%s() {\n\tcat <<'%s'\n%s\n%[2]s\n}", name, end, strings.Trim(text, "\n"))
	return nil
}

// scriptHeader returns the comment at the start of a script. every is the time between two
// refreshes, or 0.
func (f format) scriptHeader(guards []guard, d document, o Options, every time.Duration) string {
	var b lines
	b.add("%s", f.about(guards, o))
	b.add(`Save this script as a file and run it as root: sh FILE VERB
  test              check that this server can load the rules; change nothing
  trial [SECONDS]   load the rules for SECONDS (default 60); then the kernel goes back.
                    At a terminal, trial waits for Enter, which does the same as keep
  keep [--force]    end the trial, and leave its rules loaded until the next reboot;
                    needs a new connection through these rules first, or --force
  cancel            end the trial now, and go back
  install [--force] keep; then load the rules at each boot, and again if they are removed
  load              load the rules without a trial, until the next reboot
  status [--json]   show the rules, the services, admitted addresses and counters
  unload [NAME...]  remove the rules of these profiles; installed rules return at a boot
  uninstall         remove this script's profiles from the server, also from its disk

No verb changes the rules of other profiles, or ends open sessions. Loading keeps
admitted addresses, and turns on the kernel's connection tracking.`)
	refreshNote := fmt.Sprintf(`The installed script makes new rules every %s, so the times above are only those of the
first rules. The profile needs no ValidUntil.`, formatSpan(every))
	b.addNotes(append([]string{textIf(every > 0, refreshNote), textIf(d.daemons != nil, daemonNote)}, f.notes(d, o)...))
	return mark(b.String())
}

// daemonNote says which daemons a script starts.
const daemonNote = `Each profile has a daemon of its own, which this script starts and ends. A second
daemon runs during a trial. The script changes neither other daemons nor the files in
/etc of the same programs. The daemon listens on the interface of the default route,
unless the script was made with --interface NAME. Before you load rules of the
formats nftables or iptables for such a profile, unload this script.`

// shellValue returns a text as the value of a shell variable, or "" for "".
func shellValue(s string) string {
	if s == "" {
		return ""
	}
	return quote(s)
}

// refreshTimes returns how often a server writes its rules (every) and how long the
// rules are valid (horizon), both in whole seconds. The horizon is the time from
// o.From to o.Until. If that time is not positive, refreshTimes chooses the horizon.
// It returns an error if the rules never need a refresh.
func (f format) refreshTimes(guards []Guard, o Options) (every, horizon time.Duration, err error) {
	for _, g := range guards {
		if g.SPA != nil { // the file for fwknopd has keys, which do not change with time
			continue
		}
		_, w, err := g.Schedule.At(o.From)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", g.Name, err)
		}
		if w == (knock.Window{}) {
			continue
		}
		// With a clock in the firewall, the interval decides how long a server may be
		// down. Without a clock, an old sequence opens for Skew plus this interval.
		period := w.End.Sub(w.Start)
		interval := min(max(period, time.Minute), 24*time.Hour)
		if !f.clock {
			interval = max(min(max(g.Skew, 30*time.Second), period/4).Truncate(time.Second), time.Second)
		}
		every = min(cmp.Or(every, interval), interval)
	}
	horizon = o.Until.Sub(o.From).Truncate(time.Second)
	switch {
	case len(guards) == 0: // format.check returns the error
	case every == 0:
		return 0, 0, errors.New("the sequence never changes, so these rules need no refresh")
	case horizon <= 0 && f.clock:
		horizon = 4 * every // two refreshes in a row may fail or be late
	case horizon <= 0:
		horizon = 3 * every // a format without a clock allows few windows
	case horizon < 2*every:
		return 0, 0, fmt.Errorf("a refresh every %v needs a horizon of at least %v", every, 2*every)
	}
	return every, horizon, nil
}

// formatSpan writes whole seconds as systemd and a profile read them: 1h30m, 45s.
func formatSpan(d time.Duration) string {
	return strings.NewReplacer("h0m0s", "h", "m0s", "m").Replace(d.String())
}

// InstalledScript returns the path of the installed script of a profile.
func InstalledScript(name string) string { return "/etc/portknock/" + firewallName(name) + ".sh" }
