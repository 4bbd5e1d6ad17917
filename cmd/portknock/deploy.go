package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/portknock/portknock/knock/rules"
	"github.com/spf13/pflag"
)

// deploy is the command that sets servers up. On each server, it loads the rules of a
// profile on trial, proves from here that a new login works, and then installs the rules.
type deploy struct {
	config
	ruleFlags
	serverFlags
	format, onFailure string
	dryRun, unproved  bool
	replace           bool
	parallel          int
	renew, all        bool
	trial             time.Duration
	allFlags          *pflag.FlagSet // all flags of the command
	recorded          []string       // flags for the next deploy
}

// The exit codes of deploy and undeploy.
const (
	exitNotDeployed = 6 // the server has the rules that it had before
	exitUnknown     = 7 // nobody knows which rules the server has
)

// defaultHorizons are the times for which deployed rules are valid, unless --horizon is given. The
// second one is for a format that takes fewer windows, or for short windows.
var defaultHorizons = []time.Duration{180 * 24 * time.Hour, 30 * 24 * time.Hour}

func (d *deploy) flags(a *app, f *pflag.FlagSet) {
	d.allFlags = f
	d.config.flags(a, f)
	d.serverFlags.flags(f)
	f.BoolVar(&d.dryRun, "dry-run", false, "check the server, print the plan, and change nothing")
	f.StringVar(&d.format, "format", "", "`NAME` of the format: "+formatList(rules.Formats(), ", ")+"; by default,\nthat of the last deploy; else nftables, or iptables if the server cannot\nload rules of nftables")
	d.ruleFlags.flags(f, "how long the rules stay valid: a `TIME` such as 30d (default 180d, or\n30d if the format takes fewer windows; only for Scheme rotating, token\nand md5-hourly)")
	d.trial = 90 * time.Second
	durationVar(f, &d.trial, "trial", "how long the server keeps the new rules without a proof: a `TIME` from\n30s to 2h (default 90s)")
	f.BoolVar(&d.unproved, "unproved", false, "install the rules even if the login through them fails from here, for\nexample because this computer is in --trust; have another way in")
	f.BoolVar(&d.replace, "replace", false, "replace rules of the same profile that this computer has not deployed")
	f.BoolVar(&d.renew, "renew", false, "make new rules if those on the server expire soon (within 30 days, or\nhalf of their time), with the flags of the last deploy")
	f.BoolVar(&d.all, "all", false, "with --renew: all servers to which this computer has deployed")
	f.IntVar(&d.parallel, "parallel", 1, "deploy to `N` servers at a time")
	f.StringVar(&d.onFailure, "on-failure", "closed", "`STATE` of the ports if the server cannot load the installed rules:\nclosed or open")
}

func (d *deploy) run(ctx context.Context, a *app, hosts []string) error {
	switch {
	case d.all && !d.renew:
		return usageError("--all is for deploy --renew")
	case d.all == (len(hosts) > 0):
		return usageError("deploy needs one HOST or more, or --renew --all")
	case d.parallel < 1:
		return usageError("--parallel must be 1 or more")
	}
	if err := d.complete(); err != nil {
		return err
	}
	hosts = d.withUsers(hosts)
	settings := map[string]*deploy{} // by host
	var err error
	if d.renew {
		hosts, settings, err = d.renewals(a, hosts)
	} else {
		settings, err = d.repeats(a, hosts)
	}
	if err != nil || len(hosts) == 0 {
		return err
	}
	return d.each(ctx, a, &d.config, hosts, d.parallel,
		func(ctx context.Context, s *server) error { return settings[s.host].prepare(ctx, s) },
		func(ctx context.Context, s *server) error {
			if d.dryRun {
				s.result.Result = isPlanned
				return nil
			}
			return settings[s.host].change(ctx, s)
		})
}

// complete checks the flags, and sets defaults.
func (d *deploy) complete() error {
	switch {
	case d.trial < 30*time.Second || d.trial > 2*time.Hour:
		return usageError("--trial must be from 30s to 2h")
	case d.onFailure != "closed" && d.onFailure != "open":
		return usageError("--on-failure %q is not closed or open", d.onFailure)
	}
	d.recorded = d.given(d.allFlags)
	if d.horizon > 0 {
		d.recorded = append(d.recorded, "--horizon", fmt.Sprintf("%ds", d.horizon/time.Second))
	}
	if d.onFailure == "open" {
		d.recorded = append(d.recorded, "--on-failure", "open")
	}
	if len(d.recorded) == 0 && d.allFlags.Changed("policy") { // the user wants no flag of the last deploy
		d.recorded = []string{"--policy", d.policy}
	}
	_, err := d.ruleOptions()
	return err
}

