// Command portknock knocks at a closed port and connects to it. It is made for
// ssh's ProxyCommand; the server's rules come out of the same profile.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
)

// The exit codes.
const (
	exitFailed  = 1 // connecting, splicing or writing failed
	exitUsage   = 2
	exitProfile = 3
	exitKnock   = 4 // the knocks could not be sent
	exitClosed  = 5 // the port did not open in time
)

// failure is an error with what main makes of it.
type failure struct {
	code int
	err  error
	hint string // the way out, if there is one
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usageError(format string, args ...any) error {
	return &failure{code: exitUsage, err: fmt.Errorf(format, args...), hint: helpHint}
}

const helpHint = "portknock help"

// app is one call of the program: what its commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	log            logger
}

// command is a command with its flags.
type command interface {
	flags(a *app, f *pflag.FlagSet)
	run(ctx context.Context, a *app, args []string) error
}

// noFlags is for a command without flags.
type noFlags struct{}

func (noFlags) flags(*app, *pflag.FlagSet) {}

// row is one row of the table of commands.
type row struct {
	name     string // two words for a command of a group
	synopsis string // its flags and operands
	about    string
	operands
	command // nil for a group, whose commands follow
}

// operands says how many operands a command takes.
type operands struct {
	min, max int
	takes    string // the error for any other number
}

const profileTakes = "profile takes list, or show and a HOST, or import and a FILE"

// table returns the commands, with their flags unset. The struct of a command is in
// a file of its own.
func table() []row {
	return []row{
		{"connect", "[FLAGS] HOST PORT", "Knock, connect, and join stdin and stdout to the connection.", operands{2, 2, "connect takes HOST and PORT"}, &connect{}},
		{"knock", "[FLAGS] HOST [PORT]", "Send the knocks. With --wait, knock until PORT (or the profile's, or 22) answers.", operands{1, 2, "knock takes HOST and perhaps PORT"}, &knockOnly{}},
		{"sequence", "[FLAGS] HOST", "Print the sequence that would be sent, and how long it is valid. Just after a\nwindow began, a second one follows, which every other round sends: that of the\nwindow before.", operands{1, 1, "sequence takes one HOST"}, &sequence{}},
		{"emit-rules", "[FLAGS] HOST...", "Print the rules with which a server opens to these profiles. The comment above them\nhas the commands that check them, load them, try them for a minute and undo them.", operands{1, math.MaxInt, "emit-rules takes one HOST or more"}, &emitRules{}},
		{"profile", "list|show|import [FLAGS] [HOST|FILE]", "List the profiles, show one with its defaults, or import those of fwknop's client\nfrom its .fwknoprc: to the profile file, and keys to new files beside it.", operands{0, 0, profileTakes}, nil},
		{"profile list", "[FLAGS]", "List the profiles, without their secrets.", operands{0, 0, profileTakes}, &profileList{}},
		{"profile show", "[FLAGS] HOST", "Show the profile of HOST with its defaults, as a block of the profile file. The\noutput contains the sequence.", operands{1, 1, profileTakes}, &profileShow{}},
		{"profile import", "[FLAGS] FILE", "Import the profiles of fwknop's client from its .fwknoprc: to the profile file, and\nkeys to new files beside it.", operands{1, 1, profileTakes}, &profileImport{}},
		{"keygen", "[--from FILE --host NAME] [FILE]", "Write a new key to FILE, which must not exist, or print it. With --from, the\nkey that DeriveHostKey makes for a profile's NAME: all that its server needs.", operands{0, 1, "keygen takes at most one FILE"}, &keygen{}},
		{"version", "", "Print the version.", operands{0, 0, "version takes no operands"}, &printVersion{}},
		{"help", "[COMMAND]", "Print how to use portknock, or one of its commands.", operands{0, math.MaxInt, ""}, &printHelp{}},
	}
}

func find(name string) *row {
	for _, r := range table() {
		if r.name == name {
			return &r
		}
	}
	return nil
}

// members returns the commands of a group.
func (r *row) members() []row {
	return slices.DeleteFunc(table(), func(m row) bool { return !strings.HasPrefix(m.name, r.name+" ") })
}

func main() {
	// A write to a pipe without a reader must fail, and not end the process: a
	// warning that nobody reads does not cost the login. A KeyCommand would
	// inherit an ignored signal, but it does not inherit a caught one.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	ctx, cancel := context.WithCancelCause(context.Background())
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, interrupts...)
	go func() {
		<-interrupt
		cancel(errInterrupted)
		<-interrupt // a second signal ends even a call that does not watch ctx
		os.Exit(exitFailed)
	}()
	os.Exit(a.report(ctx, a.main(ctx, os.Args[1:])))
}

// interrupts are the signals of ^C and ^\. Go's own answer to ^\ is a traceback.
var interrupts = []os.Signal{os.Interrupt, syscall.SIGQUIT}

var errInterrupted = errors.New("interrupted")

// await returns what f returns, or at once when ctx ends, with the cause: f may
// wait for a terminal, or for the other end of a pipe.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	var value T
	var err error
	done := make(chan struct{})
	go func() {
		value, err = f()
		close(done)
	}()
	select {
	case <-done:
		return value, err
	case <-ctx.Done():
		return *new(T), context.Cause(ctx)
	}
}

