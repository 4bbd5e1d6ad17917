package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/proxy"
	"github.com/spf13/pflag"
)

// checkHost is the command check, which says step by step why a login works or where it stops.
type checkHost struct {
	remote
	serverFlags
	server  string // "" to not ask the server, overSSH, "-" or a file with the output of a status
	outside string // ports to scan; "" for none

	app   *app
	host  string        // the host as the user gave it: NAME or USER@NAME
	file  *profile.File // the profile file; nil if it is standard input
	last  *deployment   // what was deployed with the profile; nil if nothing
	found evidence
	steps []step
}

const overSSH = "ssh" // value of --server without a FILE

// verdict says how a step has ended.
type verdict string

const (
	isFine   verdict = "ok"
	isNote   verdict = "note"
	isFailed verdict = "failed"
)

// step is one line of the output.
type step struct {
	Name    string  `json:"step"`
	Verdict verdict `json:"verdict"`
	Seen    string  `json:"seen"`
	Took    float64 `json:"milliseconds"`
}

func (c *checkHost) flags(a *app, f *pflag.FlagSet) {
	c.remote.flags(a, f)
	c.serverFlags.flags(f)
	f.StringVar(&c.server, "server", "", "``ask the server too, over ssh; --server=FILE reads the output of its\nscript's \"status --json\" instead (- is standard input)")
	f.Lookup("server").NoOptDefVal = overSSH
	f.StringVar(&c.outside, "outside", "", "``scan all TCP ports, as an attacker would; --outside=PORTS scans only\nthese, such as 1-1024")
	f.Lookup("outside").NoOptDefVal = "1-65535"
}

func (c *checkHost) run(ctx context.Context, a *app, args []string) error {
	if c.path() == "-" && c.server == "-" {
		return usageError("the profile and the status cannot both come from standard input")
	}
	scan, err := c.scanPorts()
	if err != nil {
		return err
	}
	c.app, c.host = a, args[0]
	s := &server{serverFlags: &c.serverFlags, app: a, config: &c.remote.config, host: c.host,
		ownConfig: c.path() != "" || len(c.remote.config.options) > 0}
	defer s.close()
	if err := c.readProfile(ctx, s, args); err != nil {
		return err
	}
	c.recallFailure()
	c.checkClock()
	if err := c.resolve(ctx, s); err != nil {
		c.step(isFailed, "name", 0, "%s", err)
		return connectFailure(nil, c.found.profile, err)
	}
	c.tryPorts(ctx)
	c.scan(ctx, scan)
	c.askServer(ctx, s)
	if err := c.knock(ctx); err != nil {
		return err
	}
	c.askServerAgain(ctx, s)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return c.conclude()
}

func (c *checkHost) path() string { return c.remote.config.path }

// step prints a line about a step that began some time ago.
func (c *checkHost) step(v verdict, name string, took time.Duration, format string, args ...any) {
	s := step{name, v, fmt.Sprintf(format, args...), float64(took.Microseconds()) / 1000}
	c.steps = append(c.steps, s)
	if c.json {
		return
	}
	after := ""
	if took >= time.Millisecond {
		after = fmt.Sprintf(" (%v)", took.Round(time.Millisecond))
	}
	_ = c.app.print("%-7s %-8s %s%s\n", v, name, s.Seen, after)
}

// readProfile finds the profile, and what ssh does for the host.
func (c *checkHost) readProfile(ctx context.Context, s *server, args []string) error {
	e, began := &c.found, time.Now()
	e.at = now()
	settings, sshErr := s.readSSHSettings(ctx)
	s.ssh = settings
	host := profileOf(c.host)
	name := cmp.Or(c.name, host)
	p, last, err := c.remote.config.login(ctx, c.app, name)
	if errors.Is(err, profile.ErrNoProfile) && c.name == "" && sshErr == nil && settings.hostName != host {
		name = settings.hostName
		if q, l, second := c.remote.config.login(ctx, c.app, name); second == nil {
			p, last, err = q, l, nil
		}
	}
	if err != nil {
		return err
	}
	half, err := p.Server(ctx)
	if err != nil {
		return keyFailure(p, err)
	}
	e.profile, e.key, s.profile, c.last = p, half.Fingerprint, p, last
	e.port = cmp.Or(p.Port, settings.port, 22)
	if len(args) == 2 {
		if e.port, err = parsePort(args[1]); err != nil {
			return err
		}
	}
	if err := c.describeProfile(ctx, name, half, time.Since(began)); err != nil {
		return err
	}
	c.readSSH(ctx, settings, sshErr)
	return nil
}

