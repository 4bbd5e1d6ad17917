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

// Upkeep is how a server that has the key keeps its rules fresh: it writes them
// anew every so often, for a short time ahead, and loads them.
type Upkeep struct {
	File    string        // the rules
	Every   time.Duration // how often they are written, in whole seconds
	Horizon time.Duration // for how long each time, in whole seconds

	format    format
	document  document
	openAtEnd bool
}

// Upkeep returns the upkeep of the rules that [Format.Emit] writes of these guards.
// The horizon is the time from o.From until o.Until, or chosen if that is not
// positive. An error is one of Emit's, or says why there is nothing to keep.
func (f Format) Upkeep(guards []Guard, o Options) (Upkeep, error) {
	row, err := f.row()
	if err != nil {
		return Upkeep{}, err
	}
	u := Upkeep{File: cmp.Or(o.File, row.file), format: row, openAtEnd: o.OpenAtEnd}
	for _, g := range guards {
		if g.SPA != nil { // whose key is all the server needs
			continue
		}
		_, w, err := g.Schedule.At(o.From)
		if err != nil {
			return Upkeep{}, fmt.Errorf("%s: %w", g.Name, err)
		}
		if w == (knock.Window{}) {
			continue
		}
		if every := row.every(w.End.Sub(w.Start), g.Skew); u.Every == 0 || every < u.Every {
			u.Every = every
		}
	}
	u.Horizon = o.Until.Sub(o.From).Truncate(time.Second)
	switch {
	case len(guards) == 0: // which document refuses
	case u.Every == 0:
		return Upkeep{}, errors.New("the sequence never changes: these rules need no refresh")
	case u.Horizon <= 0:
		// A refresh that fails, or comes late, does no harm, nor does the next.
		u.Horizon = 4 * u.Every
		if !row.clock { // and carries few windows
			u.Horizon = 3 * u.Every
		}
		o.Until = o.From.Add(u.Horizon)
	case u.Horizon < 2*u.Every:
		return Upkeep{}, fmt.Errorf("a refresh every %v does not go with a horizon below %v", u.Every, 2*u.Every)
	}
	u.document, err = row.document(guards, o)
	return u, err
}

// every returns how often rules are written for windows of a length. Where the
// firewall knows the time, that is a matter of how long a server may be down. One
// that does not opens a sequence for that much longer than Skew.
func (f format) every(period, skew time.Duration) time.Duration {
	if !f.clock {
		return max(min(max(skew, 30*time.Second), period/4).Truncate(time.Second), time.Second)
	}
	return min(max(period, time.Minute), 24*time.Hour)
}

// unitsFile is where the text of [Upkeep.WriteUnits] is to be saved.
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
const units = `# portknock: keeps RULES fresh, for NAMES, on the server itself
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

// WriteUnits writes the units. Emit returns the command that writes the rules to
// File for the time Horizon, which it gets as systemd and a profile write it;
// config is the profile file that the command reads, and names are the profiles.
func (u Upkeep) WriteUnits(w io.Writer, emit func(horizon string) []string, config string, names []string) error {
	byHand := quoted(emit(span(u.Horizon)), quote)
	// Rules that cannot be written anew are no reason not to load those that are
	// there, at the start of the machine above all.
	refresh := byHand + "; s=$?; { " + u.document.reload + "; } || s=$?; exit $s"
	commands := []string{unitWords([]string{"/bin/sh", "-c", refresh})}
	end := "If the refresh stops, the rules end " + span(u.Horizon) + " later, and the ports are open\n# to "
	switch {
	case u.document.changed != "":
		sum := "/run/portknock.sum" // a checksum, since a copy would hold secrets
		commands = append(commands, unitWords([]string{"/bin/sh", "-c", fmt.Sprintf(
			"sha256sum -c %[1]s >/dev/null 2>&1 || { %[2]s; sha256sum %[3]s >%[1]s; }", sum, u.document.changed, quote(u.File))}))
		end = "If the refresh stops, sequences of the past go on opening, and new ones do\n# not. knockd itself is run by its own service: let that read " + u.File +
			",\n# and give it the interface by its option -i."
	case u.openAtEnd:
		end += "everybody from then on."
	default:
		end += "nobody from then on; with --at-end open, to everybody."
	}
	execs := "ExecStart=" + strings.Join(commands, "\nExecStart=")
	capabilities, calls := "CAP_NET_ADMIN CAP_NET_RAW", "@system-service"
	if u.format.modules {
		capabilities, calls = capabilities+" CAP_SYS_MODULE", calls+" @module"
		// firewalld counts as started before it flushes, but answers only after that.
		execs = "ExecStartPre=-firewall-cmd --state\n" + execs
	}
	list := strings.Join(names, " ")
	_, err := strings.NewReplacer(
		"UNITSFILE", unitsFile, "UNDO", u.document.undo,
		"RULES", u.File, "FOLDER", unitWord(filepath.Dir(u.File)),
		"CONFIG", config, "NAMES", list, "DESCRIPTION", unitText(list),
		"EVERY", span(u.Every), "HORIZON", span(u.Horizon), "END", end,
		"BYHAND", byHand, "EXECSTARTS", execs,
		"CAPABILITIES", capabilities, "CALLS", calls,
		"FLUSHERS", "nftables.service netfilter-persistent.service iptables.service ip6tables.service firewalld.service",
	).WriteString(w, units)
	return err
}

// span writes whole seconds as systemd and a profile read them: 1h30m, 45s.
func span(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
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

// unitWords makes words a command of a unit, where $ would begin a variable.
func unitWords(words []string) string {
	return quoted(words, func(s string) string { return strings.ReplaceAll(unitWord(s), "$", "$$") })
}

func quoted(words []string, quote func(string) string) string {
	all := make([]string, len(words))
	for i, w := range words {
		all[i] = quote(w)
	}
	return strings.Join(all, " ")
}
