package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock/rules"
)

// unitsFile is where the text of printUnits is to be saved.
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

// printUnits prints what keeps the rules fresh with systemd.
func (a *app) printUnits(hosts []string, u rules.Upkeep) error {
	program, err := ownPath()
	if err != nil {
		return err
	}
	config, err := filepath.Abs(a.path)
	if err != nil {
		return err
	}
	if strings.ContainsFunc(config, unicode.IsControl) {
		return usageError("%q: control characters in a file's name", config)
	}
	emit := slices.Concat([]string{program}, a.emitArgs(config, u), hosts)
	// Rules that cannot be written anew are no reason not to load those that are
	// there, at the start of the machine above all.
	byHand := quoted(emit, rules.Quote)
	refresh := byHand + "; s=$?; { " + u.Load + "; } || s=$?; exit $s"
	commands := []string{unitWords([]string{"/bin/sh", "-c", refresh})}
	if u.Changed != "" {
		sum := "/run/portknock.sum" // a checksum, since a copy would hold secrets
		commands = append(commands, unitWords([]string{"/bin/sh", "-c", fmt.Sprintf(
			"sha256sum -c %[1]s >/dev/null 2>&1 || { %[2]s; sha256sum %[3]s >%[1]s; }", sum, u.Changed, rules.Quote(u.File))}))
	}
	end := "If the refresh stops, the rules end " + span(u.Horizon) + " later, and the ports are open\n# to "
	switch {
	case u.Changed != "":
		end = "If the refresh stops, sequences of the past go on opening, and new ones do\n# not. knockd itself is run by its own service: let that read RULES,\n# and give it the interface by its option -i."
	case a.rules.atEnd == "open":
		end += "everybody from then on."
	default:
		end += "nobody from then on; with --at-end open, to everybody."
	}
	execs := "ExecStart=" + strings.Join(commands, "\nExecStart=")
	capabilities, calls := "CAP_NET_ADMIN CAP_NET_RAW", "@system-service"
	if u.Modules {
		capabilities, calls = capabilities+" CAP_SYS_MODULE", calls+" @module"
		// firewalld counts as started before it flushes, but answers only after that.
		execs = "ExecStartPre=-firewall-cmd --state\n" + execs
	}
	names := strings.Join(hosts, " ")
	return a.print("%s", strings.NewReplacer(
		"UNITSFILE", unitsFile,
		"RULES", u.File, "UNDO", u.Undo, "FOLDER", unitWord(filepath.Dir(u.File)),
		"CONFIG", config, "NAMES", names, "DESCRIPTION", unitText(names),
		"EVERY", span(u.Every), "HORIZON", span(u.Horizon), "END", strings.ReplaceAll(end, "RULES", u.File),
		"BYHAND", byHand, "EXECSTARTS", execs,
		"CAPABILITIES", capabilities, "CALLS", calls,
		"FLUSHERS", "nftables.service netfilter-persistent.service iptables.service ip6tables.service firewalld.service",
	).Replace(units))
}

// emitArgs returns the arguments with which a server emits these rules again, but
// for the hosts.
func (a *app) emitArgs(config string, u rules.Upkeep) []string {
	args := []string{"emit-rules", "-c", config}
	for _, o := range a.shared.options {
		args = append(args, "-o", o)
	}
	r := &a.rules
	args = append(args, "--format", r.format, "--horizon", span(u.Horizon), "--output", u.File)
	for _, f := range []struct{ name, value, usual string }{
		{"--policy", r.policy, "guard"}, {"--allow", r.allow, ""}, {"--at-end", r.atEnd, "closed"},
	} {
		if f.value != f.usual {
			args = append(args, f.name, f.value)
		}
	}
	if r.consume {
		args = append(args, "--consume")
	}
	if r.force {
		args = append(args, "--force")
	}
	return args
}

// ownPath returns where this program is, as it was called: what a symbolic link
// points at may go away with the next version.
func ownPath() (string, error) {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		path, err = os.Executable()
	}
	if err == nil && strings.ContainsAny(path, "$\"'\\") {
		err = fmt.Errorf("%s: systemd cannot run a program of that name", path)
	}
	return path, err
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
	if rules.Quote(s) == s {
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
