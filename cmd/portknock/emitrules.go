package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock/rules"
	"github.com/portknock/portknock/knock/secret"
	"github.com/spf13/pflag"
)

// emitRules is the command that prints the server's rules or writes them to a file. With
// --script it prints a shell script that contains the rules and loads them.
type emitRules struct {
	config
	ruleFlags
	format, output, onFailure string
	script, refresh           bool
	allFlags                  *pflag.FlagSet // all flags of the command
}

func (c *emitRules) flags(a *app, f *pflag.FlagSet) {
	c.allFlags = f
	c.config.flags(a, f)
	f.StringVar(&c.format, "format", "nftables", "`NAME` of the format: "+formatList(rules.Formats(), ", "))
	c.ruleFlags.flags(f, "how long the rules stay valid: a `TIME` such as 30d (needed for Scheme\nrotating, token and md5-hourly, except with --refresh)")
	f.StringVar(&c.output, "output", "", "write the rules to this `FILE`, mode 0600, and print ValidUntil for the\nprofile; the commands in the file use this path, or outside Linux the\nusual path on a server")
	f.BoolVar(&c.script, "script", false, "print a shell script that contains the rules, and has commands to\ntest, try, keep, install and remove them")
	f.BoolVar(&c.refresh, "refresh", false, "with --script: the installed script makes new rules before they\nexpire; run this on the server, which needs portknock and the key")
	f.StringVar(&c.onFailure, "on-failure", "closed", onFailureUsage)
}

func (c *emitRules) run(ctx context.Context, a *app, args []string) error {
	if c.output == "-" {
		c.output = ""
	}
	o, err := c.ruleOptions()
	if err != nil {
		return err
	}
	switch {
	case c.onFailure != "closed" && c.onFailure != "open":
		return usageError("--on-failure %q is not closed or open", c.onFailure)
	case !c.script && (c.refresh || c.allFlags.Changed("on-failure")):
		return usageError("--refresh and --on-failure need --script")
	case c.refresh && c.path == "-":
		return usageError("a service cannot read the profile from standard input; name the file with -c")
	}
	if c.output != "" && runtime.GOOS == "linux" { // on other systems, the file is for another machine
		if o.File, err = filepath.Abs(c.output); err != nil {
			return err
		}
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
		return emitFailure(err, c.horizon == 0 && !c.refresh)
	}
	a.log.warn(warnings)
	if c.output == "" {
		return a.printSecret(text.Bytes(), "--output FILE")
	}
	if err := secret.Replace(c.output, text.Bytes(), nil); err != nil {
		return err
	}
	if c.refresh {
		return nil // the server renews its rules, so they do not expire for the client
	}
	return c.printValidUntil(a, guards, o)
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
	if err == nil && strings.ContainsAny(program, "$\"'\\") {
		err = fmt.Errorf("%s: systemd cannot run a program with this name", program)
	}
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
		words = append(words, c.given(c.allFlags)...)
		if c.onFailure != "closed" {
			words = append(words, "--on-failure", c.onFailure)
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
	return path, err
}
