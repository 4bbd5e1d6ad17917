package rules

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// Upkeep describes how a server that has the key writes its own rules.
type Upkeep struct {
	// Command returns the command that writes rules to file. The parameter horizon says
	// how long the rules are to be valid, such as 1h30m.
	Command func(file, horizon string) []string
	Config  string   // path of the profile file that Command reads
	Names   []string // names of the profiles that the rules are for
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
	case len(guards) == 0: // format.document returns the error
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

// unitsFile is the path where an administrator saves the text of [Format.WriteUnits].
const unitsFile = "/etc/portknock.units"

// unitsTemplate is a systemd service and a timer, in the form in which systemctl cat
// shows several units. WriteUnits replaces the words in capitals.
//
// The service starts before the network and after the firewalls, because they flush
// all rules when they start. If a firewall starts again, the service starts again too.
// The service has no default dependencies, because they would make the order circular.
//
// The timer does not use a calendar. It also runs when the clock is set, because a
// machine without a clock battery sets its clock some time after its start. It runs once
// more a minute after the start, in case the first run was too early.
const unitsTemplate = `# portknock: keeps RULES fresh, for NAMES, on the server itself
#   every EVERY it writes the rules of the next HORIZON, and loads them
#   needs CONFIG and the key it names, both root's own
# There is no secret in here.
#
# install: awk "/^# .etc.systemd.system.portknock/ { f = \$2 } f { print >f }" UNITSFILE && systemctl daemon-reload && systemctl enable --now portknock.service portknock.timer
# watch: systemctl list-timers portknock.timer; journalctl -u portknock.service
# undo: systemctl disable --now portknock.timer portknock.service; rm -f /etc/systemd/system/portknock.service /etc/systemd/system/portknock.timer; systemctl daemon-reload; UNDO
#
# A reload of nftables or of the others flushes these rules, and only the next
# refresh brings them back: restart it instead.
# Each refresh replaces all portknock rules on this server.
#
# Save this as UNITSFILE. The first time, before the install, write the
# rules by hand and load them with the trial of their header:
#   BYHAND
#
# END
#
# /etc/systemd/system/portknock.service
[Unit]
Description=Fresh port knocking rules for DESCRIPTION
DefaultDependencies=no
After=local-fs.target FLUSHERS
Wants=network-pre.target
Before=network-pre.target knockd.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
EXECSTARTS
StandardOutput=null
TimeoutStartSec=2min
UMask=0077
ProtectSystem=strict
ReadWritePaths=FOLDER /run
ProtectHome=read-only
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelTunables=yes
CapabilityBoundingSet=CAPABILITIES
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=CALLS

[Install]
WantedBy=multi-user.target FLUSHERS

# /etc/systemd/system/portknock.timer
[Unit]
Description=Fresh port knocking rules every EVERY

[Timer]
OnBootSec=1min
OnUnitActiveSec=EVERY
OnClockChange=yes
AccuracySec=1s

[Install]
WantedBy=timers.target
`

// WriteUnits writes a systemd service and a timer. Both are in one text, in the form in
// which "systemctl cat" shows several units. A command in the text's header saves each
// unit to its file.
//
// The service writes the rules with u.Command, which must write what [Format.Emit] writes
// for the guards, and loads these rules. The timer starts the service again and again.
// WriteUnits chooses the interval: it depends on the length of the guards' windows and,
// if the format has no clock, on Skew.
//
// Each time, the rules are valid for the duration o.Until minus o.From, counted from the
// moment when the service writes them. If this duration is shorter than one second,
// WriteUnits chooses 4 intervals, or 3 if the format has no clock.
//
// WriteUnits returns an error if Emit would return one. It also returns an error if
// the rules need no refresh, or if the duration is shorter than two intervals.
func (f Format) WriteUnits(w io.Writer, guards []Guard, o Options, u Upkeep) error {
	row, err := f.row()
	if err != nil {
		return err
	}
	every, horizon, err := row.refreshTimes(guards, o)
	if err != nil {
		return err
	}
	o.Until = o.From.Add(horizon)
	d, err := row.document(guards, o)
	if err != nil {
		return err
	}
	file := cmp.Or(o.File, row.file)
	writeCommand := join(u.Command(file, formatSpan(horizon)), " ", quote)
	// If the rules cannot be written, the service loads the existing file. This matters
	// most when the machine starts.
	start := unitCommand(writeCommand + "; s=$?; { " + d.reload + "; } || s=$?; exit $s")
	endNote := "If the refresh stops, the rules end " + formatSpan(horizon) + " later, and the ports are open\n# to "
	switch {
	case d.changed != "":
		// The service keeps a checksum, because a copy of the file would hold secrets.
		start += "\n" + unitCommand(fmt.Sprintf("sha256sum -c %[1]s >/dev/null 2>&1 || { %[2]s; sha256sum %[3]s >%[1]s; }",
			"/run/portknock.sum", d.changed, quote(file)))
		endNote = "If the refresh stops, sequences of the past go on opening, and new ones do\n# not. knockd itself is run by its own service: let that read " + file +
			",\n# and give it the interface by its option -i."
	case o.OpenAtEnd:
		endNote += "everybody from then on."
	default:
		endNote += "nobody from then on; with --at-end open, to everybody."
	}
	capabilities, calls := "CAP_NET_ADMIN CAP_NET_RAW", "@system-service"
	if row.modules {
		capabilities, calls = capabilities+" CAP_SYS_MODULE", calls+" @module"
		// firewalld counts as started before it flushes, but answers only after that.
		start = "ExecStartPre=-firewall-cmd --state\n" + start
	}
	names := strings.Join(u.Names, " ")
	_, err = strings.NewReplacer(
		"UNITSFILE", unitsFile, "UNDO", d.undo,
		"RULES", file, "FOLDER", unitWord(filepath.Dir(file)),
		"CONFIG", u.Config, "NAMES", names, "DESCRIPTION", unitText(names),
		"EVERY", formatSpan(every), "HORIZON", formatSpan(horizon), "END", endNote,
		"BYHAND", writeCommand, "EXECSTARTS", start,
		"CAPABILITIES", capabilities, "CALLS", calls,
		"FLUSHERS", "nftables.service netfilter-persistent.service iptables.service ip6tables.service firewalld.service",
	).WriteString(w, unitsTemplate)
	return err
}

// formatSpan writes whole seconds as systemd and a profile read them: 1h30m, 45s.
func formatSpan(d time.Duration) string {
	return strings.NewReplacer("h0m0s", "h", "m0s", "m").Replace(d.String())
}

// unitText keeps systemd from expanding a percent sign.
func unitText(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// unitWord returns a text as one word of a unit's setting. A text that needs no quotes
// for a shell needs none for systemd.
func unitWord(s string) string {
	s = unitText(s)
	if quote(s) == s {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// unitCommand returns the line of a unit that makes a shell run a script.
func unitCommand(script string) string {
	return "ExecStart=/bin/sh -c " + strings.ReplaceAll(unitWord(script), "$", "$$") // $ begins a variable
}