// describeProfile says which profile applies, and why.
func (c *checkHost) describeProfile(ctx context.Context, name string, half profile.Server, took time.Duration) error {
	e, p := &c.found, c.found.profile
	v, why := isFine, ""
	if c.path() != "-" {
		var err error
		if c.file, err = c.remote.config.file(ctx, c.app); err != nil {
			return err
		}
		o, _ := c.file.Origin(name)
		why = fmt.Sprintf("%s:%d: Host %s", c.path(), o.Line, o.Patterns)
		if o.Line == 0 {
			why = c.path() + ": the settings above the first Host line"
		}
		if o.ByHostName {
			why += fmt.Sprintf(", whose HostName is %s", name)
		}
	}
	c.step(v, "profile", took, "%s%s", p.Name, textIf(why != "", ": "+why))
	text := p.Scheme
	if e.key != "" {
		text += ", key " + e.key
	}
	if !p.ValidUntil.IsZero() {
		text += ", rules valid until " + utc(p.ValidUntil)
		if !e.at.Before(p.ValidUntil) {
			v = isFailed
		}
	}
	c.step(v, "knocks", 0, "%s", text)
	if last := c.last; last != nil {
		last.profile.Runner = p.Runner
		deployed, err := last.profile.Server(ctx)
		if e.changed = err == nil && !sameKnocks(p, last.profile, half, deployed); e.changed {
			c.step(isFailed, "knocks", 0, "the profile has changed since it was deployed at %s", utc(last.Time))
		}
	}
	return nil
}

// textIf returns the text if the condition holds, or else "".
func textIf(condition bool, text string) string {
	if condition {
		return text
	}
	return ""
}

// readSSH stores and describes what ssh does for the host.
func (c *checkHost) readSSH(ctx context.Context, settings sshSettings, err error) {
	if err != nil {
		c.step(isNote, "ssh", 0, "cannot be asked: %s", oneLine(err.Error()))
		return
	}
	e := &c.found
	s := &sshEvidence{hostName: settings.hostName, direct: settings.proxyJump == ""}
	s.port = settings.port
	if seconds, err := strconv.Atoi(settings.connectTimeout); err == nil {
		s.connectTimeout = time.Duration(seconds) * time.Second
	}
	words := strings.Fields(settings.proxyCommand)
	has := func(all ...string) bool {
		return slices.ContainsFunc(all, func(w string) bool { return slices.Contains(words, w) })
	}
	s.portknock = settings.proxyCommand != "" && (&server{ssh: settings}).direct()
	s.direct = s.direct && (s.portknock || settings.proxyCommand == "")
	s.wantsSocket, s.passesSocket = settings.proxyUseFdpass == "yes", has("-F", "--fdpass")
	if s.portknock && c.file != nil && !has("--profile", "--optional") {
		_, err := c.file.Lookup(s.hostName)
		s.noProfile = errors.Is(err, profile.ErrNoProfile)
	}
	e.ssh = s
	v, text := isFine, "starts portknock"
	switch {
	case !s.direct:
		v, text = isNote, "reaches the host in its own way, through a jump host or another ProxyCommand"
	case !s.portknock:
		v, text = isNote, "connects without portknock"
	}
	if len(e.localCauses()) > 0 {
		v = isFailed
	}
	c.step(v, "ssh", 0, "%s", text)
	if s.port != e.port {
		c.step(isNote, "ssh", 0, "connects to port %d, and not to port %d", s.port, e.port)
	}
	if limit := s.connectTimeout; s.portknock && limit > 0 && limit < e.profile.ConnectTimeout {
		c.step(isNote, "ssh", 0, "gives up after %v, before portknock (%v)", limit, e.profile.ConnectTimeout)
	}
	if settings.controlPersist != "" && settings.controlPersist != "no" {
		c.step(isNote, "ssh", 0, "ControlPersist hides the errors of portknock")
	}
}

