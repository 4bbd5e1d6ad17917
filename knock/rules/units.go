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

// Upkeep says how a server that has the key can write its rules itself.
type Upkeep struct {
	// Command returns the command that writes the rules for the time horizon, such
	// as 1h30m, to a file.
	Command func(file, horizon string) []string
	Config  string   // the profile file that the command reads
	Names   []string // the profiles that the rules are for
}

// rhythm returns how often a server writes its rules, and the time that they are
// for, both in whole seconds. That time is the one from o.From until o.Until, or
// chosen here if that is not positive. It fails if the rules need no upkeep.
func (f format) refreshTimes(guards []Guard, o Options) (every, horizon time.Duration, err error) {
	for _, g := range guards {
		if g.SPA != nil { // whose key is all the server needs
			continue
		}
		_, w, err := g.Schedule.At(o.From)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", g.Name, err)
		}
		if w == (knock.Window{}) {
			continue
		}
		// Where the firewall knows the time, it is a matter of how long a server may be
		// down. One that does not opens a sequence for that much longer than Skew.
		period := w.End.Sub(w.Start)
		interval := min(max(period, time.Minute), 24*time.Hour)
		if !f.clock {
			interval = max(min(max(g.Skew, 30*time.Second), period/4).Truncate(time.Second), time.Second)
		}
		every = min(cmp.Or(every, interval), interval)
	}
	horizon = o.Until.Sub(o.From).Truncate(time.Second)
	switch {
	case len(guards) == 0: // which document refuses
	case every == 0:
		return 0, 0, errors.New("the sequence never changes, so these rules need no refresh")
	case horizon <= 0 && f.clock:
		horizon = 4 * every // a refresh that fails, or comes late, does no harm, nor does the next
	case horizon <= 0:
		horizon = 3 * every // it carries few windows
	case horizon < 2*every:
		return 0, 0, fmt.Errorf("a refresh every %v needs a horizon of at least %v", every, 2*every)
	}
	return every, horizon, nil
}

// unitsFile is where the text of [Format.WriteUnits] is to be saved.
const unitsFile = "/etc/portknock.units"

// units is a service and a timer for systemd, in the form in which systemctl cat
// shows several. Words in capitals stand for what differs.
//
// The service is up before the network, like the firewalls that it follows: they
// begin with a flush, and whenever one is started again, so is the service. It
// has no default dependencies, as those of others would make that order a circle.
// The timer needs no calendar. It also runs when the clock is set, as happens
// some time after the start of a machine whose clock has no battery, and once more
// a minute after the start, should the first time have come too early.
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

// WriteUnits writes a service and a timer for systemd: again and again, they write
// the rules that [Format.Emit] writes of these guards, and load them. Each time, the
// rules are for the time from o.From until o.Until, or for a time that suits if that
// is not positive. An error is one of Emit's, or says why the rules need no upkeep.
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
	// Rules that cannot be written anew are no reason not to load those that are
	// there, at the start of the machine above all.
	start := unitCommand(writeCommand + "; s=$?; { " + d.reload + "; } || s=$?; exit $s")
	endNote := "If the refresh stops, the rules end " + formatSpan(horizon) + " later, and the ports are open\n# to "
	switch {
	case d.changed != "":
		// A checksum, since a copy would hold secrets.
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

// span writes whole seconds as systemd and a profile read them: 1h30m, 45s.
func formatSpan(d time.Duration) string {
	return strings.NewReplacer("h0m0s", "h", "m0s", "m").Replace(d.String())
}

// unitText keeps systemd from expanding a percent sign.
func unitText(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// unitWord makes a text one word of a unit's setting. Systemd takes as it is what
// a shell does.
func unitWord(s string) string {
	s = unitText(s)
	if quote(s) == s {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// unitCommand returns the line of a unit that has a shell run a script.
func unitCommand(script string) string {
	return "ExecStart=/bin/sh -c " + strings.ReplaceAll(unitWord(script), "$", "$$") // where $ would begin a variable
}
