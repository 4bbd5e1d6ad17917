package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

// profileRotate is the command that gives a profile new secrets, to be deployed over the old
// ones. The new secrets may be those of another scheme.
type profileRotate struct {
	config
	force  bool
	scheme string // the new scheme; "" keeps the scheme
}

func (c *profileRotate) flags(a *app, f *pflag.FlagSet) {
	c.fileFlags(a, f)
	f.BoolVar(&c.force, "force", false, "also if the profile is not deployed from here")
	f.StringVar(&c.scheme, "scheme", "", "change to this `SCHEME`: static, rotating, token, md5-hourly or fwknop")
}

// check makes the setting of --scheme.
func (c *profileRotate) check() error {
	if c.scheme == "" {
		return nil
	}
	c.scheme = strings.ToLower(c.scheme)
	return c.set("--scheme", "Scheme "+c.scheme)
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
		next, secrets := *p, slices.DeleteFunc(p.Secrets(), func(s profile.Secret) bool { return s.IsFile && s.Path == "" })
		changesScheme := c.scheme != "" && c.scheme != p.Scheme
		if changesScheme {
			next.Scheme = c.scheme
			secrets = next.Secrets()
		}
		settings, keys, err := newSecrets(old.path, &next, secrets)
		if err != nil {
			return edited{}, err
		}
		r.addKeys(old.path, keys)
		if changesScheme {
			settings = slices.Concat(c.settings, settings)
			r.add("changed", "%s from Scheme %s to %s in %s", p.Name, p.Scheme, c.scheme, old.path)
		} else {
			for _, s := range secrets {
				r.add("rotated", "%s of %s in %s", s.Keyword, p.Name, old.path)
			}
		}
		for _, s := range p.Secrets() {
			if s.Path != "" {
				r.add("old key", "%s stays until the server has the new rules", s.Path)
			}
		}
		text, err := profile.Change(old.path, old.text, p.Name, settings)
		if err != nil {
			return edited{}, &failure{exitProfile, err, fmt.Sprintf("change this with: portknock %sprofile edit\nthen run the same command again", options)}
		}
		r.add("next", "portknock %sdeploy %s", options, p.Name)
		return edited{text, keys}, nil
	})
	if err != nil {
		return err
	}
	return r.print(a)
}

// checkOld returns an error if new secrets could lock the user out, or cannot be drawn.
func (c *profileRotate) checkOld(path string, p *profile.Profile, options string) error {
	if len(p.KeyCommand) > 0 {
		first := "store another key there, such as that of portknock keygen"
		if c.scheme != "" {
			first = "change Scheme and KeyCommand with: portknock " + options + "profile edit"
		}
		return &failure{exitProfile, fmt.Errorf("%s: the key comes from KeyCommand %s, which portknock cannot change", p.Name, p.KeyCommand[0]),
			fmt.Sprintf("%s\nthen run: portknock %sdeploy %s", first, options, p.Name)}
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