// renewals returns the hosts whose rules expire soon, and the settings of their last deploy.
func (d *deploy) renewals(a *app, hosts []string) (due []string, settings map[string]*deploy, err error) {
	path, err := d.find()
	if err != nil {
		return nil, nil, err
	}
	var all []*deployment
	if d.all {
		all, err = listDeployments(path)
	}
	for _, host := range hosts {
		last, loadErr := loadDeployment(path, profileOf(host))
		if last == nil {
			return nil, nil, cmp.Or(loadErr, usageError("%s: not deployed from here; run: portknock deploy %[1]s", host))
		}
		all = append(all, last)
	}
	settings = map[string]*deploy{}
	for _, last := range all {
		switch end := last.profile.ValidUntil; {
		case end.IsZero():
			a.log.say(verbose, "%s: the rules do not expire", last.profile.Name)
			continue
		case end.Sub(now()) > last.near():
			a.log.say(verbose, "%s: nothing to renew: the rules are valid until %s", last.profile.Name, utc(end))
			continue
		}
		due = append(due, last.Server)
		if settings[last.Server], err = d.again(a, last); err != nil {
			return nil, nil, err
		}
	}
	return due, settings, err
}

// repeats returns the settings for each host: those of its last deploy, unless the user has
// given flags for the rules. Otherwise a user could forget --policy drop, and open all ports.
func (d *deploy) repeats(a *app, hosts []string) (settings map[string]*deploy, err error) {
	path, err := d.find()
	if err != nil {
		return nil, err
	}
	settings = map[string]*deploy{}
	for _, host := range hosts {
		settings[host] = d
		// A deployment that cannot be read has no flags. The login warns of it.
		last, _ := loadDeployment(path, profileOf(host))
		if last == nil || len(d.recorded) > 0 || d.format != "" {
			continue
		}
		if settings[host], err = d.again(a, last); err != nil {
			return nil, err
		}
	}
	return settings, nil
}

// again returns the settings of the last deploy, with the other flags of this one.
func (d *deploy) again(a *app, last *deployment) (*deploy, error) {
	again := &deploy{}
	flags := pflag.NewFlagSet("deploy", pflag.ContinueOnError)
	log := a.log
	again.flags(a, flags)
	a.log = log // flags has set the defaults of its flags
	if err := flags.Parse(last.Flags); err != nil {
		return nil, fmt.Errorf("%s: flags of the last deploy: %w", last.profile.Name, err)
	}
	again.config, again.serverFlags, again.dryRun, again.unproved, again.trial = d.config, d.serverFlags, d.dryRun, d.unproved, d.trial
	again.replace = d.replace
	return again, again.complete()
}

// prepare makes the script for a server, and checks that the server can load its rules.
// It changes nothing that the firewall uses.
func (d *deploy) prepare(ctx context.Context, s *server) error {
	o, err := d.ruleOptions()
	if err != nil {
		return err
	}
	guards, warnings, err := d.guards(ctx, s.app, []string{s.profile.Name})
	if err != nil {
		return err
	}
	// A deployment that cannot be read counts as none. The login warns of it.
	s.last, _ = loadDeployment(d.path, s.profile.Name)
	if err := s.readFacts(ctx); err != nil {
		return err
	}
	if err := d.uploadScript(ctx, s, guards, o); err != nil {
		return err
	}
	s.app.log.warn(warnings)
	s.fingerprint, s.knockPorts, s.admitsOthers = guards[0].Fingerprint, guards[0].KnockPorts, len(o.Trust) > 0
	if len(d.recorded) > 0 {
		s.say("flags     %s", strings.Join(d.recorded, " "))
	}
	if err := s.plan(ctx, guards[0]); err != nil {
		return err
	}
	return d.checkOwner(s)
}

// checkOwner refuses to replace rules of the same profile that somebody else may have installed:
// they have another key, and this computer has not deployed them.
func (d *deploy) checkOwner(s *server) error {
	if d.replace || !s.foreign || s.last != nil || s.fingerprint != "" && s.presentKey == s.fingerprint {
		return nil
	}
	return &failure{exitNotDeployed, fmt.Errorf("the server has other rules for a profile %s, and this computer has not deployed them", s.profile.Name),
		fmt.Sprintf("if they are yours, run: %s\nif they are a colleague's, rename your profile", d.replaceCommand(s))}
}

