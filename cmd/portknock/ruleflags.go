package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
	"github.com/spf13/pflag"
)

// ruleFlags has the flags of the commands that make rules. The flags decide what is in the
// rules, for every format.
type ruleFlags struct {
	policy, atEnd, nic   string
	allow, public, trust list
	horizon              time.Duration
	consume, force, log  bool
}

// list is a flag that a user may give several times. It joins the values with commas.
type list string

func (l *list) Set(value string) error {
	if *l != "" {
		*l += ","
	}
	*l += list(value)
	return nil
}

func (l *list) String() string { return string(*l) }
func (l *list) Type() string   { return "list" }

// onFailureUsage is the usage of the flag --on-failure.
const onFailureUsage = "with --script: `STATE` of the ports if the installed rules cannot be\nloaded: closed or open"

func (r *ruleFlags) flags(f *pflag.FlagSet, horizonUsage string) {
	f.StringVar(&r.policy, "policy", "guard", "`POLICY` for all other ports: guard leaves them alone, drop closes\nthem")
	f.Var(&r.allow, "allow", "with --policy drop, leave these `PORTS` open to everyone, such as\n80/tcp,443/tcp")
	f.Var(&r.public, "public", "leave these `PORTS` open to everyone, such as 443/tcp, which NAT of the\nserver leads to a guarded port; otherwise the guard closes them too")
	f.Var(&r.trust, "trust", "let connections from these `SOURCES` through without knocks:\ninterfaces, addresses or prefixes, such as wg0,192.168.1.0/24")
	durationVar(f, &r.horizon, "horizon", horizonUsage)
	f.StringVar(&r.atEnd, "at-end", "closed", "`STATE` of the ports after the horizon: closed, so that knocks no\nlonger open them, or open to everyone")
	f.BoolVar(&r.consume, "consume", false, "drop the knock packets; use it only if the server does not answer at\nclosed ports, because a scan otherwise finds the knock ports")
	f.BoolVar(&r.force, "force", false, "accept a sequence that a scan finds or an attacker can guess, SPA\nwithout an HMAC, and --trust for every address")
	f.BoolVar(&r.log, "log", false, "log the connections that the guard lets through, at most ten a minute")
	f.StringVar(&r.nic, "interface", "", "`NAME` of the interface on which knockd or fwknopd listens \n(default: that of the default route)")
}

// ruleOptions returns the options that the flags select.
func (r *ruleFlags) ruleOptions() (o rules.Options, err error) {
	switch {
	case r.policy != "guard" && r.policy != "drop":
		return o, usageError("--policy %q is not guard or drop", r.policy)
	case r.atEnd != "closed" && r.atEnd != "open":
		return o, usageError("--at-end %q is not closed or open", r.atEnd)
	}
	o = rules.Options{DropPolicy: r.policy == "drop", OpenAtEnd: r.atEnd == "open", Consume: r.consume, Force: r.force, Log: r.log,
		Interface: r.nic}
	o.From = now()
	o.Until = o.From.Add(r.horizon)
	if r.allow != "" {
		if o.Allow, err = knock.ParsePortRanges(string(r.allow)); err != nil {
			return o, usageError("--allow: %w", err)
		}
	}
	if r.public != "" {
		if o.Public, err = knock.ParsePortRanges(string(r.public)); err != nil {
			return o, usageError("--public: %w", err)
		}
	}
	if r.trust != "" {
		if o.Trust, err = rules.ParseTrust(string(r.trust)); err != nil {
			return o, usageError("--trust: %w", err)
		}
	}
	return o, nil
}

// given returns the flags in all that differ from their defaults, as words of a command line.
// The horizon is not one of them.
func (r *ruleFlags) given(all *pflag.FlagSet) (words []string) {
	for _, name := range []string{"policy", "allow", "public", "trust", "at-end", "consume", "force", "log", "interface"} {
		switch f := all.Lookup(name); {
		case f.Value.String() == f.DefValue:
		case f.Value.Type() == "bool":
			words = append(words, "--"+name)
		default:
			words = append(words, "--"+name, f.Value.String())
		}
	}
	return words
}

// guards returns the guards that the profiles of hosts describe for one server. It warns of
// a key that also opens another server, because a leak on either server exposes that key.
func (c *config) guards(ctx context.Context, a *app, hosts []string) (guards []rules.Guard, warnings []string, err error) {
	file, profiles, err := c.profiles(ctx, a, hosts...)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range profiles {
		g, err := guard(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		guards = append(guards, g)
	}
	for _, p := range profiles {
		others := slices.DeleteFunc(file.SharesKey(p), func(name string) bool {
			return slices.ContainsFunc(guards, func(g rules.Guard) bool { return g.Name == name })
		})
		if len(others) > 0 {
			advice := "use a separate key"
			if p.Facts().DerivesKeys {
				advice += ", such as DeriveHostKey makes"
			}
			warnings = append(warnings, fmt.Sprintf("%s: this key also opens %s: %s", p.Name, strings.Join(others, ", "), advice))
		}
	}
	return guards, warnings, nil
}

// emitFailure turns an error of the package rules into a failure. The hint names the flags
// that help. endless is true if the user has given no end time.
func emitFailure(err error, endless bool) error {
	f := &failure{code: exitUsage, err: err}
	r, ok := errors.AsType[*rules.Refusal](err)
	if !ok {
		return f
	}
	f.hint = map[string]string{
		"Force":   "to accept it anyway, use --force",
		"Until":   "use a shorter --horizon or a longer Period",
		"Consume": "leave out --consume",
		"Allow":   "add the port to --allow",
	}[r.Option]
	others := "--format " + formatList(r.Suits, " or ")
	switch {
	case r.Suits != nil && r.Option == "Until":
		f.hint = "use --script --refresh, a shorter --horizon, or " + others
	case r.Suits != nil:
		f.hint = "use " + others
	case r.Option == "Until" && endless:
		f.hint = "give the rules an end time, such as --horizon 30d"
	}
	return f
}

// formatList joins the names of formats.
func formatList(names []rules.Format, separator string) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(names), "[]"), " ", separator)
}