// main finds out what is asked for. ssh gives a host and a port, and a host
// may be called like a command: so two operands of which the second is a
// number are a host and a port, whatever the first is.
func (a *app) main(ctx context.Context, args []string) error {
	r := find("connect")
	flags := a.flagSet(r)
	flags.SetInterspersed(false)
	version := flags.BoolP("version", "V", false, "")
	help, err := parse(flags, args)
	operands := flags.Args()
	switch {
	case err != nil:
		return usageError("%w", err)
	case help:
		return new(printHelp).run(ctx, a, nil)
	case *version:
		return new(printVersion).run(ctx, a, nil)
	case len(operands) == 0:
		return usageError("no host given")
	case len(operands) == 2 && isNumber(operands[1]):
		return a.start(ctx, r, operands)
	}
	if r = find(operands[0]); r == nil {
		return unknownCommand(operands)
	}
	// What stood before the command is for the command too.
	args = slices.Concat(args[:len(args)-len(operands)], operands[1:])
	flags = a.flagSet(r)
	help, err = parse(flags, args)
	switch {
	case err != nil:
		return helpOn(r, usageError("%s: %w", r.name, err))
	case help && (r.command != nil || flags.NArg() == 0):
		return new(printHelp).run(ctx, a, []string{r.name})
	case r.command == nil:
		return helpOn(r, a.startMember(ctx, r, flags, args))
	}
	return a.start(ctx, r, flags.Args())
}

// startMember starts the command of a group that the first operand names. all are
// the flags of the group, which have read args.
func (a *app) startMember(ctx context.Context, group *row, all *pflag.FlagSet, args []string) error {
	r := find(group.name + " " + all.Arg(0))
	if r == nil {
		return usageError("%s", group.takes)
	}
	flags := a.flagSet(r)
	help, err := parse(flags, args)
	all.Visit(func(f *pflag.Flag) {
		if flags.Lookup(f.Name) != nil {
			return
		}
		var takers []string
		for _, m := range group.members() {
			if a.flagSet(&m).Lookup(f.Name) != nil {
				takers = append(takers, strings.TrimPrefix(m.name, group.name+" "))
			}
		}
		err = usageError("-%s is for %s %s", cmp.Or(f.Shorthand, "-"+f.Name), group.name, strings.Join(takers, " and "))
	})
	switch {
	case err != nil:
		return err
	case help:
		return new(printHelp).run(ctx, a, []string{r.name})
	}
	return a.start(ctx, r, flags.Args()[1:])
}

// unknownCommand guesses what was meant.
func unknownCommand(operands []string) error {
	name := operands[0]
	switch {
	case len(operands) == 1 && name == "":
		return usageError("no host given")
	case len(operands) == 1:
		return &failure{exitUsage, fmt.Errorf("%q is no command, and to connect a port is missing", name),
			fmt.Sprintf("portknock %[1]s 22, or portknock knock %[1]s", name)}
	case len(operands) == 2:
		return &failure{exitUsage, fmt.Errorf("%q is no command, and to connect %q is not a port number", name, operands[1]),
			"portknock HOST PORT, or portknock help"}
	}
	return usageError("%q is no command", name)
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}

// flagSet returns the flags of a command, or those of all commands of a group.
func (a *app) flagSet(r *row) *pflag.FlagSet {
	f := pflag.NewFlagSet("portknock", pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.SortFlags = false
	f.Usage = func() {}
	if r.command != nil {
		r.flags(a, f)
		return f
	}
	for _, m := range r.members() {
		f.AddFlagSet(a.flagSet(&m))
	}
	return f
}

// parse reads flags, and -h. One with an empty value is refused: it is a variable
// that is not set, as in --output "$FILE", and to go on without it would do another
// thing than what was asked for. Only a log can be turned off like that.
func parse(f *pflag.FlagSet, args []string) (help bool, err error) {
	f.BoolVarP(&help, "help", "h", false, "")
	err = f.Parse(args)
	f.Visit(func(flag *pflag.Flag) {
		if err == nil && flag.Value.Type() == "string" && flag.Value.String() == "" && flag.Name != "log-file" {
			err = fmt.Errorf("--%s has no value", flag.Name)
		}
	})
	return help, err
}

func (a *app) start(ctx context.Context, r *row, args []string) error {
	err := a.log.open(ctx, a.stderr)
	if c, ok := r.command.(interface{ check() error }); ok && err == nil {
		err = c.check()
	}
	if err == nil && (len(args) < r.min || len(args) > r.max) {
		err = usageError("%s", r.takes)
	}
	if err == nil {
		err = r.run(ctx, a, args)
	}
	return helpOn(r, err)
}

// helpOn has the hint of a usage error lead to the command that was used.
func helpOn(r *row, err error) error {
	if f, ok := errors.AsType[*failure](err); ok && f.hint == helpHint {
		f.hint += " " + r.name
	}
	return err
}

// report says on stderr why it failed and returns the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx) // whatever has come of it
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok && e.Path == os.Stdout.Name() && errors.Is(e, syscall.EPIPE) {
		return exitFailed // the reader, such as head(1), has all that it wants
	}
	f := &failure{code: exitFailed, err: err}
	errors.As(err, &f)
	if a.log.stderr == nil { // the flags could not be read, so neither could -q
		a.log.quiet = false
		_ = a.log.open(ctx, a.stderr) // this one error is enough
	}
	a.log.say(always, "%s", oneLine(err.Error()))
	if f.hint != "" {
		a.log.say(always, "hint: %s", oneLine(f.hint))
	}
	return f.code
}

// oneLine keeps a text to a line: what comes from elsewhere can hold several.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}
