package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"strings"
)

func runHelp(_ context.Context, a *app, args []string) error {
	if len(args) == 0 {
		return a.print("%s\n", usage)
	}
	c := find(args[0])
	if c == nil || len(args) > 1 && !(c.name == "profile" && len(args) == 2) { // which has commands of its own
		return usageError("there is no help on %q", strings.Join(args, " "))
	}
	if err := a.print("%s\n%s\n", strings.TrimSpace("Usage: portknock "+c.name+" "+c.synopsis), c.about); err != nil {
		return err
	}
	if flags := a.flagSet(c).FlagUsages(); flags != "" {
		return a.print("\n%s", flags)
	}
	return nil
}

// version is set when a release is linked.
var version string

func runVersion(_ context.Context, a *app, args []string) error {
	if len(args) > 0 {
		return usageError("version takes no operands")
	}
	v := version
	if info, ok := debug.ReadBuildInfo(); ok && v == "" {
		v = info.Main.Version
	}
	return a.print("portknock %s %s/%s %s\n", v, runtime.GOOS, runtime.GOARCH, runtime.Version())
}
