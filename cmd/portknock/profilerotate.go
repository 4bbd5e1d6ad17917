package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

// profileRotate is the command that gives a profile new secrets, to be deployed over the old
// ones.
type profileRotate struct {
	config
	force bool
}

func (c *profileRotate) flags(a *app, f *pflag.FlagSet) {
	c.fileFlags(a, f)
	f.BoolVar(&c.force, "force", false, "also if the profile is not deployed from here")
}

func (c *profileRotate) run(_ context.Context, a *app, args []string) error {
	options := c.pathFlag()
	var r report
	err := c.change(func(old profileText) (edited, error) {
		file, err := old.parse()
		if err != nil {
			return edited{}, err
		}
		p, err := file.Lookup(args[0])
		if err != nil {
			return edited{}, profileFailure(err, profile.ErrNoProfile, "portknock profile list shows all profiles")
		}
		if err := c.checkOld(old.path, p, options); err != nil {
			return edited{}, err
		}
		secrets := slices.DeleteFunc(p.Secrets(), func(s profile.Secret) bool { return s.IsFile && s.Path == "" })
		settings, keys, err := newSecrets(old.path, p, secrets)
		if err != nil {
			return edited{}, err
		}
		text, err := profile.Change(old.path, old.text, p.Name, settings)
		r.addKeys(old.path, keys)
		for _, s := range secrets {
			r.add("rotated", "%s of %s in %s", s.Keyword, p.Name, old.path)
		}
		for _, s := range secrets {
			if s.IsFile {
				r.add("old key", "%s stays until the server has the new one", s.Path)
			}
		}
		r.add("next", "portknock %sdeploy %s", options, p.Name)
		return edited{text, keys}, err
	})
	if err != nil {
		return err
	}
	return r.print(a)
}

// checkOld returns an error if new secrets could lock the user out, or cannot be drawn.
func (c *profileRotate) checkOld(path string, p *profile.Profile, options string) error {
	if len(p.KeyCommand) > 0 {
		return &failure{exitProfile, fmt.Errorf("%s: the key comes from KeyCommand %s, which portknock cannot change", p.Name, p.KeyCommand[0]),
			fmt.Sprintf("store another key there, such as that of portknock keygen\nthen run: portknock %sdeploy %s", options, p.Name)}
	}
	d, err := loadDeployment(path, p.Name)
	if err != nil {
		return err
	}
	if d == nil && !c.force {
		return &failure{exitProfile, fmt.Errorf("%s: not deployed from here, so a login would not try the old secrets any more", p.Name),
			fmt.Sprintf("run first: portknock %sdeploy %s\nif no server has the old secrets, or if you have another way in, add --force", options, p.Name)}
	}
	return nil
}