// recallFailure says why the last login has failed, if it has: ssh may have hidden that.
func (c *checkHost) recallFailure() {
	name := c.found.profile.Name
	if s := loadState(name); s.hasFailed() {
		c.step(isNote, "last", 0, "the login at %s failed: %s", utc(s.LastFailure.Time), strings.TrimPrefix(s.LastFailure.Text, name+": "))
	}
}

// checkClock says whether this computer's clock is right.
func (c *checkHost) checkClock() {
	e := &c.found
	e.clock = clockSynchronized()
	v, text := isFine, map[clockState]string{clockRight: "synchronized", clockFree: "not synchronized by a time server"}[e.clock]
	if e.clock != clockRight && (e.profile.Period > 0 || e.profile.Facts().SingleUse) {
		v = isNote
	}
	c.step(v, "clock", 0, "%s; %s", utc(e.at), cmp.Or(text, "whether it is synchronized is unknown"))
}

// resolve finds an address of each family.
func (c *checkHost) resolve(ctx context.Context, s *server) error {
	e, began := &c.found, time.Now()
	host := c.target(cmp.Or(s.ssh.hostName, profileOf(c.host)), e.profile)
	d, err := dialer(ctx, e.profile, nil, &c.app.log)
	if err != nil {
		return err
	}
	addrs := []netip.Addr{}
	if addr, failed := netip.ParseAddr(host); failed == nil {
		addrs = append(addrs, addr.Unmap())
	} else {
		e.lookups = lookUpFamilies(ctx, d.Family, host)
		for _, l := range e.lookups {
			addrs = append(addrs, l.addrs...)
		}
	}
	if len(addrs) == 0 {
		return &proxy.ResolveError{Host: host, Err: e.lookups[0].err}
	}
	text := ""
	for _, addr := range addrs {
		if !slices.ContainsFunc(e.targets, func(t target) bool { return t.family() == familyOf(addr) }) {
			text += textIf(text != "", ", ") + addr.String()
			e.targets = append(e.targets, target{addr: addr})
		}
	}
	v := isFine
	if more := len(addrs) - len(e.targets); more > 0 {
		v, text = isNote, text+fmt.Sprintf(" (%d more addresses are not checked)", more)
	}
	for _, l := range e.lookups {
		if l.silent {
			v, text = isFailed, text+fmt.Sprintf("; no answer for %s after %v", l.family, l.took.Round(time.Millisecond))
		}
	}
	c.step(v, "name", time.Since(began), "%s: %s", host, text)
	return nil
}

// usualPorts are ports where many servers answer.
var usualPorts = []uint16{22, 80, 443, 2222}

// tryPorts finds out whether the host answers at all, and the state of the port without a
// knock.
func (c *checkHost) tryPorts(ctx context.Context) {
	e, began := &c.found, time.Now()
	k := knocker{profile: e.profile}
	var wait sync.WaitGroup
	var mu sync.Mutex
	for i := range e.targets {
		t := &e.targets[i]
		var err error
		if t.from, err = k.source(t.addr); err != nil {
			t.noRoute = true
			continue
		}
		wait.Go(func() { t.before = t.state(ctx, e.port) })
		wait.Go(func() {
			found := t.tryOthers(ctx, c.otherPorts())
			mu.Lock()
			defer mu.Unlock()
			e.sshPorts = append(e.sshPorts, found...)
		})
	}
	wait.Wait()
	if ctx.Err() != nil {
		return
	}
	took := time.Since(began)
	for i := range e.targets {
		c.describeHost(&e.targets[i], took)
	}
	c.awaitExpiry(ctx)
	for i := range e.targets {
		t := &e.targets[i]
		switch {
		case t.noRoute:
		case t.admitted:
			c.step(isNote, "port", 0, "%d/tcp at %v was open until the opening of an earlier login expired", e.port, t.addr)
		case t.before == portOpen && !e.expiryAwaited():
			c.step(isNote, "port", 0, "%d/tcp at %v is open before the knocks, perhaps by an earlier login", e.port, t.addr)
		case t.before == portOpen:
			c.step(isFailed, "port", 0, "%d/tcp at %v is open without a knock", e.port, t.addr)
		default:
			c.step(isFine, "port", 0, "%d/tcp at %v before the knocks: %s", e.port, t.addr, t.before)
		}
	}
}

