package main

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/portknock/portknock/knock/rules"
	"github.com/spf13/pflag"
)

// undeploy is the command that removes what deploy has installed on servers.
type undeploy struct {
	config
	serverFlags
	format   string
	recorded string // path of the profile file that has the deployments beside it
}

func (u *undeploy) flags(a *app, f *pflag.FlagSet) {
	u.config.flags(a, f)
	u.serverFlags.flags(f)
	f.StringVar(&u.format, "format", "", "only for rules that are loaded but not installed: `NAME` of their format,\n"+formatList(rules.Formats(), ", "))
}

func (u *undeploy) run(ctx context.Context, a *app, hosts []string) error {
	hosts = u.withUsers(hosts)
	search := u.config // a copy, because each treats a path as one that the user has given
	d := search.removedProfile(ctx, a, profileOf(hosts[0]))
	u.recorded = search.path
	if len(hosts) == 1 && d != nil {
		u.path = deployedFile(search.path, d.profile.Name) // a deployment is a profile file too
	}
	return u.each(ctx, a, &u.config, hosts, 1, u.upload, u.remove)
}

// upload puts a script on the server that knows the profile's name in the firewall. Its rules
// are not used.
func (u *undeploy) upload(ctx context.Context, s *server) error {
	s.result.Result = stillDeployed
	guards, _, err := u.guards(ctx, s.app, []string{s.profile.Name})
	if err != nil {
		return err
	}
	format := formatsFor(guards[0], u.format)[0]
	var script bytes.Buffer
	o := rules.Options{From: now(), Until: now().Add(time.Second), Force: true}
	if err := format.EmitScript(&script, guards, o, rules.Script{}); err != nil {
		return emitFailure(err, false)
	}
	return s.channel.upload(ctx, s.file, script.Bytes())
}

// remove removes the profile from the server.
func (u *undeploy) remove(ctx context.Context, s *server) error {
	// The installed script may have another format.
	_, err := s.channel.run(ctx, verbLimit, `find_part
[ ! -f "/etc/portknock/$part.sh" ] || cp "/etc/portknock/$part.sh" `+s.file)
	if err == nil {
		s.result.Result = isUnknown
		_, err = s.verb(context.WithoutCancel(ctx), "uninstall")
	}
	if err != nil {
		code := exitNotDeployed
		if s.result.Result == isUnknown {
			code = exitUnknown
		}
		return &failure{code, fmt.Errorf("not removed: %w", err), "run the same command again"}
	}
	s.result.Result = isRemoved
	s.say("removed   %s; its ports are open, unless another profile or firewall closes them", s.profile.Name)
	if err := removeDeployment(u.recorded, s.profile.Name); err != nil {
		return err
	}
	if canRemove(u.recorded, s.profile.Name) {
		s.say("next      portknock %sprofile remove %s, if you do not need the profile any more", s.configFlag(), localWord(s.profile.Name))
	}
	return nil
}

// The results of undeploy, besides isUnknown.
const (
	stillDeployed = "still deployed"
	isRemoved     = "removed"
)
