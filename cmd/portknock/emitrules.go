package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
	"github.com/portknock/portknock/knock/secret"
	"github.com/spf13/pflag"
)

// emitRules is the command that prints the server's rules or writes them to a file. With
// --script it prints a shell script that contains the rules and loads them.
type emitRules struct {
	config
	format, policy, output string
	allow, public, trust   list
	atEnd, onFailure, nic  string
	horizon                time.Duration
	consume, force, log    bool
	script, refresh        bool
	allFlags               *pflag.FlagSet // all flags of the command, for refreshCommand
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

func (c *emitRules) flags(a *app, f *pflag.FlagSet) {
	c.allFlags = f
	c.config.flags(a, f)
	f.StringVar(&c.format, "format", "nftables", "`NAME` of the format: "+formatList(rules.Formats(), ", "))
	f.StringVar(&c.policy, "policy", "guard", "`POLICY` for all other ports: guard leaves them alone, drop closes\nthem")
	f.Var(&c.allow, "allow", "with --policy drop, leave these `PORTS` open to everyone, such as\n80/tcp,443/tcp")
	f.Var(&c.public, "public", "leave these `PORTS` open to everyone although NAT of the server leads\nthem to a guarded port, such as 443/tcp by REDIRECT")
	f.Var(&c.trust, "trust", "let connections from these `SOURCES` through without knocks:\ninterfaces, addresses or prefixes, such as wg0,192.168.1.0/24")
	durationVar(f, &c.horizon, "horizon", "how long the rules stay valid: a `TIME` such as 30d (needed for Scheme\nrotating, token and md5-hourly, except with --refresh)")
	f.StringVar(&c.atEnd, "at-end", "closed", "`STATE` of the ports after the horizon: closed, so that knocks no\nlonger open them, or open to everyone")
	f.BoolVar(&c.consume, "consume", false, "drop the knock packets; use it only if the server drops packets to\nall closed ports, or a scan finds the knock ports")
	f.BoolVar(&c.force, "force", false, "accept a sequence that a scan finds or an attacker can guess, SPA\nwithout an HMAC, and --trust for every address")
	f.StringVar(&c.output, "output", "", "write the rules to this `FILE`, mode 0600, and print ValidUntil for the\nprofile; the commands in the file use this path")
	f.BoolVar(&c.log, "log", false, "log the connections that the guard lets through, at most ten a minute")
	f.BoolVar(&c.script, "script", false, "print a shell script that contains the rules, and has commands to\ntest, try, keep, install and remove them")
	f.BoolVar(&c.refresh, "refresh", false, "with --script: the installed script makes new rules before they\nexpire; run this on the server, which needs portknock and the key")
	f.StringVar(&c.onFailure, "on-failure", "closed", "with --script: `STATE` of the ports if the installed rules cannot be\nloaded: closed or open")
	f.StringVar(&c.nic, "interface", "", "`NAME` of the interface on which knockd or fwknopd listens; by default,\na script takes that of the default route")
}

func (c *emitRules) run(ctx context.Context, a *app, args []string) error {
	if c.output == "-" {
		c.output = ""
	}
	o, err := c.ruleOptions()
	if err != nil {
		return err
	}
	guards, warnings, err := c.guards(ctx, a, args)
	if err != nil {
		return err
	}
	format := rules.Format(c.format)
	var text bytes.Buffer
	if c.script {
		s := rules.Script{OnFailureOpen: c.onFailure == "open"}
		if c.refresh {
			if s.Refresh, err = c.refreshCommand(args); err != nil {
				return err
			}
		}
		err = format.EmitScript(&text, guards, o, s)
	} else {
		err = format.Emit(&text, guards, o)
	}
	if err != nil {
		return c.emitFailure(err)
	}
	a.log.warn(warnings)
	if c.output == "" {
		return a.printSecret(text.Bytes(), "--output FILE")
	}
	if err := secret.Replace(o.File, text.Bytes(), nil); err != nil {
		return err
	}
	if c.refresh {
		return nil // the server renews its rules, so they do not expire for the client
	}
	return c.printValidUntil(a, guards, o)
}

// guards returns the guards that the profiles of hosts describe for one server. It warns of
// a key that also opens another server, because a leak on either server exposes that key.
func (c *emitRules) guards(ctx context.Context, a *app, hosts []string) (guards []rules.Guard, warnings []string, err error) {
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
// that help.
func (c *emitRules) emitFailure(err error) error {
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
	case r.Option == "Until" && c.horizon == 0 && !c.refresh: // the user gave no end time
		f.hint = "give the rules an end time, such as --horizon 30d"
	}
	return f
}

// formatList joins the names of formats.
func formatList(names []rules.Format, separator string) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(names), "[]"), " ", separator)
}