// otherPorts returns the ports to find out whether the host answers.
func (c *checkHost) otherPorts() (ports []uint16) {
	for _, port := range usualPorts {
		if port != c.found.port && !containsPort(c.found.profile.OpenPorts, port) {
			ports = append(ports, port)
		}
	}
	return ports
}

// describeHost says whether the host answers at a target.
func (c *checkHost) describeHost(t *target, took time.Duration) {
	by := map[portState][]string{}
	for _, port := range c.otherPorts() {
		state := t.others[port]
		by[state] = append(by[state], strconv.Itoa(int(port)))
	}
	var parts []string
	for _, state := range []portState{portOpen, portRefused, portRejected, portSilent} {
		if len(by[state]) > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", strings.Join(by[state], " "), state))
		}
	}
	switch {
	case t.noRoute:
		c.step(isNote, "host", took, "%v: this computer has no route there", t.addr)
	case t.alive():
		c.step(isFine, "host", took, "%v answers (other ports: %s)", t.addr, strings.Join(parts, ", "))
	default:
		c.step(isNote, "host", took, "%v does not answer yet (other ports: %s)", t.addr, strings.Join(parts, ", "))
	}
}

// longestOpening bounds the openings for which awaitExpiry waits.
const longestOpening = time.Minute

// awaitExpiry finds out whether a port is open without a knock, or because an earlier login has
// admitted this computer: it waits until such an opening has expired.
func (c *checkHost) awaitExpiry(ctx context.Context) {
	e := &c.found
	isOpen := func(t target) bool { return t.before == portOpen }
	wait := e.profile.OpenFor + time.Second
	if !slices.ContainsFunc(e.targets, isOpen) || !e.expiryAwaited() {
		return
	}
	c.app.log.say(always, "port %d is open; waiting %v, in case an earlier login has opened it", e.port, wait)
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
	for i := range e.targets {
		if t := &e.targets[i]; isOpen(*t) {
			t.before = t.state(ctx, e.port)
			t.admitted = t.before != portOpen
		}
	}
}

// knock sends the knocks to all targets. If they do not open a port, and the profile has changed
// since it was deployed, the knocks from before may open it.
func (c *checkHost) knock(ctx context.Context) error {
	e := &c.found
	if err := c.knockAs(ctx, e.profile, e.targets); err != nil {
		return err
	}
	for i := range e.targets {
		if t := &e.targets[i]; !t.noRoute {
			c.describeKnocks(t)
		}
	}
	if e.changed && !slices.ContainsFunc(e.targets, func(t target) bool { return t.after == portOpen }) {
		again := slices.Clone(e.targets)
		if err := c.knockAs(ctx, c.last.profile, again); err != nil {
			return err
		}
		e.oldOpens = slices.ContainsFunc(again, func(t target) bool { return t.after == portOpen })
	}
	return nil
}

// knockAs sends the knocks of a profile to all targets at once.
func (c *checkHost) knockAs(ctx context.Context, profile *profile.Profile, targets []target) error {
	picker, err := profile.Picker(ctx)
	if err != nil {
		return keyFailure(profile, err)
	}
	p := &prober{picker: picker, log: &c.app.log, port: c.found.port, limit: profile.ConnectTimeout}
	var wait sync.WaitGroup
	for i := range targets {
		if t := &targets[i]; !t.noRoute {
			wait.Go(func() { p.run(ctx, t) })
		}
	}
	wait.Wait()
	p.answers.Wait()
	return context.Cause(ctx)
}

