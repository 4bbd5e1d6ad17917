package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/secret"
	"github.com/spf13/pflag"
)

// now is the clock that decides which window is current. Tests replace it.
var now = time.Now

// config has the flags of every command that reads profiles. It says where to look up
// profiles, but does not store profiles. So one process can use several configs.
type config struct {
	path     string            // path of the profile file; "" until find is called, - for standard input
	options  []string          // values of -o, as given
	settings []profile.Setting // settings from flags, made by check; they override the file
}

func (c *config) flags(a *app, f *pflag.FlagSet) {
	c.fileFlags(a, f)
	f.StringArrayVarP(&c.options, "option", "o", nil, "a setting that overrides the file: `KEYWORD=VALUE`")
}

// fileFlags has the flags of a command that needs only the profile file.
func (c *config) fileFlags(a *app, f *pflag.FlagSet) {
	f.StringVarP(&c.path, "config", "c", "", "the profile `FILE`; - is standard input")
	a.log.flags(f)
}

func (c *config) check() error { return c.set("-o", c.options...) }

// set adds settings. Its errors name the source.
func (c *config) set(source string, options ...string) error {
	for _, text := range options {
		s, err := profile.ParseSetting(source, text)
		if err != nil {
			return usageError("%w", err)
		}
		c.settings = append(c.settings, s)
	}
	return nil
}

// find returns the path that -c gives, or else the path and the error of [profile.Find]. It
// keeps the path of a file that it has found.
func (c *config) find() (path string, err error) {
	if c.path != "" {
		return c.path, nil
	}
	if path, err = profile.Find(); err == nil {
		c.path = path
	}
	return path, err
}

// file reads the profile file. Each error is a failure with exitProfile. If the file does
// not exist, the error wraps fs.ErrNotExist.
func (c *config) file(ctx context.Context, a *app) (*profile.File, error) {
	path, err := c.find()
	if path == "" {
		return nil, &failure{exitProfile, err, "set HOME, or name the profile file with -c"}
	}
	var file *profile.File
	if err == nil {
		file, err = await(ctx, func() (*profile.File, error) {
			if path != "-" {
				return profile.Load(path)
			}
			text, err := a.readInput(path)
			if err != nil {
				return nil, err
			}
			return profile.Parse(path, text)
		})
	}
	return file, profileFailure(err, fs.ErrNotExist, "make a profile: portknock profile add NAME")
}

// profileFailure returns the failure to find or read a profile. The failure has the hint
// only if err wraps missing. profileFailure returns nil if err is nil.
func profileFailure(err, missing error, hint string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, missing):
		return &failure{exitProfile, err, hint}
	}
	return &failure{code: exitProfile, err: err}
}

// hasNoProfile reports whether an error means that the profile file has no profile for a host.
func hasNoProfile(err error) bool { return errors.Is(err, profile.ErrNoProfile) }

// profiles returns the profiles of hosts, and the file that contains these profiles.
func (c *config) profiles(ctx context.Context, a *app, hosts ...string) (file *profile.File, all []*profile.Profile, err error) {
	if file, err = c.file(ctx, a); err != nil {
		return nil, nil, err
	}
	// Several profiles often have the same KeyCommand, which must not ask the user twice.
	runner := secret.Runner{Stderr: os.Stderr, Foreground: foreground, Printed: map[string][]byte{}}
	for _, host := range hosts {
		p, err := file.Lookup(host, c.settings...)
		if err != nil {
			return nil, nil, profileFailure(err, profile.ErrNoProfile, "portknock profile list shows all profiles; to add one: portknock profile add NAME")
		}
		p.Runner = runner
		all = append(all, p)
	}
	return file, all, nil
}

// profile returns the profile of a host for a command that relies on the server's rules. It
// warns if these rules expire soon or have expired. This is not a failure, because ssh may
// still connect.
func (c *config) profile(ctx context.Context, a *app, host string) (*profile.Profile, error) {
	_, all, err := c.profiles(ctx, a, host)
	if err != nil {
		return nil, err
	}
	warnOfExpiry(a, all[0], nil)
	return all[0], nil
}

