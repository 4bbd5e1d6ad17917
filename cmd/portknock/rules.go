package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/rules"
	"github.com/portknock/portknock/knock/secret"
	"github.com/spf13/pflag"
)

// ruleOpts are the flags of emit-rules.
type ruleOpts struct {
	format, policy, allow, output string
	atEnd, refresh                string
	horizon                       duration
	consume, force                bool
}

func ruleFlags(a *app, f *pflag.FlagSet) {
	a.shared.profileFlags(f)
	o := &a.rules
	f.StringVar(&o.format, "format", "nftables", "`NAME` of the format: "+formatList(rules.Formats(), ", "))
	f.StringVar(&o.policy, "policy", "guard", "`POLICY`: guard only guards the ports, drop closes all others too")
	f.StringVar(&o.allow, "allow", "", "with --policy drop, the `PORTS` open to all, as 80/tcp,443/tcp")
	f.Var(&o.horizon, "horizon", "for sequences that change with time, how `LONG` the rules last, as 30d")
	f.StringVar(&o.atEnd, "at-end", "closed", "`WHAT` follows then: closed to everybody, or open")
	f.BoolVar(&o.consume, "consume", false, "drop the knocks, on a server that drops at closed ports")
	f.BoolVar(&o.force, "force", false, "accept a sequence that a port scan would find")
	f.StringVar(&o.output, "output", "", "write to this `FILE`, with mode 0600, and print when they end; the commands\nin it name it by its path here")
	f.StringVar(&o.refresh, "refresh", "", "print instead what keeps them fresh on a server that has the key: `systemd`,\na service and a timer")
}

func runRules(ctx context.Context, a *app, args []string) error {
	if len(args) == 0 {
		return usageError("emit-rules takes one HOST or more")
	}
	if a.rules.output == "-" {
		a.rules.output = ""
	}
	o, err := a.ruleOptions()
	if err != nil {
		return err
	}
	guards, warnings, err := a.guards(ctx, args)
	if err != nil {
		return err
	}
	if a.rules.refresh != "" {
		upkeep, err := rules.Format(a.rules.format).Upkeep(guards, o)
		if err != nil {
			return rulesFailure(err)
		}
		a.warn(warnings)
		return a.printUnits(args, upkeep)
	}
	var text bytes.Buffer
	if err := rules.Format(a.rules.format).Emit(&text, guards, o); err != nil {
		return rulesFailure(err)
	}
	a.warn(warnings)
	if a.rules.output == "" {
		return a.printSecret(text.Bytes(), "--output FILE")
	}
	if err := secret.Replace(o.File, text.Bytes(), nil); err != nil {
		return err
	}
	return a.printEnds(guards, o)
}

// refusalHints has the way out of each refusal, in flags. FORMATS stands for the
// formats that suit.
var refusalHints = map[rules.Reason]string{
	rules.Unfit:    "use --format FORMATS",
	rules.Weak:     "to accept it anyway, use --force",
	rules.Endless:  "give the rules an end time, such as --horizon 30d",
	rules.TooLong:  "shorten --horizon or lengthen the Period",
	rules.Timeless: "use --refresh systemd, a shorter --horizon, or --format FORMATS",
	rules.Eaten:    "leave out --consume",
	rules.Shut:     "add the port to --allow",
}

// rulesFailure makes a failure of an error of the package rules.
func rulesFailure(err error) error {
	f := &failure{code: exitUsage, err: err}
	if r, ok := errors.AsType[*rules.Refusal](err); ok {
		f.hint = strings.ReplaceAll(refusalHints[r.Reason], "FORMATS", formatList(r.Suits, " or "))
	}
	return f
}

func formatList(names []rules.Format, separator string) string {
	words := make([]string, len(names))
	for i, n := range names {
		words[i] = string(n)
	}
	return strings.Join(words, separator)
}

// ruleOptions returns what the flags say.
func (a *app) ruleOptions() (o rules.Options, err error) {
	o = rules.Options{Consume: a.rules.consume, Force: a.rules.force}
	switch a.rules.policy {
	case "guard":
	case "drop":
		o.DropPolicy = true
	default:
		return o, usageError("--policy %q is neither guard nor drop", a.rules.policy)
	}
	switch a.rules.atEnd {
	case "closed":
	case "open":
		o.OpenAtEnd = true
	default:
		return o, usageError("--at-end %q is neither closed nor open", a.rules.atEnd)
	}
	switch {
	case a.rules.refresh != "" && a.rules.refresh != "systemd":
		return o, usageError("--refresh %q is not systemd", a.rules.refresh)
	case a.rules.refresh != "" && a.shared.config == "-":
		return o, usageError("a service cannot read the profile from standard input: name its file by -c")
	}
	o.From = now()
	o.Until = o.From.Add(time.Duration(a.rules.horizon))
	if a.rules.allow != "" {
		if o.Allow, err = knock.ParsePortRanges(a.rules.allow); err != nil {
			return o, usageError("--allow: %w", err)
		}
	}
	if a.rules.output != "" {
		if o.File, err = filepath.Abs(a.rules.output); err != nil {
			return o, err
		}
	}
	return o, nil
}

// printEnds prints when rules end, as lines for the profile file; a block each,
// to be put before the others, if there are several.
func (a *app) printEnds(guards []rules.Guard, o rules.Options) error {
	for _, g := range guards {
		end := rules.Format(a.rules.format).End(g, o)
		if end.IsZero() {
			continue
		}
		line := "ValidUntil " + end.UTC().Format(time.RFC3339)
		if len(guards) > 1 {
			line = "Host " + g.Name + "\n    " + line
		}
		if err := a.print("%s\n", line); err != nil {
			return err
		}
	}
	return nil
}