// ruleOptions returns the options that the flags select.
func (c *emitRules) ruleOptions() (o rules.Options, err error) {
	switch {
	case c.policy != "guard" && c.policy != "drop":
		return o, usageError("--policy %q is not guard or drop", c.policy)
	case c.atEnd != "closed" && c.atEnd != "open":
		return o, usageError("--at-end %q is not closed or open", c.atEnd)
	case c.onFailure != "closed" && c.onFailure != "open":
		return o, usageError("--on-failure %q is not closed or open", c.onFailure)
	case !c.script && (c.refresh || c.allFlags.Changed("on-failure")):
		return o, usageError("--refresh and --on-failure need --script")
	case c.refresh && c.path == "-":
		return o, usageError("a service cannot read the profile from standard input; name the file with -c")
	}
	o = rules.Options{DropPolicy: c.policy == "drop", OpenAtEnd: c.atEnd == "open", Consume: c.consume, Force: c.force, Log: c.log,
		Interface: c.nic}
	o.From = now()
	o.Until = o.From.Add(c.horizon)
	if c.allow != "" {
		if o.Allow, err = knock.ParsePortRanges(string(c.allow)); err != nil {
			return o, usageError("--allow: %w", err)
		}
	}
	if c.public != "" {
		if o.Public, err = knock.ParsePortRanges(string(c.public)); err != nil {
			return o, usageError("--public: %w", err)
		}
	}
	if c.trust != "" {
		if o.Trust, err = rules.ParseTrust(string(c.trust)); err != nil {
			return o, usageError("--trust: %w", err)
		}
	}
	if c.output != "" {
		o.File, err = filepath.Abs(c.output)
	}
	return o, err
}

// printValidUntil prints when the rules expire, as ValidUntil lines for the profile file.
// For several guards it prints a Host block for each; the user puts these blocks before
// the other blocks of the file.
func (c *emitRules) printValidUntil(a *app, guards []rules.Guard, o rules.Options) error {
	text := ""
	for _, g := range guards {
		end := rules.Format(c.format).End(g, o)
		if end.IsZero() {
			continue
		}
		line := "ValidUntil " + end.UTC().Format(time.RFC3339)
		if len(guards) > 1 {
			line = "Host " + g.Name + "\n    " + line
		}
		text += line + "\n"
	}
	_, err := strings.NewReader(text).WriteTo(a.stdout) // WriteTo does not write an empty text
	return err
}

// refreshCommand returns the command with which a server writes a new script for the
// same hosts.
func (c *emitRules) refreshCommand(hosts []string) (func(horizon string) []string, error) {
	program, err := programPath()
	if err != nil {
		return nil, err
	}
	config, err := c.find()
	if err == nil {
		config, err = filepath.Abs(config)
	}
	if err == nil && strings.ContainsFunc(config, unicode.IsControl) {
		err = usageError("%q: the file name contains control characters", config)
	}
	return func(horizon string) []string {
		words := []string{program, "emit-rules", "-c", config}
		for _, o := range c.options {
			words = append(words, "-o", o)
		}
		words = append(words, "--format", c.format, "--horizon", horizon, "--script", "--refresh")
		for _, name := range []string{"policy", "allow", "public", "trust", "at-end", "consume", "force", "log", "on-failure", "interface"} {
			switch f := c.allFlags.Lookup(name); {
			case f.Value.String() == f.DefValue:
			case f.Value.Type() == "bool":
				words = append(words, "--"+name)
			default:
				words = append(words, "--"+name, f.Value.String())
			}
		}
		return append(words, hosts...)
	}, err
}

// programPath returns the path of this program, as it was called. It does not follow a
// symbolic link, because the link's target may disappear with the next version.
func programPath() (string, error) {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		path, err = os.Executable()
	}
	if err == nil && strings.ContainsAny(path, "$\"'\\") {
		err = fmt.Errorf("%s: systemd cannot run a program with this name", path)
	}
	return path, err
}
