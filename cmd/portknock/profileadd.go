package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/portknock/portknock/knock/importer"
	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

// profileAdd is the command that adds a profile with new secrets to the profile file. The scheme
// is static by default: its rules need no clock and never expire, so they cannot lock a user out
// later.
type profileAdd struct {
	config
	host, scheme string
	sshConfig    bool // also install the lines for ssh
}

func (c *profileAdd) flags(a *app, f *pflag.FlagSet) {
	c.config.flags(a, f)
	f.StringVar(&c.host, "host", "", "the server's `ADDRESS`, a name or an IP address; by default, what ssh's\nconfiguration has for NAME")
	f.StringVar(&c.scheme, "scheme", "", "the `SCHEME`: static (the default), rotating, token, md5-hourly or\nfwknop")
	f.BoolVar(&c.sshConfig, "ssh-config", false, "make ssh use portknock for all profiles, as portknock ssh-config\n--install --include does")
}

// check adds the settings of --host and --scheme to those of -o.
func (c *profileAdd) check() error {
	if err := checkHostFlag(c.host); err != nil {
		return err
	}
	if c.host != "" {
		if err := c.set("--host", "HostName "+escapeHost(c.host)); err != nil {
			return err
		}
	}
	if c.scheme != "" {
		if err := c.set("--scheme", "Scheme "+c.scheme); err != nil {
			return err
		}
	}
	if err := c.config.check(); err != nil {
		return err
	}
	for i, s := range c.settings {
		if slices.ContainsFunc(c.settings[:i], func(t profile.Setting) bool { return t.Keyword == s.Keyword }) {
			return usageError("%s is given twice", s.Keyword)
		}
	}
	return nil
}

// checkHostFlag checks the value of --host, which may be "".
func checkHostFlag(address string) error {
	if user, host, ok := strings.Cut(address, "@"); ok {
		return &failure{exitUsage, fmt.Errorf("--host %q: the address must not have a user", address),
			fmt.Sprintf("--host %s; the user goes to ~/.ssh/config: User %s", host, user)}
	}
	if i := strings.LastIndex(address, ":"); i >= 0 {
		if _, err := netip.ParseAddr(address); err != nil {
			return &failure{exitUsage, fmt.Errorf("--host %q is not a host name or an address", address),
				"without a port: --host " + address[:i] + " -o Port=" + address[i+1:]}
		}
	}
	if err := profile.CheckHost(address); address != "" && err != nil {
		return usageError("--host: %w", err)
	}
	return nil
}

// escapeHost returns a host as the value of a HostName, in which "%h" means another host.
func escapeHost(host string) string { return strings.ReplaceAll(host, "%", "%%") }

func (c *profileAdd) run(ctx context.Context, a *app, args []string) error {
	name := args[0]
	if user, host, ok := strings.Cut(name, "@"); ok {
		return &failure{exitUsage, fmt.Errorf("%q: the name of a profile must not have a user", name),
			fmt.Sprintf("portknock profile add %s; the user goes to ~/.ssh/config: User %s", host, user)}
	}
	if err := profile.CheckHost(name); err != nil {
		return usageError("profile add: %w", err)
	}
	options := c.pathFlag()
	lines := &sshConfig{config: config{path: c.path}, include: true}
	if c.sshConfig {
		if err := lines.checkInstall(); err != nil {
			return err
		}
	}
	var r report
	if err := c.takeFromSSH(ctx, name, &r); err != nil {
		return err
	}
	err := c.change(func(old profileText) (edited, error) {
		block, keys, err := c.block(name, old, &r)
		if err != nil {
			return edited{}, err
		}
		r.addKeys(old.path, keys)
		text, err := profile.Insert(old.path, old.text, block)
		return edited{text, keys}, profileFailure(err, profile.ErrExists, existsHint)
	})
	if err != nil {
		return err
	}
	r.add("added", "Host %s to %s", name, c.path)
	if c.sshConfig {
		err = lines.installAll(ctx, a, &r)
	} else {
		refreshSSHConfig(ctx, a, c.path, &r)
	}
	r.add("next", "portknock %sdeploy %s", options, name)
	return cmp.Or(err, r.print(a))
}

// takeFromSSH adds the HostName and the Port that ssh's configuration has for a name, unless the user
// has given them.
func (c *profileAdd) takeFromSSH(ctx context.Context, name string, r *report) error {
	has := func(keyword string) bool {
		return slices.ContainsFunc(c.settings, func(s profile.Setting) bool { return s.Keyword == keyword })
	}
	host, port := askSSH(ctx, name, 0)
	var took []string
	take := func(keyword, value string) error {
		took = append(took, keyword+" "+value)
		return c.set("ssh -G", keyword+" "+escapeHost(value))
	}
	var err error
	if !has("HostName") && !strings.EqualFold(host, name) {
		err = take("HostName", host)
	}
	if !has("Port") && port != 0 && port != 22 && err == nil {
		err = take("Port", fmt.Sprint(port))
	}
	if len(took) > 0 {
		r.add("took", "%s from ssh's configuration", strings.Join(took, " and "))
	}
	if _, notAddr := netip.ParseAddr(name); err == nil && !has("HostName") && notAddr != nil && !strings.Contains(name, ".") {
		r.add("note", "ssh's configuration has no HostName for %s, so the name must be in DNS or /etc/hosts", name)
	}
	return err
}

// block returns the new Host block, and its keys.
func (c *profileAdd) block(name string, old profileText, r *report) ([]byte, []importer.Key, error) {
	file, err := old.parse()
	if err != nil {
		return nil, nil, err
	}
	draft, err := profile.Draft(name, c.settings)
	if err != nil {
		return nil, nil, err
	}
	if p, err := file.Lookup(draft.HostName); err == nil && draft.HostName != "" {
		r.add("note", "ssh's %%h finds only profile %s at %s; use the ProxyCommand of portknock ssh-config", p.Name, draft.HostName)
	}
	secrets, keys, err := newSecrets(old.path, draft, draft.Secrets())
	if err != nil {
		return nil, nil, err
	}
	block, err := profile.Block(name, slices.Concat(c.settings, secrets))
	return block, keys, err
}

// existsHint is what a user can do if a profile exists already.
const existsHint = "to change it: portknock profile edit; for new secrets: portknock profile rotate"
