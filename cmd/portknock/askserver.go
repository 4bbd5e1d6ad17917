package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serverEvidence is what the server tells about itself, through ssh or in the output of a
// script's status.
type serverEvidence struct {
	err       error         // why the server could not be asked; nil if it has told all of this
	installed bool          // a script for the profile is installed
	guard     bool          // rules of portknock are loaded, perhaps of other profiles
	before    *serverStatus // status before the knocks; nil if no script is installed
	after     *serverStatus // status after the knocks; nil if it was not asked

	offset, within time.Duration // server's clock minus this computer's clock, and its largest error; both 0 if unknown
	// listening maps IPv4 and IPv6 to the TCP ports where programs listen, not only for the server
	// itself. It is nil if unknown.
	listening  map[string][]uint16
	sshd       []uint16 // ports in listening that belong to sshd; nil if unknown
	daemonDead bool     // the profile needs knockd or fwknopd, which does not run
}

// serverStatus is what the status of a script tells about one profile.
type serverStatus struct {
	Name       string         `json:"name"`
	Rules      string         `json:"rules"`
	Installed  string         `json:"installed"`
	Failing    string         `json:"failing"`
	Ports      string         `json:"ports"`
	Key        string         `json:"key"`
	ValidUntil *int64         `json:"valid_until"`
	Counters   map[string]int `json:"counters"`
	Admitted   []admitted     `json:"admitted"`

	clock clockState // whether the server's clock is synchronized
}

// admitted is an admitted address.
type admitted struct {
	Address netip.Addr `json:"address"`
	Seconds int        `json:"seconds_left"`
}

// The states of rules that a status can tell.
const (
	rulesLoaded  = "as loaded"
	rulesMissing = "not loaded"
)

// parseStatus reads the output of the status of a script. The script may have several profiles.
func parseStatus(text []byte, name, key string) (*serverStatus, error) {
	var all status
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("unexpected status of the script: %w", err)
	}
	for _, matches := range []func(s serverStatus) bool{
		func(s serverStatus) bool { return strings.EqualFold(s.Name, name) },
		func(s serverStatus) bool { return key != "" && s.Key == key },
	} {
		if i := slices.IndexFunc(all.Profiles, matches); i >= 0 {
			all.Profiles[i].clock = all.Clock
			return &all.Profiles[i], nil
		}
	}
	return nil, fmt.Errorf("the status does not contain the profile %s", name)
}

// admits reports whether an address is admitted.
func (s *serverStatus) admits(addr netip.Addr) bool {
	return slices.ContainsFunc(s.Admitted, func(a admitted) bool { return a.Address == addr })
}

// counted returns how much a counter has grown while portknock knocked. It returns 0 if there
// are not two statuses.
func (s *serverEvidence) counted(name string) int {
	if s.before == nil || s.after == nil {
		return 0
	}
	return s.after.Counters[name] - s.before.Counters[name]
}

// stage returns the number of knocks that the server has recognized, and whether it counts them.
func (s *serverEvidence) stage() (n int, counts bool) {
	if s.before == nil || s.after == nil {
		return 0, false
	}
	_, counts = s.after.Counters["stage1"]
	for s.counted(fmt.Sprintf("stage%d", n+1)) > 0 {
		n++
	}
	return n, counts
}

// admitted reports whether the server has admitted this computer after the knocks.
func (s *serverEvidence) admitted(e *evidence) bool {
	n, counts := s.stage()
	if counts && n == len(e.knocks()) || s.counted("tokens_spent") > 0 {
		return true
	}
	return s.after != nil && slices.ContainsFunc(e.targets, func(t target) bool { return s.after.admits(t.from) })
}

// askScript prints lines, each a word and a value, and in the end the status of the script of
// the profile with this name or this key.
const askScript = `PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
for file in /etc/portknock/*.sh; do
	[ -f "$file" ] || continue
	if sed -n 's/^name_[^=]*=//p' "$file" | grep -qxiF -e %[1]s -e "'"%[1]s"'" || grep -qx "key_[^=]*=%[2]s" "$file"; then
		script=$file
		break
	fi
done
if nft list table inet portknock >/dev/null 2>&1 || iptables -w -t mangle -S PORTKNOCK >/dev/null 2>&1; then
	echo 'guard yes'
fi
# The second field is an address in hexadecimal, and a port. A socket for IPv6 most often serves IPv4
# too. Programs on loopback addresses do not count: sshd forwards connections there.
awk '$4 == "0A" {
	split($2, local, ":")
	if (local[1] !~ /7F$/ && local[1] != "00000000000000000000000001000000")
		print "listens", local[2], (length(local[1]) == 8 ? "IPv4" : "both")
}' /proc/net/tcp /proc/net/tcp6 2>/dev/null
ss -Hltnp 2>/dev/null | sed -n '/ 127[.]\|\[::1\]:/d; /"sshd"/s/^[^ ]* *[^ ]* *[^ ]* *[^ ]*:\([0-9]*\) .*/sshd \1/p'
if [ "$script" ]; then
	part=$(basename "$script" .sh)
	daemon=$(sed -n 's/^format=knockd$/knockd/p; s/^format=fwknop$/fwknopd/p' "$script")
	if [ "$daemon" ]; then
		instance=$(cat "/run/portknock/daemon/$part.now" 2>/dev/null)
		process=$(cat "/run/portknock/daemon/$instance/process" 2>/dev/null)
		[ "$(cat "/proc/${process:-none}/comm" 2>/dev/null)" = "$daemon" ] || echo 'daemon dead'
	fi
	echo status
	sh "$script" status --json
fi
:`

