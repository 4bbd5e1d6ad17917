package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
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
	parallel          int
	trial             time.Duration
	allFlags          *pflag.FlagSet // all flags of the command
}

// The exit codes of deploy and undeploy.
const (
	exitNotDeployed = 6 // the server has the rules that it had before
	exitUnknown     = 7 // nobody knows which rules the server has
)

// defaultHorizon is how long deployed rules are valid, unless --horizon is given.
const defaultHorizon = 180 * 24 * time.Hour

func (d *deploy) flags(a *app, f *pflag.FlagSet) {
	d.allFlags = f
	d.config.flags(a, f)
	d.serverFlags.flags(f)
	f.BoolVar(&d.dryRun, "dry-run", false, "check the server, print the plan, and change nothing")
	f.StringVar(&d.format, "format", "", "`NAME` of the format: "+formatList(rules.Formats(), ", ")+"; by default,\nnftables, or iptables if the server cannot load rules of nftables")
	d.ruleFlags.flags(f)
	d.trial = 90 * time.Second
	durationVar(f, &d.trial, "trial", "how long the server keeps the new rules without a proof: a `TIME` from\n30s to 2h (default 90s)")
	f.BoolVar(&d.unproved, "unproved", false, "install the rules although no login through them works from here; you\nneed another way into the server")
	f.IntVar(&d.parallel, "parallel", 1, "deploy to `N` servers at a time")
	f.StringVar(&d.onFailure, "on-failure", "closed", "`STATE` of the ports if the server cannot load the installed rules:\nclosed or open")
}

func (d *deploy) run(ctx context.Context, a *app, hosts []string) error {
	switch {
	case d.trial < 30*time.Second || d.trial > 2*time.Hour:
		return usageError("--trial must be from 30s to 2h")
	case d.onFailure != "closed" && d.onFailure != "open":
		return usageError("--on-failure %q is not closed or open", d.onFailure)
	case d.parallel < 1:
		return usageError("--parallel must be 1 or more")
	}
	if d.horizon == 0 {
		d.horizon = defaultHorizon
	}
	o, err := d.ruleOptions()
	if err != nil {
		return err
	}
	return d.each(ctx, a, &d.config, hosts, d.parallel,
		func(ctx context.Context, s *server) error { return d.prepare(ctx, s, o) },
		func(ctx context.Context, s *server) error {
			if d.dryRun {
				s.result.Result = isPlanned
				return nil
			}
			return d.change(ctx, s)
		})
}

// prepare makes the script for a server, and checks that the server can load its rules.
// It changes nothing that the firewall uses.
func (d *deploy) prepare(ctx context.Context, s *server, o rules.Options) error {
	guards, warnings, err := d.guards(ctx, s.app, []string{s.profile.Name})
	if err != nil {
		return err
	}
	if err := s.readFacts(ctx); err != nil {
		return err
	}
	if err := d.uploadScript(ctx, s, guards, o); err != nil {
		return err
	}
	s.app.log.warn(warnings)
	return s.plan(ctx, guards[0])
}

// uploadScript puts the script on the server. It takes the first format whose rules the server
// can load.
func (d *deploy) uploadScript(ctx context.Context, s *server, guards []rules.Guard, o rules.Options) error {
	formats := []rules.Format{rules.Format(d.format)}
	switch {
	case d.format != "":
	case guards[0].SPA != nil:
		formats = []rules.Format{"fwknop"}
	default:
		formats = []rules.Format{"nftables", "iptables"}
	}
	for i, format := range formats {
		var script bytes.Buffer
		err := format.EmitScript(&script, guards, o, rules.Script{OnFailureOpen: d.onFailure == "open", By: madeBy()})
		if err != nil {
			return emitFailure(err, false)
		}
		s.result.Format = string(format)
		if end := format.End(guards[0], o); !end.IsZero() {
			s.result.ValidUntil = utc(end)
		}
		if err := s.channel.upload(ctx, s.file, script.Bytes()); err != nil {
			return err
		}
		out, err := s.verb(ctx, "test")
		switch {
		case err == nil:
			return nil
		case i == len(formats)-1:
			return &failure{exitNotDeployed, err, out}
		}
		s.say("note      the server cannot load rules of %s: %v", format, err)
	}
	return nil
}

// change loads the rules on trial, proves that they work, and installs them.
func (d *deploy) change(ctx context.Context, s *server) error {
	before := s.probePorts(ctx)
	// If the connection ends before the rules are installed, the shell ends the trial.
	_, err := s.channel.run(ctx, verbLimit, fmt.Sprintf("trap 'sh %[1]s cancel >/dev/null 2>&1 8>&-; rm -f %[1]s %[1]s.out' EXIT", s.file))
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
	s.say("install   the rules, which will also be loaded at each boot")
	_, err = s.channel.run(ctx, verbLimit, fmt.Sprintf("trap 'rm -f %[1]s %[1]s.out' EXIT", s.file))
	if err != nil {
		return s.cancel(ctx, err)
	}
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
	if _, cancelErr := s.verb(ctx, "cancel"); cancelErr == nil {
		f.hint = "the rules from before are in force"
	} else {
		f.hint = fmt.Sprintf("the rules from before are in force at %s at the latest", clockTime(s.trialEnds))
	}
	if s.ssh.proxyJump != "" {
		f.hint += fmt.Sprintf("\nssh uses the jump host %[1]s, so the knocks must come from there: install portknock and the profile there\n"+
			"then replace ProxyJump by: ProxyCommand ssh %[1]s portknock %%h %%p", s.ssh.proxyJump)
	}
	return f
}

// settle finds out what the server has, after an error of the last step.
func (d *deploy) settle(ctx context.Context, s *server, err error) error {
	ctx = context.WithoutCancel(ctx)
	if _, failed := errors.AsType[*statusError](err); !failed {
		s.say("note      %v; asking the server again", err)
		s.close()
		if openErr := s.open(ctx, 60); openErr != nil {
			return d.unknown(s, err)
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
	s.say("deployed  %s", s.profile.Name)
	return d.record(s)
}

// The results of a deploy.
const (
	isPlanned   = "planned"
	isDeployed  = "deployed"
	notDeployed = "not deployed"
	isUnknown   = "unknown"
)

func clockTime(t time.Time) string { return t.Format(time.TimeOnly) }

func (d *deploy) record(s *server) error { return nil }
