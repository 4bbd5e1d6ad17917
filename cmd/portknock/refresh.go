package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/portknock/portknock/knock/rules"
)

// printUnits prints what keeps the rules fresh with systemd.
func (a *app) printUnits(hosts []string, u rules.Upkeep) error {
	program, err := ownPath()
	if err != nil {
		return err
	}
	config, err := filepath.Abs(a.path)
	if err != nil {
		return err
	}
	if strings.ContainsFunc(config, unicode.IsControl) {
		return usageError("%q: control characters in a file's name", config)
	}
	emit := func(horizon string) []string {
		return slices.Concat([]string{program}, a.emitArgs(config, u.File, horizon), hosts)
	}
	return u.WriteUnits(a.stdout, emit, config, hosts)
}

// emitArgs returns the arguments with which a server emits these rules again, but
// for the hosts.
func (a *app) emitArgs(config, file, horizon string) []string {
	args := []string{"emit-rules", "-c", config}
	for _, o := range a.shared.options {
		args = append(args, "-o", o)
	}
	r := &a.rules
	args = append(args, "--format", r.format, "--horizon", horizon, "--output", file)
	for _, f := range []struct{ name, value, usual string }{
		{"--policy", r.policy, "guard"}, {"--allow", r.allow, ""}, {"--at-end", r.atEnd, "closed"},
	} {
		if f.value != f.usual {
			args = append(args, f.name, f.value)
		}
	}
	if r.consume {
		args = append(args, "--consume")
	}
	if r.force {
		args = append(args, "--force")
	}
	return args
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
		err = fmt.Errorf("%s: systemd cannot run a program of that name", path)
	}
	return path, err
}