// openShell connects to the server, and becomes root there. Unlike the shell of a deploy, it
// changes nothing on the server, and uses a connection of ssh that is open already.
func (s *server) openShell(ctx context.Context) (err error) {
	s.channel, err = openChannel(ctx, s.sshCommandOver(nil, s.via, "exec sh"), io.Discard)
	if err != nil {
		return fmt.Errorf("ssh %s: %w", s.host, err)
	}
	return s.channel.becomeRoot(ctx, func(ctx context.Context) (string, error) {
		return askPassword(ctx, fmt.Sprintf("Password of sudo on %s: ", s.host))
	})
}

// ask collects what the server tells before the knocks.
func (s *server) ask(ctx context.Context, key string) *serverEvidence {
	found := &serverEvidence{}
	if found.err = s.openShell(ctx); found.err == nil {
		found.before, found.err = s.askStatus(ctx, found, key)
	}
	if found.err == nil {
		found.err = s.readClock(ctx)
		found.offset, found.within = s.facts.offset, s.facts.within
	}
	return found
}

// askAgain adds what the server tells after the knocks.
func (s *server) askAgain(ctx context.Context, found *serverEvidence, key string) {
	if found.err == nil && found.before != nil {
		found.after, found.err = s.askStatus(ctx, &serverEvidence{}, key)
	}
}

// askStatus asks the server for the status of the profile, which is nil if no script for it is
// installed. It fills the other fields of found.
func (s *server) askStatus(ctx context.Context, found *serverEvidence, key string) (*serverStatus, error) {
	fingerprint := cmp.Or(key, "none")
	out, err := s.channel.run(ctx, verbLimit, fmt.Sprintf(askScript, serverWord(s.profile.Name), fingerprint))
	if err != nil {
		return nil, err
	}
	found.listening = map[string][]uint16{}
	facts, status, installed := strings.Cut("\n"+out, "\nstatus\n")
	for line := range strings.Lines(facts) {
		word, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "guard":
			found.guard = true
		case "listens":
			text, family, _ := strings.Cut(value, " ")
			port, err := strconv.ParseUint(text, 16, 16)
			for _, f := range []string{"IPv4", "IPv6"} {
				if err == nil && (family == f || family == "both") {
					found.listening[f] = append(found.listening[f], uint16(port))
				}
			}
		case "sshd":
			if port, err := parsePort(value); err == nil {
				found.sshd = append(found.sshd, port)
			}
		case "daemon":
			found.daemonDead = true
		}
	}
	if found.installed = installed; !installed {
		return nil, nil
	}
	return parseStatus([]byte(status), s.profile.Name, key)
}

// askServer collects what the server tells before the knocks, if a flag asks for that.
func (c *checkHost) askServer(ctx context.Context, s *server) {
	e, began := &c.found, time.Now()
	switch c.server {
	case "":
		return
	case overSSH:
		e.server = s.ask(ctx, e.key)
	default:
		e.server = &serverEvidence{installed: true}
		text, err := c.app.readInput(c.server)
		if err == nil {
			e.server.before, err = parseStatus(text, e.profile.Name, e.key)
		}
		e.server.err = err
	}
	c.describeServer(time.Since(began))
}

// askServerAgain collects what the server has counted meanwhile.
func (c *checkHost) askServerAgain(ctx context.Context, s *server) {
	e, began := &c.found, time.Now()
	if s.channel == nil {
		return
	}
	s.askAgain(ctx, e.server, e.key)
	if e.server.after == nil {
		return
	}
	var counts []string
	for _, name := range slices.Sorted(maps.Keys(e.server.after.Counters)) {
		if n := e.server.counted(name); n > 0 && !strings.HasPrefix(name, "stage") {
			counts = append(counts, fmt.Sprintf("%s %d", strings.ReplaceAll(name, "_", " "), n))
		}
	}
	if n, known := e.server.stage(); known {
		c.step(isFine, "counted", 0, "the server recognized %d of %d knocks", n, len(e.knocks()))
	}
	c.step(isFine, "counted", time.Since(began), "by the server meanwhile: %s", cmp.Or(strings.Join(counts, ", "), "nothing"))
}

// describeServer says what the server has told.
func (c *checkHost) describeServer(took time.Duration) {
	e := &c.found
	s := e.server
	switch {
	case s.err != nil:
		c.step(isNote, "server", took, "cannot be asked: %s", oneLine(s.err.Error()))
		return
	case s.before == nil && s.guard:
		c.step(isNote, "server", took, "rules are loaded, but none are installed for the profile %s", e.profile.Name)
	case s.before == nil:
		c.step(isFailed, "server", took, "no rules are loaded or installed")
	default:
		v, text := isFine, "rules "+s.before.Rules
		if s.before.Rules != rulesLoaded {
			v = isFailed
		}
		if s.before.Key != "" {
			text += ", key " + s.before.Key
		}
		if end := s.before.ValidUntil; end != nil {
			text += ", valid until " + utc(time.Unix(*end, 0))
		}
		if s.daemonDead {
			v, text = isFailed, text+", but their daemon does not run"
		}
		c.step(v, "server", took, "%s", text)
	}
	if s.within > 0 {
		v := isFine
		if id, _ := e.clockFault(); id != "" {
			v = isFailed
		}
		c.step(v, "clocks", 0, "the server's clock minus this one: %s (within %s)", shortSpan(s.offset), shortSpan(s.within))
	}
}
