// Command portknock knocks at a closed port and connects to it. It is made for
// ssh's ProxyCommand; the server's rules come out of the same profile.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

const usage = `Usage: portknock [FLAGS] HOST PORT           knock, connect, join stdin and stdout
       portknock connect [FLAGS] HOST PORT   the same
       portknock knock [FLAGS] HOST [PORT]   knock only
       portknock sequence [FLAGS] HOST       what would be sent
       portknock emit-rules [FLAGS] HOST...  the rules for the server
       portknock profile list|show           what the profile file says
       portknock profile import FILE         take over fwknop's .fwknoprc
       portknock keygen [FILE]               a new key, for a scheme that takes one
       portknock version | help [COMMAND]

Flags of most commands ("portknock help COMMAND" lists them all):
  -c, --config FILE         the profile file; - is standard input
  -o, --option KEY=VALUE    a setting before those of the file, as in ssh
      --profile NAME        the profile, if HOST does not name it
  -4, -6                    IPv4 only, IPv6 only
  -F, --fdpass              hand ssh the connected socket and leave, for
                            ProxyUseFdpass yes
  -v, -vv                   say what happens; -vv also what is sent
  -q, --quiet               say nothing, not even why it failed
      --log-file FILE       say it to FILE too (or set PORTKNOCK_LOG)

Exit status: 0 done, 1 connecting or writing failed, 2 usage, 3 profile, 4 the
knocks could not be sent, 5 the port did not open.

Example, in ~/.ssh/config:
  Host vps
      HostName 203.0.113.7
      ProxyCommand portknock %h %p
and in ~/.config/portknock/config (mode 0600):
  Host vps
      HostName 203.0.113.7
      Sequence 7000/udp 8000/tcp 9000/udp`

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

// command is one row of the table of commands.
type command struct {
	name     string
	synopsis string // its flags and operands
	about    string
	run      func(ctx context.Context, a *app, args []string) error
	flags    func(a *app, f *pflag.FlagSet)
}

// app is one call of the program.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	shared         shared
	log            logger
	file           *profile.File // read when first needed
	path           string        // of file; "" if it is standard input

	// Flags of single commands.
	optional bool     // connect
	fdpass   bool     // connect
	wait     bool     // knock
	at       string   // sequence
	windows  windows  // sequence
	json     bool     // sequence, profile
	stanza   string   // profile import
	rules    ruleOpts // emit-rules
	from     string   // keygen
	host     string   // keygen
}

// commands is filled in init, since help lists it.
var commands []command

func init() {
	commands = []command{
		{"connect", "[FLAGS] HOST PORT", "Knock, connect, and join stdin and stdout to the connection.", runConnect, connectFlags},
		{"knock", "[FLAGS] HOST [PORT]", "Send the knocks. With --wait, knock until PORT (or the profile's, or 22) answers.", runKnock, knockFlags},
		{"sequence", "[FLAGS] HOST", "Print the sequence that would be sent, and how long it is valid. Just after a\nwindow began, a second one follows, which every other round sends: that of the\nwindow before.", runSequence, sequenceFlags},
		{"emit-rules", "[FLAGS] HOST...", "Print the rules with which a server opens to these profiles. The comment above them\nhas the commands that check them, load them, try them for a minute and undo them.", runRules, ruleFlags},
		{"profile", "list|show|import [FLAGS] [HOST|FILE]", "List the profiles, show one with its defaults, or import those of fwknop's client\nfrom its .fwknoprc: to the profile file, and keys to new files beside it.", runProfile, profileFlags},
		{"keygen", "[--from FILE --host NAME] [FILE]", "Write a new key to FILE, which must not exist, or print it. With --from, the\nkey that DeriveHostKey makes for a profile's NAME: all that its server needs.", runKeygen, keygenFlags},
		{"version", "", "Print the version.", runVersion, nil},
		{"help", "[COMMAND]", "Print how to use portknock, or one of its commands.", runHelp, nil},
	}
}

func find(name string) *command {
	for i := range commands {
		if commands[i].name == name {
			return &commands[i]
		}
	}
	return nil
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
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return *new(T), context.Cause(ctx)
	}
}

// main finds out what is asked for. ssh gives a host and a port, and a host
// may be called like a command: so two operands of which the second is a
// number are a host and a port, whatever the first is.
func (a *app) main(ctx context.Context, args []string) error {
	flags := a.flagSet(find("connect"))
	flags.SetInterspersed(false)
	help := flags.BoolP("help", "h", false, "")
	version := flags.BoolP("version", "V", false, "")
	if err := parse(flags, args); err != nil {
		return usageError("%w", err)
	}
	switch {
	case *help:
		return runHelp(ctx, a, nil)
	case *version:
		return runVersion(ctx, a, nil)
	}
	operands := flags.Args()
	if len(operands) == 0 {
		return usageError("no host given")
	}
	if len(operands) == 2 && isNumber(operands[1]) {
		return a.start(ctx, find("connect"), operands)
	}
	cmd := find(operands[0])
	if cmd == nil {
		return unknownCommand(operands)
	}
	// What stood before the command is for the command too.
	before := args[:len(args)-len(operands)]
	flags = a.flagSet(cmd)
	help = flags.BoolP("help", "h", false, "")
	if err := parse(flags, slices.Concat(before, operands[1:])); err != nil {
		return helpOn(cmd, usageError("%s: %w", cmd.name, err))
	}
	if *help {
		return runHelp(ctx, a, operands[:1])
	}
	return a.start(ctx, cmd, flags.Args())
}

// unknownCommand guesses what was meant.
func unknownCommand(operands []string) error {
	name := operands[0]
	switch len(operands) {
	case 1:
		if name == "" {
			return usageError("no host given")
		}
		return &failure{exitUsage, fmt.Errorf("%q is no command, and to connect a port is missing", name),
			fmt.Sprintf("portknock %[1]s 22, or portknock knock %[1]s", name)}
	case 2:
		return &failure{exitUsage, fmt.Errorf("%q is no command, and to connect %q is not a port number", name, operands[1]),
			"portknock HOST PORT, or portknock help"}
	}
	return usageError("%q is no command", name)
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 64)
	return err == nil
}

// flagSet returns the flags of a command, silent on its own.
func (a *app) flagSet(c *command) *pflag.FlagSet {
	f := pflag.NewFlagSet("portknock", pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.SortFlags = false
	f.Usage = func() {}
	if c.flags != nil {
		c.flags(a, f)
	}
	return f
}

// parse reads flags. One with an empty value is refused: it is a variable that is
// not set, as in --output "$FILE", and to go on without it would do another thing
// than what was asked for. Only a log can be turned off like that.
func parse(f *pflag.FlagSet, args []string) error {
	err := f.Parse(args)
	f.Visit(func(flag *pflag.Flag) {
		if err == nil && flag.Value.Type() == "string" && flag.Value.String() == "" && flag.Name != "log-file" {
			err = fmt.Errorf("--%s has no value", flag.Name)
		}
	})
	return err
}

func (a *app) start(ctx context.Context, c *command, args []string) error {
	if err := a.openLog(ctx); err != nil {
		return helpOn(c, err)
	}
	if err := a.shared.check(); err != nil {
		return helpOn(c, err)
	}
	return helpOn(c, c.run(ctx, a, args))
}

// helpOn has the hint of a usage error lead to the command that was used.
func helpOn(c *command, err error) error {
	if f, ok := errors.AsType[*failure](err); ok && f.hint == helpHint {
		f.hint += " " + c.name
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
		a.shared.quiet = false
		_ = a.openLog(ctx) // this one error is enough
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