// describeKnocks says what came back for the knocks, and from the port after them.
func (c *checkHost) describeKnocks(t *target) {
	if t.unsent != nil {
		c.step(isFailed, "knocks", 0, "to %v cannot be sent: %s", t.addr, oneLine(t.unsent.Error()))
		return
	}
	by := map[string][]string{}
	for i, k := range t.knocks {
		word := map[portState]string{portRejected: "rejected", portSilent: "no sign"}[k.state]
		word = cmp.Or(word, "arrived")
		by[word] = append(by[word], strconv.Itoa(i+1))
	}
	var parts []string
	for _, word := range []string{"arrived", "rejected", "no sign"} {
		if places := by[word]; len(places) > 0 {
			parts = append(parts, word+": "+strings.Join(places, " "))
		}
	}
	v := isFine
	if len(by["arrived"]) < len(t.knocks) {
		v = isNote
	}
	c.step(v, "knocks", 0, "%d to %v; %s", len(t.knocks), t.addr, strings.Join(parts, "; "))
	e := &c.found
	switch {
	case t.after == portOpen && t.before == portOpen:
		c.step(isNote, "opened", 0, "%d/tcp at %v was open before", e.port, t.addr)
	case t.after == portOpen:
		c.step(isFine, "opened", t.took, "%d/tcp at %v, in round %d", e.port, t.addr, t.round+1)
	default:
		c.step(isFailed, "opened", t.took, "%d/tcp at %v after the knocks: %s", e.port, t.addr, cmp.Or(t.after, portSilent))
	}
	if t.after == portOpen && e.ssh != nil && e.ssh.port == e.port {
		v = isFine
		if !strings.HasPrefix(t.banner, sshBanner) {
			v = isFailed
		}
		c.step(v, "banner", 0, "%s", cmp.Or(t.banner, "none"))
	}
}

// conclude prints the causes.
func (c *checkHost) conclude() error {
	e := &c.found
	all := causes(e)
	if c.json {
		result := struct {
			Host    string  `json:"host"`
			Profile string  `json:"profile"`
			Port    uint16  `json:"port"`
			Steps   []step  `json:"steps"`
			Causes  []cause `json:"causes"`
		}{c.host, e.profile.Name, e.port, c.steps, append([]cause{}, all...)}
		if err := c.app.printJSON(result); err != nil {
			return err
		}
	} else if err := c.printCauses(all); err != nil {
		return err
	}
	if len(all) == 0 {
		return nil
	}
	return &failure{code: exitFailed} // the output has said why
}

// causeText returns the lines about a cause. The number i is its place in the list, from 0.
func causeText(i int, c cause) string {
	word := "perhaps"
	if c.Certain {
		word = "cause"
	}
	return fmt.Sprintf("%s %d: %s (%s)\n   %s\n", word, i+1, c.Text, c.ID, strings.ReplaceAll(c.Fix, "\n", "\n   "))
}

// printCauses prints the causes, with what shows or mends them below each.
func (c *checkHost) printCauses(all []cause) error {
	var b strings.Builder
	for i, f := range all {
		b.WriteString("\n" + causeText(i, f))
	}
	last := ""
	switch {
	case len(all) == 0:
		last = fmt.Sprintf("all is well: port %d opens after the knocks, and only then\n", c.found.port)
	case !all[0].Certain && c.server == "":
		last = fmt.Sprintf("if you can still log in: portknock check --server %s\n", c.host)
	}
	if c.isLockedOut() {
		last += fmt.Sprintf("if you cannot log in, run as root at the provider's console: sh %[1]s status\n"+
			"to open the port from the console: sh %[1]s unload\n", installedScript(c.found.profile.Name))
	}
	if last != "" {
		b.WriteString("\n" + last)
	}
	return c.app.print("%s", b.String())
}

// isLockedOut reports whether the server has rules that this computer has deployed, and neither
// opens the port nor can be asked.
func (c *checkHost) isLockedOut() bool {
	e := &c.found
	has := func(state portState) bool {
		return slices.ContainsFunc(e.targets, func(t target) bool { return t.after == state })
	}
	return c.last != nil && (e.server == nil || e.server.err != nil) && has(portSilent) && !has(portOpen) && !e.oldOpens
}
