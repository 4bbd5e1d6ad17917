package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

// profileRemove is the command that removes a profile from the profile file.
type profileRemove struct {
	config
	force bool
}

func (c *profileRemove) flags(a *app, f *pflag.FlagSet) {
	c.fileFlags(a, f)
	f.BoolVar(&c.force, "force", false, "also if the profile is deployed; forget what the server has")
}

func (c *profileRemove) run(ctx context.Context, a *app, args []string) error {
	name, options := args[0], c.pathFlag()
	var r report
	var removed *profile.Profile // nil if only another name of a profile is removed
	err := c.change(func(old profileText) (edited, error) {
		file, err := old.parse()
		if err != nil {
			return edited{}, err
		}
		text, err := profile.Remove(old.path, old.text, name)
		p, lookupErr := file.Lookup(name)
		if err != nil {
			hint := "portknock profile list shows all profiles"
			if lookupErr == nil && p.Name != strings.ToLower(name) {
				hint = fmt.Sprintf("its profile is %s: portknock %sprofile remove %[1]s", p.Name, options)
			}
			return edited{}, profileFailure(err, profile.ErrNoProfile, hint)
		}
		if lookupErr != nil || p.Name != strings.ToLower(name) {
			return edited{text: text}, nil
		}
		removed = p
		if d, err := loadDeployment(old.path, p.Name); (d != nil || err != nil) && !c.force {
			return edited{}, &failure{exitProfile, fmt.Errorf("%s: the profile is deployed, and undeploy needs it to log in to the server", p.Name),
				fmt.Sprintf("run first: portknock %sundeploy %s\nif the server no longer exists, add --force", options, p.Name)}
		}
		return edited{text: text}, nil
	})
	if err != nil {
		return err
	}
	r.add("removed", "%s from %s", name, c.path)
	if removed != nil {
		if err := removeDeployment(c.path, removed.Name); err != nil {
			return err
		}
		forgetState(removed.Name)
		for _, s := range removed.Secrets() {
			if s.Path != "" {
				r.add("kept", "%s", s.Path)
			}
		}
	}
	refreshSSHConfig(ctx, a, c.path, &r)
	return r.print(a)
}

// canRemove reports whether the profile file at path has a profile that profile remove accepts.
func canRemove(path, name string) bool {
	old, err := readProfiles(path)
	if err == nil {
		_, err = profile.Remove(path, old.text, name)
	}
	return err == nil
}