// replaceCommand returns the command that deploys the same rules to a server with --replace.
func (d *deploy) replaceCommand(s *server) string {
	words := append([]string{"--replace"}, d.recorded...)
	if d.format != "" {
		words = append(words, "--format", d.format)
	}
	if s.sshConfig != "" {
		words = append(words, "--ssh-config", s.sshConfig)
	}
	if s.via != "" {
		words = append(words, "--via", s.via)
	}
	command := "portknock " + s.configFlag() + "deploy"
	for _, w := range append(words, s.host) {
		command += " " + localWord(w)
	}
	return command
}

// uploadScript puts the script on the server. It takes the first format whose rules the server
// can load.
func (d *deploy) uploadScript(ctx context.Context, s *server, guards []rules.Guard, o rules.Options) error {
	named := d.format
	if s.last != nil && s.last.profile.Facts().SingleUse == (guards[0].SPA != nil) {
		named = cmp.Or(named, s.last.Format)
	}
	formats := formatsFor(guards[0], named)
	for i, format := range formats {
		script, err := d.script(format, guards, &o)
		if err != nil {
			return err
		}
		s.result.Format = string(format)
		if s.validUntil = format.End(guards[0], o); !s.validUntil.IsZero() {
			s.result.ValidUntil = utc(s.validUntil)
		}
		if err := s.channel.upload(ctx, s.file, script); err != nil {
			return err
		}
		var other, hint string
		if other, err = s.otherFirewall(ctx); err == nil && other != "" {
			err = fmt.Errorf("the server has rules of portknock in %s; rules in both firewalls would admit nobody", other)
			hint = fmt.Sprintf("use --format %s, or first remove those rules with undeploy", other)
		}
		if err == nil {
			_, err = s.verb(ctx, "test")
			hint = reasons(err)
		}
		switch {
		case err == nil:
			return nil
		case i == len(formats)-1:
			return &failure{exitNotDeployed, err, hint}
		}
		s.say("note      the server cannot load rules of %s: %s", format, cmp.Or(oneLine(reasons(err)), err.Error()))
	}
	return nil
}

// formatsFor returns the formats to try for a guard: the one that is named, if it is not "".
func formatsFor(g rules.Guard, named string) []rules.Format {
	switch {
	case named != "":
		return []rules.Format{rules.Format(named)}
	case g.SPA != nil:
		return []rules.Format{"fwknop"}
	}
	return []rules.Format{"nftables", "iptables"}
}

// script returns the script with the rules in a format. It sets o.Until if the user has not given
// a horizon.
func (d *deploy) script(format rules.Format, guards []rules.Guard, o *rules.Options) (text []byte, err error) {
	horizons := defaultHorizons
	if d.horizon > 0 {
		horizons = []time.Duration{d.horizon}
	}
	for i, horizon := range horizons {
		o.Until = o.From.Add(horizon)
		var b bytes.Buffer
		err = format.EmitScript(&b, guards, *o, rules.Script{OnFailureOpen: d.onFailure == "open", By: madeBy()})
		if err == nil {
			return b.Bytes(), nil
		}
		if r, ok := errors.AsType[*rules.Refusal](err); !ok || r.Option != "Until" || i == len(horizons)-1 {
			break
		}
	}
	return nil, emitFailure(err, false)
}

// otherFirewall returns the other firewall than that of the new script, nftables or iptables, if it
// has rules of portknock. Each of the two firewalls admits only by its own knocks. A login may
// still succeed in the trial, because the knocks of an earlier login have opened the port in the
// other firewall.
func (s *server) otherFirewall(ctx context.Context) (string, error) {
	return s.channel.run(ctx, verbLimit, fmt.Sprintf(`if grep -qx format=iptables %s; then
	{
		nft -t list table inet portknock | grep 'chain let_'
		grep -Lx format=iptables /etc/portknock/*.sh
	} 2>/dev/null | sed 's/.*/nftables/; q'
else
	{
		iptables -w -t mangle -S PORTKNOCK | grep -e --comment
		grep -lx format=iptables /etc/portknock/*.sh
	} 2>/dev/null | sed 's/.*/iptables/; q'
fi`, s.file))
}

