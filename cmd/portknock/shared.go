package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

// now is the clock that windows are told by. Tests set it.
var now = time.Now

// shared are the flags of most commands.
type shared struct {
	config   string
	options  []string
	settings []profile.Setting // options, read
	profile  string
	v4, v6   bool
	verbose  int
	quiet    bool
	logFile  string
}

// profileFlags choose the profile and what is said.
func (s *shared) profileFlags(f *pflag.FlagSet) {
	f.StringVarP(&s.config, "config", "c", "", "the profile `FILE`; - is standard input")
	f.StringArrayVarP(&s.options, "option", "o", nil, "a setting before those of the file, `KEY=VALUE`")
	f.CountVarP(&s.verbose, "verbose", "v", "``say what happens; twice, also what is sent")
	f.BoolVarP(&s.quiet, "quiet", "q", false, "say nothing, not even why it failed")
	f.StringVar(&s.logFile, "log-file", os.Getenv("PORTKNOCK_LOG"), "say it to this `FILE` too; PORTKNOCK_LOG does the same")
}

// networkFlags are for the commands that send something.
func (s *shared) networkFlags(f *pflag.FlagSet) {
	s.profileFlags(f)
	f.StringVar(&s.profile, "profile", "", "the profile's `NAME`, if it is not HOST")
	f.BoolVarP(&s.v4, "ipv4", "4", false, "IPv4 only")
	f.BoolVarP(&s.v6, "ipv6", "6", false, "IPv6 only")
}

// duration is a flag in the words of a profile: 250ms, 30d, 1h30m.
type duration time.Duration

func (d *duration) Set(s string) error {
	v, err := profile.ParseDuration(s)
	*d = duration(v)
	return err
}

func (d *duration) String() string { return "" } // none is a default that is worth showing
func (d *duration) Type() string   { return "duration" }

// check reads the flags that are more than a value.
func (s *shared) check() error {
	if s.v4 && s.v6 {
		return usageError("-4 and -6 exclude each other")
	}
	if s.quiet && s.verbose > 0 {
		return usageError("-q and -v exclude each other")
	}
	for _, o := range s.options {
		set, err := profile.ParseSetting(o)
		if err != nil {
			return usageError("%w", err)
		}
		s.settings = append(s.settings, set)
	}
	family := ""
	switch {
	case s.v4:
		family = "inet"
	case s.v6:
		family = "inet6"
	}
	if family != "" {
		// Before the others: a flag of its own outranks -o.
		s.settings = append([]profile.Setting{{Keyword: "AddressFamily", Value: family}}, s.settings...)
	}
	return nil
}

// loadFile reads the profile file, once. An error in it is a failure with the
// code for profiles; that there is none is fs.ErrNotExist.
func (a *app) loadFile(ctx context.Context) (file *profile.File, err error) {
	if a.file != nil {
		return a.file, nil
	}
	path := a.shared.config
	if path == "" {
		path, err = profile.Find()
	}
	switch {
	case err != nil:
	case path == "-":
		file, err = await(ctx, func() (*profile.File, error) {
			text, err := a.readForeign(path)
			if err != nil {
				return nil, err
			}
			return profile.Parse(path, text)
		})
	default:
		a.path = path
		file, err = await(ctx, func() (*profile.File, error) { return profile.Load(path) })
	}
	if err != nil {
		f := &failure{code: exitProfile, err: err}
		if errors.Is(err, fs.ErrNotExist) {
			f.hint = "portknock help shows how to write one"
			if path == "" {
				f.hint = "set HOME, or name the profile file with -c"
			}
		}
		return nil, f
	}
	a.file = file
	return file, nil
}

// lookup returns the profile of a host.
func (a *app) lookup(ctx context.Context, host string) (*profile.Profile, error) {
	file, err := a.loadFile(ctx)
	if err != nil {
		return nil, err
	}
	p, err := file.Lookup(host, a.shared.settings...)
	if err != nil {
		f := &failure{code: exitProfile, err: err}
		if errors.Is(err, profile.ErrNoProfile) {
			f.hint = "portknock profile list shows those there are"
		}
		return nil, f
	}
	return p, nil
}

// profileOf is lookup for a command that relies on the server's rules: it warns
// of their end. What it says is no failure, since ssh may get through.
func (a *app) profileOf(ctx context.Context, host string) (*profile.Profile, error) {
	p, err := a.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	if end := endOfRules(p.ValidUntil, now()); end != "" {
		a.log.say(always, "%s: %s", p.Name, end)
	}
	return p, nil
}

// endNear is how long before the end of the rules the warnings begin.
const endNear = 14 * 24 * time.Hour

// endOfRules returns what is to be said of rules that end at a time; "" if that
// is unknown or far away.
func endOfRules(end, now time.Time) string {
	const cure = "emit new ones, load them, and set the new ValidUntil"
	switch at := end.Format(time.RFC3339); {
	case end.IsZero() || end.Sub(now) > endNear:
		return ""
	case end.After(now):
		return fmt.Sprintf("the server's rules end at %s: %s before that", at, cure)
	default:
		return fmt.Sprintf("the server's rules have ended at %s: %s", at, cure)
	}
}

// warn says what is no failure.
func (a *app) warn(lines []string) {
	for _, line := range lines {
		a.log.say(always, "%s", line)
	}
}

// noProfile reports whether a profile was looked for in the right places and
// is not there, as opposed to one that is wrong.
func noProfile(err error) bool {
	return errors.Is(err, profile.ErrNoProfile) || errors.Is(err, fs.ErrNotExist)
}

// The levels of what is said.
const (
	always  = iota
	verbose // -v
	secrets // -vv: what is sent, too
)

// logger writes lines to stderr and to a file. ssh with ControlPersist sends
// our stderr to /dev/null, which is what the file is for.
type logger struct {
	level  int
	stderr io.Writer
	file   io.Writer
	began  time.Time
}

func (a *app) openLog(ctx context.Context) error {
	a.log = logger{level: a.shared.verbose, stderr: a.stderr, began: time.Now()}
	if a.shared.quiet && a.shared.verbose == 0 { // check refuses both
		a.log.stderr = io.Discard
	}
	if a.shared.logFile != "" {
		f, err := await(ctx, func() (*os.File, error) {
			return os.OpenFile(a.shared.logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		})
		if err != nil {
			return usageError("cannot log: %w", err)
		}
		a.log.file = f
	}
	return nil
}

// say writes a line if its level is asked for, to the file first. The file gets
// what -v says even without -v, and a time.
func (l *logger) say(level int, format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if l.file != nil && level <= max(l.level, verbose) {
		now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
		fmt.Fprintf(l.file, "%s [%d] %s\n", now, os.Getpid(), strings.TrimSpace(line))
	}
	if level <= l.level {
		fmt.Fprintf(l.stderr, "portknock: %s\n", line)
	}
}
