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

// emitRules prints or writes the server's rules, or what keeps them fresh.
type emitRules struct {
	config
	format, policy, allow, output string
	atEnd, refresh                string
	horizon                       time.Duration
	consume, force                bool
	given                         *pflag.FlagSet // all flags, for upkeep
}

func (c *emitRules) flags(a *app, f *pflag.FlagSet) {
	c.given = f
	c.config.flags(a, f)
	f.StringVar(&c.format, "format", "nftables", "`NAME` of the format: "+formatList(rules.Formats(), ", "))
	f.StringVar(&c.policy, "policy", "guard", "`POLICY` for other ports: guard leaves them alone, drop closes\nthem")
	f.StringVar(&c.allow, "allow", "", "with --policy drop, leave these `PORTS` open to everyone, such as\n80/tcp,443/tcp")
	durationVar(f, &c.horizon, "horizon", "how `LONG` the rules stay valid, such as 30d (rotating, token and\nmd5-hourly only)")
	f.StringVar(&c.atEnd, "at-end", "closed", "after the horizon, leave the ports in this `STATE`: closed (to\neveryone) or open")
	f.BoolVar(&c.consume, "consume", false, "drop the knocks; for a server that drops packets to all closed ports")
	f.BoolVar(&c.force, "force", false, "accept a sequence that a port scan would find")
	f.StringVar(&c.output, "output", "", "write the rules to this `FILE`, with mode 0600, and print their end\ntime as ValidUntil; the commands in the file use this path")
	f.StringVar(&c.refresh, "refresh", "", "instead of the rules, print a `systemd` service and timer that\nregenerate and load the rules on a server that has the key")
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
	if c.refresh != "" {
		var u rules.Upkeep
		if u, err = c.upkeep(args); err != nil {
			return err
		}
		err = format.WriteUnits(&text, guards, o, u)
	} else {
		err = format.Emit(&text, guards, o)
	}
	if err != nil {
		return c.refused(err)
	}
	a.log.warn(warnings)
	switch {
	case c.refresh != "":
		return a.print("%s", text.Bytes())
	case c.output == "":
		return a.printSecret(text.Bytes(), "--output FILE")
	}
	if err := secret.Replace(o.File, text.Bytes(), nil); err != nil {
		return err
	}
	return c.printEnds(a, guards, o)
}

// guards returns the server's half of several profiles for one server, and what
// to warn of: a key that opens another server, too, is lost with either.
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
			own := "use a separate key"
			if p.Facts().DerivesKeys {
				own += ", such as DeriveHostKey makes"
			}
			warnings = append(warnings, fmt.Sprintf("%s: this key also opens %s: %s", p.Name, strings.Join(others, ", "), own))
		}
	}
	return guards, warnings, nil
}

// refused makes a failure of an error of the package rules. The hint is the way
// out in flags.
func (c *emitRules) refused(err error) error {
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
		f.hint = "use --refresh systemd, a shorter --horizon, or " + others
	case r.Suits != nil:
		f.hint = "use " + others
	case r.Option == "Until" && c.horizon == 0 && c.refresh == "": // no end was given
		f.hint = "give the rules an end time, such as --horizon 30d"
	}
	return f
}

func formatList(names []rules.Format, separator string) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(names), "[]"), " ", separator)
}

// ruleOptions returns what the flags say.
func (c *emitRules) ruleOptions() (o rules.Options, err error) {
	switch {
	case c.policy != "guard" && c.policy != "drop":
		return o, usageError("--policy %q is not guard or drop", c.policy)
	case c.atEnd != "closed" && c.atEnd != "open":
		return o, usageError("--at-end %q is not closed or open", c.atEnd)
	case c.refresh != "" && c.refresh != "systemd":
		return o, usageError("--refresh %q is not systemd", c.refresh)
	case c.refresh != "" && c.path == "-":
		return o, usageError("a service cannot read the profile from standard input; name the file with -c")
	}
	o = rules.Options{DropPolicy: c.policy == "drop", OpenAtEnd: c.atEnd == "open", Consume: c.consume, Force: c.force}
	o.From = now()
	o.Until = o.From.Add(c.horizon)
	if c.allow != "" {
		if o.Allow, err = knock.ParsePortRanges(c.allow); err != nil {
			return o, usageError("--allow: %w", err)
		}
	}
	if c.output != "" {
		o.File, err = filepath.Abs(c.output)
	}
	return o, err
}

// printEnds prints when rules end, as lines for the profile file; a block each,
// to be put before the others, if there are several.
func (c *emitRules) printEnds(a *app, guards []rules.Guard, o rules.Options) error {
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
	_, err := strings.NewReader(text).WriteTo(a.stdout) // does not write an empty text
	return err
}

// upkeep returns how a server emits these rules again.
func (c *emitRules) upkeep(hosts []string) (u rules.Upkeep, err error) {
	program, err := ownPath()
	if err != nil {
		return u, err
	}
	config, err := c.find()
	if err == nil {
		config, err = filepath.Abs(config)
	}
	if err == nil && strings.ContainsFunc(config, unicode.IsControl) {
		err = usageError("%q: the file name contains control characters", config)
	}
	command := func(file, horizon string) []string {
		words := []string{program, "emit-rules", "-c", config}
		for _, o := range c.options {
			words = append(words, "-o", o)
		}
		words = append(words, "--format", c.format, "--horizon", horizon, "--output", file)
		for _, name := range []string{"policy", "allow", "at-end", "consume", "force"} {
			switch f := c.given.Lookup(name); {
			case f.Value.String() == f.DefValue:
			case f.Value.Type() == "bool":
				words = append(words, "--"+name)
			default:
				words = append(words, "--"+name, f.Value.String())
			}
		}
		return append(words, hosts...)
	}
	return rules.Upkeep{Command: command, Config: config, Names: hosts}, err
}

// ownPath returns where this program is, as it was called: what a symbolic link
// points at may go away with the next version.
func ownPath() (string, error) {
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