// change loads the rules on trial, proves that they work, and installs them.
func (d *deploy) change(ctx context.Context, s *server) error {
	before := s.probePorts(ctx)
	// If the connection ends before the rules are installed, the shell ends the trial.
	_, err := s.channel.run(ctx, verbLimit, "trap 'sh "+s.file+" cancel >/dev/null 2>&1 8>&-; remove_files' EXIT")
	if err == nil {
		s.trialEnds = time.Now().Add(d.trial)
		_, err = s.verb(ctx, fmt.Sprintf("trial %d", d.trial/time.Second))
	}
	if err == nil {
		s.say("trial     for %v; if this computer does not keep the new rules, the rules from before return", d.trial)
		err = s.prove(ctx, before)
		if err != nil && d.unproved && ctx.Err() == nil {
			s.say("note      not proved: %v", err)
			err = nil
		}
	}
	if err == nil {
		err = context.Cause(ctx) // the user may have pressed ^C
	}
	if err != nil {
		return s.cancel(ctx, err)
	}
	verb := "install"
	if d.unproved {
		verb = "install --force"
	}
	s.say("install   %s, which loads the rules at each boot", rules.InstalledScript(s.profile.Name))
	s.result.Result = isUnknown
	if _, err = s.verb(context.WithoutCancel(ctx), verb); err != nil {
		return d.settle(ctx, s, err)
	}
	return d.finish(s)
}

// cancel ends the trial, because of err.
func (s *server) cancel(ctx context.Context, err error) error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer stop()
	f := &failure{code: exitNotDeployed, err: fmt.Errorf("not deployed: %w", err)}
	if _, cancelErr := s.verb(ctx, "cancel"); cancelErr == nil || s.trialEnds.IsZero() {
		f.hint = "the rules from before are in force"
	} else {
		f.hint = fmt.Sprintf("the rules from before are in force at %s at the latest", clockTime(s.trialEnds))
	}
	why := reasons(err)
	if inner, ok := errors.AsType[*failure](err); ok {
		why = inner.hint
	}
	if why != "" {
		f.hint = why + "\n" + f.hint
	}
	if s.ssh.proxyJump != "" {
		f.hint += fmt.Sprintf("\nssh uses the jump host %[1]s, so the knocks must come from there: install portknock and the profile there\n"+
			"then replace ProxyJump by: ProxyCommand ssh %[1]s portknock %%h %%p", s.ssh.proxyJump)
	}
	return f
}

// settle finds out what the server has, after an error of the last step.
func (d *deploy) settle(ctx context.Context, s *server, err error) error {
	canceled := ctx.Done()
	ctx = context.WithoutCancel(ctx)
	if _, failed := errors.AsType[*statusError](err); !failed {
		s.say("note      %v; asking the server again", err)
		s.close()
		patience := time.After(time.Minute)
		for s.open(ctx, 60) != nil { // the network may be away for a moment
			s.close()
			select {
			case <-canceled:
				return d.unknown(s, err)
			case <-patience:
				return d.unknown(s, err)
			case <-time.After(2 * time.Second):
			}
		}
	}
	st, statusErr := s.readStatus(ctx, "/etc/portknock/"+s.part+".sh")
	inForce, sumErr := s.channel.run(ctx, verbLimit, "head -n 1 /run/portknock/"+s.part+".sum")
	switch {
	case errors.Is(cmp.Or(statusErr, sumErr), errChannel):
		return d.unknown(s, err)
	case statusErr == nil && st.ID == s.result.ID && inForce == s.result.ID:
		return d.finish(s)
	case inForce == s.result.ID:
		return &failure{exitUnknown, fmt.Errorf("the new rules are in force, but not installed: %w", err),
			fmt.Sprintf("the rules are lost at a reboot\nrun again: portknock deploy %s", s.host)}
	}
	s.result.Result = notDeployed
	return s.cancel(ctx, err)
}

// unknown is the failure if the server does not answer any more.
func (d *deploy) unknown(s *server, err error) error {
	return &failure{exitUnknown, fmt.Errorf("the server may have the old rules or the new ones: %w", err),
		fmt.Sprintf("the trial ends at %s; portknock knocks for both\nthen run again: portknock deploy %s", clockTime(s.trialEnds), s.host)}
}

// finish records what the server has now.
func (d *deploy) finish(s *server) error {
	s.result.Result = isDeployed
	p := *s.profile
	p.ValidUntil = s.validUntil
	err := saveDeployment(d.path, &deployment{profile: &p, Format: s.result.Format, ID: s.result.ID, Server: s.host,
		Fingerprint: s.fingerprint, Flags: d.recorded})
	if err != nil {
		return &failure{exitFailed, fmt.Errorf("deployed, but not recorded: %w", err), "mend this, then run: portknock deploy " + s.host}
	}
	s.say("deployed  %s", s.profile.Name)
	s.sayNext()
	return nil
}

// The results of a deploy.
const (
	isPlanned   = "planned"
	isDeployed  = "deployed"
	notDeployed = "not deployed"
	isUnknown   = "unknown"
)

func clockTime(t time.Time) string { return t.Format(time.TimeOnly) }