// remote has the flags of the commands that send packets.
type remote struct {
	config config
	name   string // name of the profile; "" to look up the host
	v4, v6 bool
	family string // inet for v4, inet6 for v6, else ""; check sets it
}

func (r *remote) flags(a *app, f *pflag.FlagSet) {
	r.config.flags(a, f)
	f.StringVar(&r.name, "profile", "", "use the profile `NAME`, not the one that matches HOST")
	f.BoolVarP(&r.v4, "ipv4", "4", false, "IPv4 only")
	f.BoolVarP(&r.v6, "ipv6", "6", false, "IPv6 only")
}

func (r *remote) check() (err error) {
	switch { // before the settings of -o: -4 and -6 override them
	case r.v4 && r.v6:
		return usageError("-4 and -6 cannot be used together")
	case r.v4:
		r.family = "inet"
		err = r.config.set("-4", "AddressFamily inet")
	case r.v6:
		r.family = "inet6"
		err = r.config.set("-6", "AddressFamily inet6")
	}
	return cmp.Or(err, r.config.check())
}

// withoutKnocks returns a profile without a Scheme, for a host that has no profile.
func (r *remote) withoutKnocks(host string) *profile.Profile {
	return &profile.Profile{Name: host, AddressFamily: r.family, ConnectTimeout: profile.DefaultConnectTimeout}
}

// target returns the host to which to connect. A host that names its profile means the
// profile's HostName. With --profile, any other host is an address that the caller has
// already found.
func (r *remote) target(host string, p *profile.Profile) string {
	if p.HostName == "" || r.name != "" && !strings.EqualFold(host, r.name) {
		return host
	}
	return p.HostName
}

// durationVar adds a flag for a duration as it is written in a profile: 250ms, 30d, 1h30m.
func durationVar(f *pflag.FlagSet, d *time.Duration, name, usage string) {
	f.Func(name, usage, func(s string) (err error) {
		*d, err = profile.ParseDuration(s)
		return err
	})
}

// These are the times before the rules expire in which portknock warns. deploy makes rules
// for half a year, so its warnings can begin early. The rules of emit-rules often last for
// 30 days.
const (
	expiryNear   = 14 * 24 * time.Hour
	deployedNear = 30 * 24 * time.Hour
)

// expiryWarning returns the warning for rules that expire at the time end. It ends with the
// advice. It returns "" if end is unknown, or later than near from now.
func expiryWarning(end, now time.Time, near time.Duration, advice string) string {
	verb := "expire"
	switch {
	case end.IsZero() || end.Sub(now) > near:
		return ""
	case !end.After(now):
		verb = "expired"
	}
	return fmt.Sprintf("the rules %s at %s%s", verb, utc(end), advice)
}

// expiryText returns the warning for the rules of a profile that expire soon or have expired,
// and "" for other rules. The profile has the end of rules that emit-rules made, or its
// deployment d has the end of rules that deploy made. d is nil if the profile was
// not deployed.
func expiryText(p *profile.Profile, d *deployment) string {
	near, advice := expiryNear, "; emit and load new rules, then set ValidUntil"
	if d != nil && p.ValidUntil.Equal(d.profile.ValidUntil) {
		near = d.near()
		advice = deployAdvice + "--renew " + p.Name
	}
	return expiryWarning(p.ValidUntil, now(), near, advice)
}

// warnOfExpiry warns if the rules of a profile expire soon or have expired.
func warnOfExpiry(a *app, p *profile.Profile, d *deployment) {
	if text := expiryText(p, d); text != "" {
		a.log.say(always, "%s: %s", p.Name, text)
	}
}

const maxInput = 4 << 20 // largest input that is read, in bytes

// readInput reads a file to import, or standard input for "-". Standard input can also be
// a profile file.
func (a *app) readInput(path string) ([]byte, error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	// One byte more than maxInput lets the parser report input that is too large.
	return io.ReadAll(io.LimitReader(in, maxInput+1))
}
